"""What schemathesis is told about nusku: how to send a patch, what leads where, who may be
subscribed, and which of its expectations the API disappoints on purpose.

Loaded by the run in test_api.py. Each of the functions in `EXCUSES` names something that the API
has to do and that its document cannot express.
"""

import json
import re
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
    "weight",
    "redis_replicas",
    "store_connections",
    *RETRY_NUMBERS,
}
QUEUE_DELETED = re.compile(r"DELETE /v2/(queues|topics)/[^/]+")
SECONDS_IN_8000_YEARS = 250_000_000_000
OPTIONS = {"_enable_encrypt_messages", "_retry_policy"}

POOLS = [f"sqlite:///pool-{n}.db" for n in range(4)]

SUBSCRIBERS = [f"http://127.0.0.1:1/{path}" for path in ("a", "b?c=d", "%20")]

schemathesis.serializer.alias(PATCH_TYPE, "application/json")


@schemathesis.deserializer("application/json-home")
def json_home(_: Any, response: Response) -> Any:
    return json.loads(response.content)


@schemathesis.hook
def before_load_schema(_: Any, raw_schema: dict[str, Any]) -> None:
    follow_claims(raw_schema)
    subscribe_nobody_else(raw_schema)
    use_files_for_pools(raw_schema)
    use_ones_own_queues(raw_schema)


def follow_claims(raw_schema: dict[str, Any]) -> None:
    """By their Location, which takes an expression that OpenAPI does not have."""
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


def subscribe_nobody_else(raw_schema: dict[str, Any]) -> None:
    """Tell nobody but this machine, where nobody listens."""
    for name in ("SubscriptionDraft", "SubscriptionChange"):
        shape = raw_schema["components"]["schemas"][name]["properties"]
        null = [None] if "null" in shape["subscriber"]["type"] else []
        shape["subscriber"] = {"enum": [*SUBSCRIBERS, *null]}


def use_files_for_pools(raw_schema: dict[str, Any]) -> None:
    """A pool is connected to before it is added, so any URI will not do."""
    for name in ("PoolDraft", "PoolChange"):
        shape = raw_schema["components"]["schemas"][name]["properties"]
        shape["uri"] = {"enum": POOLS}


def use_ones_own_queues(raw_schema: dict[str, Any]) -> None:
    """Those of a project that was made up are granted to nobody."""
    for path in raw_schema["paths"].values():
        path["parameters"] = [
            one
            for one in path.get("parameters", [])
            if one.get("$ref") != "#/components/parameters/QueueProjectId"
        ]


@schemathesis.hook
def before_call(_: Any, case: Case, kwargs: dict[str, Any]) -> None:
    """Don't sit through long polls; how long they take is tested elsewhere."""
    wait = case.query.get("wait")
    if type(wait) is int and 0 < wait <= 20:
        case.query["wait"] = 0


def either_ids_or_pop(failure: Failure, case: Case, told: str) -> bool:
    """Deleting several messages takes one of two parameters, and not both."""
    return isinstance(failure, RejectedPositiveData) and told == "Give either ids or pop."


def pools_of_flavors_exist(failure: Failure, case: Case, told: str) -> bool:
    """A flavor is made of pools that were added before."""
    return isinstance(failure, RejectedPositiveData) and told.endswith(" does not exist")


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


def subscriptions_end_with_the_calendar(failure: Failure, case: Case, told: str) -> bool:
    """Before the year 10000. How many seconds that are is another number every second."""
    return isinstance(failure, RejectedPositiveData) and any(
        isinstance(value, int) and value > SECONDS_IN_8000_YEARS
        for key, value in _members(case.body)
        if key == "ttl"
    )


def some_options_are_forbidden(failure: Failure, case: Case, told: str) -> bool:
    """Headers that are not the subscriber's to set, or twice the same one; senders that are none."""
    return isinstance(failure, RejectedPositiveData) and (
        told.startswith(("options: from ", "options: post_headers may not set "))
        or (told.startswith("options: post_headers has ") and "more than once" in told)
    )


def secrets_that_there_are_not(failure: Failure, case: Case, told: str) -> bool:
    """Keeping the secrets of a subscription takes some that can be kept."""
    return isinstance(failure, RejectedPositiveData) and told.startswith("_signing: there is no")


def signatures_end_soon(failure: Failure, case: Case, told: str) -> bool:
    """A share expires in the future, and not too late: what that is, is different every second."""
    return isinstance(failure, RejectedPositiveData) and told.startswith("expires must be ")


def any_text_is_a_list(failure: Failure, case: Case, told: str) -> bool:
    """A word is a list of one, an empty list is none at all, and a comma begins another element."""
    return isinstance(failure, AcceptedNegativeData) and "`ids` in query" in failure.message


def stale_claims_are_refused(failure: Failure, case: Case, told: str) -> bool:
    """Deleting with the id of a claim that does not hold the message is a 400."""
    return isinstance(failure, RejectedPositiveData) and "is not held by claim" in told


def queues_need_not_exist(failure: Failure, case: Case, told: str) -> bool:
    """A queue that was deleted reads like an empty one; only messages and claims are missed.

    Subscriptions outlive it.
    """
    if not isinstance(failure, UseAfterFree):
        return False
    if "subscription_id" in case.path_parameters:
        return QUEUE_DELETED.fullmatch(failure.free) is not None
    return not case.path_parameters.keys() & {"message_id", "claim_id"}


EXCUSES: tuple[Callable[[Failure, Case, str], bool], ...] = (
    either_ids_or_pop,
    delays_that_are_apart,
    integers_have_64_bits,
    integers_are_written_as_such,
    booleans_count_as_integers,
    empty_options_are_not_set,
    subscriptions_end_with_the_calendar,
    some_options_are_forbidden,
    secrets_that_there_are_not,
    signatures_end_soon,
    any_text_is_a_list,
    stale_claims_are_refused,
    queues_need_not_exist,
    pools_of_flavors_exist,
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
