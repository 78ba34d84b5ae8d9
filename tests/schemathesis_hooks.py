"""What schemathesis is told about nusku: how to send a patch, what leads where, and which of its
expectations the API disappoints on purpose.

Loaded by the run in test_api.py. Each of the functions in `EXCUSES` names something that the API
has to do and that its document cannot express.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

from nusku.broker.rules import RETRY_NUMBERS

Case = schemathesis.Case[Any]

PATCH_TYPE = "application/openstack-messaging-v2.0-json-patch"

INTEGERS = {
    "ttl",
    "delay",
    "grace",
    "_max_messages_post_size",
    "_default_message_ttl",
    "_default_message_delay",
    "_dead_letter_queue_messages_ttl",
    "_max_claim_count",
    *RETRY_NUMBERS,
}
OPTIONS = {"_enable_encrypt_messages", "_retry_policy"}

schemathesis.serializer.alias(PATCH_TYPE, "application/json")


@schemathesis.deserializer("application/json-home")
def json_home(_: Any, response: Response) -> Any:
    return json.loads(response.content)


@schemathesis.hook
def before_load_schema(_: Any, raw_schema: dict[str, Any]) -> None:
    """Follow a claim's Location, which takes an expression that OpenAPI does not have."""
    claimed = raw_schema["paths"]["/v2/queues/{queue_name}/claims"]["post"]["responses"]["201"]
    for verb in ("get", "update", "delete"):
        claimed["links"][verb] = {
            "operationId": f"claims:{verb}",
            "parameters": {
                "queue_name": "$request.path.queue_name",
                "claim_id": "$response.header.Location#regex:/claims/(.+)$",
                "header.X-Project-ID": "$request.header.X-Project-ID",
            },
        }


@schemathesis.hook
def before_call(_: Any, case: Case, kwargs: dict[str, Any]) -> None:
    """Don't sit through long polls; how long they take is tested elsewhere."""
    wait = case.query.get("wait")
    if type(wait) is int and 0 < wait <= 20:
        case.query["wait"] = 0


def either_ids_or_pop(failure: Failure, case: Case, told: str) -> bool:
    """Deleting several messages takes one of two parameters, and not both."""
    return isinstance(failure, RejectedPositiveData) and told == "Give either ids or pop."


def delays_that_are_apart(failure: Failure, case: Case, told: str) -> bool:
    """In a retry policy one number has to exceed another by 10."""
    return isinstance(failure, RejectedPositiveData) and "must exceed minimum_delay" in told


def integers_have_64_bits(failure: Failure, case: Case, told: str) -> bool:
    """Anywhere in a document, even where any value is fine."""
    return isinstance(failure, RejectedPositiveData) and told.endswith("integer too large.")


def integers_are_written_as_such(failure: Failure, case: Case, told: str) -> bool:
    """JSON Schema takes 60.0 for an integer. A `ttl` of 60.0 is not one."""
    return isinstance(failure, RejectedPositiveData) and any(
        isinstance(value, float) for key, value in _members(case.body) if key in INTEGERS
    )


def booleans_count_as_integers(failure: Failure, case: Case, told: str) -> bool:
    """`true` is 1 and `false` is 0 where an integer has to be, as they always were."""
    return isinstance(failure, AcceptedNegativeData) and any(
        isinstance(value, bool) for key, value in _members(case.body) if key in INTEGERS
    )


def empty_options_are_not_set(failure: Failure, case: Case, told: str) -> bool:
    """These options are looked at if they are true; any empty value is as good as none."""
    return isinstance(failure, AcceptedNegativeData) and any(
        value is not None and not value for key, value in _members(case.body) if key in OPTIONS
    )


def any_text_is_a_list(failure: Failure, case: Case, told: str) -> bool:
    """A word is a list of one, an empty list is none at all, and a comma begins another element."""
    return isinstance(failure, AcceptedNegativeData) and "`ids` in query" in failure.message


def stale_claims_are_refused(failure: Failure, case: Case, told: str) -> bool:
    """Deleting with the id of a claim that does not hold the message is a 400."""
    return isinstance(failure, RejectedPositiveData) and "is not held by claim" in told


def queues_need_not_exist(failure: Failure, case: Case, told: str) -> bool:
    """A queue that was deleted reads like an empty one; only messages and claims are missed."""
    one = case.path_parameters.keys() & {"message_id", "claim_id"}
    return isinstance(failure, UseAfterFree) and not one


EXCUSES: tuple[Callable[[Failure, Case, str], bool], ...] = (
    either_ids_or_pop,
    delays_that_are_apart,
    integers_have_64_bits,
    integers_are_written_as_such,
    booleans_count_as_integers,
    empty_options_are_not_set,
    any_text_is_a_list,
    stale_claims_are_refused,
    queues_need_not_exist,
)


@schemathesis.hook
def filter_failure(_: Any, failure: Failure, case: Case, response: Response) -> bool:
    told = ""
    if response.content.startswith(b'{"title"'):
        told = json.loads(response.content).get("description", "")
    return not any(excuse(failure, case, told) for excuse in EXCUSES)


def _members(document: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of the members of all objects in a JSON document."""
    if isinstance(document, dict):
        yield from document.items()
        for value in document.values():
            yield from _members(value)
    elif isinstance(document, list):
        for element in document:
            yield from _members(element)
