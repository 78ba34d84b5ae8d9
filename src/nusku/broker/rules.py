"""The limits: pure functions that raise :class:`nusku.errors.Invalid` and say what is allowed."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nusku.broker import grants
from nusku.config import Settings
from nusku.errors import Invalid, InvalidQueueName, InvalidTopicName
from nusku.model import PROJECT_MAX, QueueKey

_NAME_MAX = 64
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{_NAME_MAX}}}")
PAGE_DEFAULT = 10
ENCRYPT = "_enable_encrypt_messages"  # in metadata: whether bodies are encrypted at rest

# The least and the most that a retry policy may say. No delivery is tried more than a hundred times
# (broker/retry.py), so larger counts mean nothing; a delay of more than a day would keep what is
# pending around for months.
_RETRIES, _DAY_S = 10_000, 86_400
RETRY_NUMBERS = {
    "retries_with_no_delay": (0, _RETRIES, ""),
    "minimum_delay_retries": (0, _RETRIES, ""),
    "minimum_delay": (1, _DAY_S, " s"),
    "maximum_delay": (0, _DAY_S, " s"),
    "maximum_delay_retries": (0, _RETRIES, ""),
}
RETRY_FUNCTIONS = ("linear", "arithmetic", "geometric", "exponential")


def legal_name(name: str) -> bool:
    """1 to 64 of ``A-Za-z0-9_-.``; ``.`` and ``..`` could not be addressed by most clients."""
    return len(name) <= _NAME_MAX and _is_legal(name)


@lru_cache(maxsize=4096)
def _is_legal(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def legal_key(key: QueueKey) -> bool:
    """Whether there can be such a queue or topic."""
    return legal_name(key.name) and len(key.project) <= PROJECT_MAX


def check_key(key: QueueKey) -> None:
    """Raise InvalidQueueName or InvalidTopicName unless there can be such a one."""
    if not legal_key(key):
        refused = InvalidTopicName if key.kind == "topic" else InvalidQueueName
        raise refused(
            f"The name of a {key.kind} has 1 to {_NAME_MAX} letters, digits, underscores, hyphens and"
            f" dots; that of a project at most {PROJECT_MAX} characters."
        )


def in_range(what: str, value: int, least: int, most: int, unit: str = "") -> int:
    """The value, if it is one that is allowed."""
    if not least <= value <= most:
        raise Invalid(f"{what} is {value}{unit}; it must be from {least} to {most}{unit}.")
    return value


def metadata(data: Mapping[str, Any], settings: Settings) -> None:
    """The reserved keys of a queue or topic (contract http-v2.md section 3.1). Null is allowed."""
    ttls = (settings.min_message_ttl, settings.max_message_ttl)
    for key, (least, most) in {
        "_max_messages_post_size": (1, settings.max_messages_post_size),
        "_default_message_ttl": ttls,
        "_default_message_delay": (0, settings.max_message_delay),
        "_dead_letter_queue_messages_ttl": ttls,
        "_max_claim_count": (-(1 << 63), (1 << 63) - 1),
    }.items():
        value = data.get(key)
        if value is not None:
            if not isinstance(value, int):
                raise Invalid(f"{key} must be an integer.")
            in_range(key, int(value), least, most)
    target = data.get("_dead_letter_queue")
    if target is not None and not (isinstance(target, str) and legal_name(target)):
        raise Invalid("_dead_letter_queue must be the name of a queue.")
    encrypt = data.get(ENCRYPT)
    if encrypt and not isinstance(encrypt, bool):
        raise Invalid(f"{ENCRYPT} must be a boolean.")
    grants.read(data)
    policy = data.get("_retry_policy")
    if policy:
        if not isinstance(policy, dict):
            raise Invalid("_retry_policy must be an object.")
        retry_policy(policy)


def retry_policy(policy: Mapping[str, Any]) -> None:
    """The members that are known; others are ignored, and null counts as absent."""
    for key, (least, most, unit) in RETRY_NUMBERS.items():
        value = policy.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(f"_retry_policy: {key} must be an integer.")
        in_range(f"_retry_policy: {key}", value, least, most, unit)
    function = policy.get("retry_backoff_function")
    if function is not None and function not in RETRY_FUNCTIONS:
        raise Invalid(
            f"_retry_policy: retry_backoff_function must be one of {', '.join(RETRY_FUNCTIONS)}."
        )
    override = policy.get("ignore_subscription_override")
    if override is not None and not isinstance(override, bool):
        raise Invalid("_retry_policy: ignore_subscription_override must be a boolean.")
    given = {key: value for key, value in policy.items() if value is not None}
    shortest, longest = given.get("minimum_delay", 5), given.get("maximum_delay", 30)
    if longest - shortest < 10:
        raise Invalid(
            "_retry_policy: maximum_delay must exceed minimum_delay by at least 10 seconds"
            f" (they are {longest} and {shortest})."
        )
