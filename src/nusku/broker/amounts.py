"""What of a project quotas limit, and how much of each."""

from typing import NamedTuple, Self

NO_LIMIT = 1 << 62


class Amounts(NamedTuple):
    """How much of each: queues and topics together, their messages, the bytes of the bodies of
    these as they are stored, and subscriptions.
    """

    queues: int = 0
    messages: int = 0
    bytes: int = 0
    subscriptions: int = 0

    def plus(self, other: Self) -> "Amounts":
        return Amounts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Self) -> "Amounts":
        return Amounts(*(a - b for a, b in zip(self, other, strict=True)))

    def least(self, other: Self) -> "Amounts":
        """The smaller one of each."""
        return Amounts(*map(min, self, other))

    def most(self, other: Self) -> "Amounts":
        """The greater one of each."""
        return Amounts(*map(max, self, other))

    def covers(self, wanted: Self) -> bool:
        """Whether there is enough of all that is wanted. Of the rest there may be less than none."""
        return all(not n or n <= there for n, there in zip(wanted, self, strict=True))


NOTHING = Amounts()


class Measured(NamedTuple):
    """What a project has, or no less than that if it is not ``exact``. What has no limit is not
    counted.
    """

    amounts: Amounts
    exact: bool
