"""What becomes of every message. At the end each must have come to one of its ends, and been counted."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from benchmarks.messages import FIRST_NUMBER

FAULTS_KEPT = 100
CLAIMS_MAX = 3
"""`_max_claim_count` of the queue of jobs: the next time a message goes to the dead letters."""


class Fate(Enum):
    """What is meant to become of a message; the value is the word for it in counts and faults."""

    DONE = "done"
    """A job: claimed, then deleted."""
    LEFT = "left"
    """A job whose first worker is never heard of again: the claim lapses, the next one deletes it."""
    BAD = "bad"
    """A job that each worker gives back, until it is a dead letter."""
    BRIEF = "brief"
    """Left to expire."""
    NEWS = "news"
    """Told to a subscriber, read by marker, then deleted."""


@dataclass(slots=True)
class Account:
    """A message that has come to no end yet."""

    fate: Fate
    sent: float
    """When its post was due (perf_counter seconds)."""
    acknowledged: bool = False
    handed_out: int = 0
    """By claims, or to the reader."""
    dead: bool = False
    """Whether it was handed out as a dead letter."""
    doubt: str = ""
    """The operation on it whose outcome nobody learned."""


@dataclass(slots=True)
class Accounts:
    """Every message that was posted, by its number. What must not be is noted in `faults`."""

    open: dict[int, Account] = field(default_factory=dict)
    untold: dict[int, float] = field(default_factory=dict)
    """News that the subscriber has not heard of, and when their posts were due."""
    posted: Counter[Fate] = field(default_factory=Counter)
    """Acknowledged posts."""
    handed_out: int = 0
    read: int = 0
    """Those of them that went to the reader."""
    deleted: int = 0
    expired: int = 0
    dead_lettered: int = 0
    """Those that were deleted as dead letters; not among `deleted`."""
    told: int = 0
    told_again: int = 0
    doubtful: int = 0
    """Those of whose end nobody learned, as an operation on them got no answer."""
    lost: int = 0
    lost_claims: int = 0
    """Claims without an answer: they may hold messages, and count for the dead letters."""
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)
    """The first of them."""
    _next: int = FIRST_NUMBER

    def fault(self, text: str) -> None:
        """Note what must not be."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(text)

    # ---- one message

    def begin(self, fate: Fate, sent: float) -> int:
        """The number of a message that is about to be posted."""
        number = self._next
        self._next += 1
        self.open[number] = Account(fate, sent)
        if fate is Fate.NEWS:
            self.untold[number] = sent
        return number

    def acknowledge(self, number: int) -> None:
        """Its post was answered with success. It may have been deleted before we knew."""
        if (account := self.open.get(number)) is not None:
            account.acknowledged = True

    def refuse(self, number: int) -> None:
        """Its post was refused: it was never there."""
        del self.open[number]
        self.untold.pop(number, None)

    def doubt(self, number: int, operation: str) -> None:
        """An operation on it got no answer: it may have happened."""
        if (account := self.open.get(number)) is not None:
            account.doubt = operation

    def hand_out(self, number: int, place: str, *, dead: bool = False) -> Account | None:
        """A claim or the reader got it; None if that must not be."""
        account = self._find(number, place)
        if account is None:
            return None
        self.handed_out += 1
        self.read += account.fate is Fate.NEWS
        if dead:
            account.dead = True
            if account.handed_out < CLAIMS_MAX and not self.lost_claims:
                self.fault(
                    f"message {number} ({account.fate.value}) is a dead letter after {account.handed_out} claims"
                )
        else:
            account.handed_out += 1
            if account.handed_out > CLAIMS_MAX:
                self.fault(f"message {number} was handed out {account.handed_out} times")
        return account

    def delete(self, number: int) -> None:
        """It was deleted, and is at its end."""
        account = self._find(number, "a deletion")
        if account is not None:
            self._end(number)
            if account.dead:
                self.dead_lettered += 1
            else:
                self.deleted += 1

    def expire(self, number: int) -> None:
        """It was there before its time was over, and is not there after it."""
        if self._find(number, "its expiry") is not None:
            self._end(number)
            self.expired += 1

    def hear(self, number: int) -> float | None:
        """The subscriber was told of it; when its post was due, the first time."""
        if not FIRST_NUMBER <= number < self._next:
            self.fault(f"a notification of message {number}, which was never posted")
            return None
        sent = self.untold.pop(number, None)
        if sent is None:
            self.told_again += 1
        else:
            self.told += 1
        return sent

    def _end(self, number: int) -> None:
        account = self.open.pop(number)
        self.posted[account.fate] += 1  # it was there, whatever was answered to its post

    def _find(self, number: int, place: str) -> Account | None:
        account = self.open.get(number)
        if account is None:
            posted = FIRST_NUMBER <= number < self._next
            what = "came back after its end" if posted else "was never posted"
            self.fault(f"message {number} {what}: seen by {place}")
        return account

    # ---- all of them

    @property
    def even(self) -> bool:
        """Whether nothing is left to come."""
        return not self.open and not self.untold

    @property
    def certain(self) -> bool:
        """Whether every operation was answered, so that nobody can have counted otherwise."""
        return not self.doubtful and not self.lost_claims

    def close(self) -> None:
        """What has come to no end now is lost, or in doubt."""
        for number, account in self.open.items():
            if account.acknowledged:
                self.posted[account.fate] += 1
            if account.doubt or not account.acknowledged:
                self.doubtful += 1
            else:
                self.lost += 1
                self.fault(
                    f"message {number} ({account.fate.value}) is lost: acknowledged, handed out {account.handed_out} times"
                )
        for number in self.untold:
            post = self.open.get(number)
            if post is None or (post.acknowledged and not post.doubt):
                self.fault(f"the subscriber was not told of message {number}")
        self.open = {}

    def counts(self) -> dict[str, int]:
        """How many came to which end until now, and how many to none."""
        return {
            "posted": sum(self.posted.values()) + sum(a.acknowledged for a in self.open.values()),
            "handed out": self.handed_out,
            "deleted": self.deleted,
            "expired": self.expired,
            "dead-lettered": self.dead_lettered,
            "told": self.told,
            "told again": self.told_again,
            "open": len(self.open),
            "untold": len(self.untold),
            "in doubt": self.doubtful,
            "lost": self.lost,
            "faults": self.fault_count,
        }

    def as_the_server_counts(self) -> dict[str, int]:
        """The same by the names of its metrics."""
        return {
            "posted": sum(self.posted.values()),
            "claimed": self.handed_out - self.read,
            "deleted": self.deleted + self.dead_lettered,
            "dead_lettered": self.dead_lettered,
            "expired": self.expired,
        }
