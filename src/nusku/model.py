"""What the parts of nusku hand to one another: frozen records without behaviour.

Times are integers: ``…_ms`` milliseconds since the epoch, ``…_s`` seconds.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

PROJECT_MAX = 256  # characters of a project's name

# Queues and topics are the service's; on the others it tells itself what to tell subscribers.
Kind = Literal["queue", "topic", "notice", "delivery", "failed"]


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks, as it was proved: by a token, a key or a signature, which ``scheme`` names.

    ``project`` is empty where the proof is for none. Names and domains are for policies and logs,
    and empty where the proof does not tell. A proof is void from ``expires_s`` on, in seconds since
    the epoch.
    """

    project: str
    roles: frozenset[str]
    scheme: str
    user: str = ""
    user_name: str = ""
    user_domain: str = ""
    project_name: str = ""
    project_domain: str = ""
    domain: str = ""
    system: str = ""
    is_admin_project: bool = False
    expires_s: float = math.inf


class Context(msgspec.Struct, frozen=True, gc=False):
    """Who asks for what: made by ``auth`` from a request, the same for every transport.

    ``user`` and ``token`` are empty where nobody logs in; ``caller`` is None where everybody is
    believed. ``project`` is the one that is acted on, which by a ``grant`` may be another's.
    """

    project: str
    client: str
    roles: frozenset[str]
    user: str = ""
    token: str = ""
    caller: Caller | None = None
    grant: "Granted | None" = None

    def __repr__(self) -> str:
        """Without the token."""
        return f"Context({self.project!r}, {self.client!r}, {sorted(self.roles)})"


class QueueKey(NamedTuple):
    """The name of a queue or topic, or of an internal queue: each kind is a namespace of its own."""

    kind: Kind
    project: str
    name: str


def home(key: QueueKey) -> str:
    """What queues that are written in one step have in common, beside their project.

    A notice lives beside the queue that it speaks of, whose kind and name are its name; what a
    subscription is to be told beside what it could not be told; and what is still on its way into a
    queue (``import/…``) beside that. A store that spreads queues over
    several machines keeps those of one home together.
    """
    match key.kind:
        case "notice":
            return key.name
        case "delivery" | "failed":
            return f"subscription/{key.name}"
        case kind:
            return f"{kind}/{key.name.removeprefix('import/')}"


class Granted(NamedTuple):
    """The one operation on the one queue that somebody of ``project`` may do, whatever the policy."""

    action: str
    key: QueueKey
    project: str


class QueueRef(NamedTuple):
    """A queue as its caller last read it.

    ``generation`` is new each time the queue is created, ``version`` grows with each change of
    its options. A store refuses writes that carry an outdated pair, so that no node acts on
    options which another has already replaced.
    """

    key: QueueKey
    generation: str
    version: int


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A message about to be stored. ``body`` is opaque to stores.

    One that was posted to another queue before keeps its ``posted_ms`` (0: now) and ``count``.
    """

    body: bytes
    ttl_s: int
    delay_s: int = 0
    client: str = ""
    dedup: str | None = None
    attributes: bytes | None = None
    posted_ms: int = 0
    count: int = 0


class Message(msgspec.Struct, frozen=True, gc=False):
    """A stored message, as it was at the time the operation read the store's clock.

    ``claim`` is the id of the live claim that holds it, else None; ``count`` how often it was
    claimed while claims were counted.
    """

    position: int
    posted_ms: int
    ttl_s: int
    expires_ms: int
    count: int
    client: str
    body: bytes
    claim: str | None = None
    attributes: bytes | None = None


class Found(NamedTuple):
    """Messages in queue order. ``due_ms``: no hidden one becomes visible before."""

    messages: Sequence[Message]
    now_ms: int
    due_ms: int | None = None


class Claimed(NamedTuple):
    """What a claim got. ``claim`` is None when it got nothing.

    ``spent`` are the positions, oldest first, that were free but had been claimed as often as
    the caller allows; they are left where they are. ``due_ms`` as in :class:`Found`.
    """

    claim: str | None
    messages: Sequence[Message]
    spent: Sequence[int]
    now_ms: int
    due_ms: int | None = None


class Claim(NamedTuple):
    """A live claim and what it still holds, in queue order."""

    id: str
    ttl_s: int
    started_ms: int
    messages: Sequence[Message]
    now_ms: int


class Counts(NamedTuple):
    """Exact numbers of live messages. ``delayed`` ones are not counted in ``free``."""

    free: int
    held: int
    delayed: int
    oldest: Message | None
    newest: Message | None
    now_ms: int

    @property
    def total(self) -> int:
        return self.free + self.held + self.delayed


class Occupied(NamedTuple):
    """A queue that holds messages, how many, and when the oldest of them was posted."""

    key: QueueKey
    messages: int
    oldest_ms: int


class Weight(NamedTuple):
    """Live messages, and the bytes of their bodies, up to the position ``through``."""

    messages: int
    bytes: int
    through: int


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A live message with all that a store keeps of it, so that another can keep it in its place.

    ``hidden_ms`` is when its claim or delay ends, 0 for a free one; ``claim`` is the id of the
    claim, which then has ``claim_ttl_s`` and ``claim_started_ms``. A body never changes, so two
    that were dumped without theirs (``body`` is None) are equal if the messages are.
    """

    position: int
    posted_ms: int
    ttl_s: int
    expires_ms: int
    count: int
    client: str
    body: bytes | None
    attributes: bytes | None = None
    dedup: str | None = None
    hidden_ms: int = 0
    claim: str | None = None
    claim_ttl_s: int = 0
    claim_started_ms: int = 0


class Holding(NamedTuple):
    """A queue as a store holds it: ``next_position`` is the one that its next message gets."""

    ref: QueueRef
    next_position: int
    messages: int
    sealed: bool
    now_ms: int


class Record(msgspec.Struct, frozen=True):
    """A small document of the control plane. ``version`` grows by 1 with each update.

    ``parent`` groups records of a kind, ``unique`` is a name that no two live ones of a kind and
    project share. A record that has ended is there no more, but for those who ask for the ended
    ones. ``created_ms``, ``ends_ms`` and ``read_ms`` (when it was read) are the store's to say.
    """

    kind: str
    project: str
    key: str
    doc: bytes
    version: int = 1
    parent: str = ""
    unique: str | None = None
    created_ms: int = 0
    ends_ms: int | None = None
    read_ms: int = 0
