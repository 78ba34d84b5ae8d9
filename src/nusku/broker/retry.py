"""When a delivery that failed is tried again (contract notifications.md section 6, and the
policy row of "Our delivery rules" in contract/README.md).

Nothing here makes a list of delays: each is computed when it is asked for, so a policy with large
numbers costs no more than one with small ones.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

TRIES_MAX = 100
"""The first try and the retries of one delivery together, whatever a policy says."""

# Without a policy: twice as long each time from 5 seconds to 6 hours, the last try 27 hours after
# the first. An endpoint that is down over night, or over a holiday's first day, misses nothing.
SHORTEST_S, LONGEST_S, WHOLE_S = 5, 21_600, 97_200
_JITTER = 0.1
_STEP_S = 5


def _own_curve() -> tuple[int, ...]:
    delays: list[int] = []
    while (left := WHOLE_S - sum(delays)) > 0:
        delays.append(min(SHORTEST_S << len(delays), LONGEST_S, left))
    return tuple(delays)


OWN_CURVE_S = _own_curve()


class Policy(msgspec.Struct, frozen=True):
    """A `_retry_policy`; what is missing in it has these defaults. Delays in seconds."""

    retries_with_no_delay: int = 3
    minimum_delay_retries: int = 3
    minimum_delay: int = 5
    maximum_delay: int = 30
    maximum_delay_retries: int = 3
    retry_backoff_function: str = "linear"

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Policy":
        """From a document that :func:`nusku.broker.rules.retry_policy` has let pass."""
        return cls(
            **{
                name: document[name]
                for name in cls.__struct_fields__
                if document.get(name) is not None
            }
        )


def choose(subscription: Any, queue: Any) -> Policy | None:
    """Which policy counts, of the two `_retry_policy` as they are stored; None: our own curve.

    The subscription's unless it is empty, missing or overridden, then the queue's. An empty object
    says "the defaults" where it is the queue's, and nothing at all where it is the subscription's.
    Where ``ignore_subscription_override`` is set, by either, the subscription's does not count;
    if the queue has none then, the defaults do, because somebody did ask for a policy.
    """
    asked = subscription if isinstance(subscription, Mapping) else {}
    set_on_queue = queue if isinstance(queue, Mapping) else None
    for policy in (asked, set_on_queue or {}):
        if policy.get("ignore_subscription_override"):
            return Policy.of(set_on_queue or {})
    if asked:
        return Policy.of(asked)
    return None if set_on_queue is None else Policy.of(set_on_queue)


def delays(policy: Policy | None, jitter: Callable[[], float]) -> Callable[[int], float | None]:
    """A function from the number of a retry, 1 for the first, to the seconds to wait before it;
    None when there are no more.

    ``jitter`` gives numbers from 0 to 1. It moves the delays of our own curve a little, lest all
    that failed at one moment come back at one moment; those of a policy are exact.
    """

    def wait_s(number: int) -> float | None:
        if number >= TRIES_MAX:
            return None
        if policy is not None:
            return _by_policy(policy, number - 1)
        if number > len(OWN_CURVE_S):
            return None
        delay = OWN_CURVE_S[number - 1] * (1 + _JITTER * (2 * jitter() - 1))
        return min(max(delay, SHORTEST_S), LONGEST_S)

    return wait_s


def longest(policy: Policy | None) -> int:
    """The longest delay, in seconds: as far as a receiver's `Retry-After` is followed."""
    return LONGEST_S if policy is None else policy.maximum_delay


def _by_policy(policy: Policy, index: int) -> float | None:
    """The delay at an index, 0 for the first retry: its four phases one after the other."""
    phases: tuple[tuple[int, Callable[[int], int]], ...] = (
        (policy.retries_with_no_delay, lambda _: 0),
        (policy.minimum_delay_retries, lambda _: policy.minimum_delay),
        (_backoff_count(policy), lambda at: _backoff(policy, at)),
        (policy.maximum_delay_retries, lambda _: policy.maximum_delay),
    )
    for count, delay in phases:
        if index < count:
            return float(delay(index))
        index -= count
    return None


def _backoff_count(policy: Policy) -> int:
    span = policy.maximum_delay - policy.minimum_delay
    if policy.retry_backoff_function == "linear":
        return max(-(-span // _STEP_S), 0)
    return max(span // _STEP_S, 0)


def _backoff(policy: Policy, at: int) -> int:
    """The value at an index of the back-off list, 0 for the first, cut down to whole seconds."""
    least, most = policy.minimum_delay, policy.maximum_delay
    last = max(_backoff_count(policy) - 1, 1)
    match policy.retry_backoff_function:
        case "linear":
            return least + at * _STEP_S
        case "arithmetic":
            return least + at * (at + 1) * (most - least) // (last * (last + 1))
        case function:
            least = max(least, 1)
            ratio = 10 ** (math.log10(most / least) / last)
            # Equal but for rounding, which decides about a second where the value is a whole one.
            if function == "geometric":
                return int(least * ratio**at)
            return int(least / ratio * ratio ** (at + 1))
