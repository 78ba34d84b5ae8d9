"""What the clients saw: one operation a line, written down as it ends.

The history is all that the checker knows. It lives outside every file system that gets cut.
Times are seconds of `time.monotonic()`, which one machine's processes share and nobody skews.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.canaries import BODY

HEARD = "heard.jsonl"  # what receivers of notifications wrote down

OK = "ok"  # a complete 2xx answer
FAIL = "fail"  # 4xx, or refused before the first byte was sent: must have had no effect
INFO = "info"  # anything else: none, now, or at any later time

EVENTS = frozenset({"dead", "fault", "hear", "skew"})
"""What no client asked for."""

Sighting = tuple[str, str, int]
"""What an answer showed: message id, producer and number. No producer: the body was not ours."""


class Op(msgspec.Struct, omit_defaults=True):
    """One operation, or one event of the run (`EVENTS`). Unused fields stay out of the file.

    `f` is post, claim, renew, release, delete, bulk, pop, purge, list, get or stats; of subscriptions
    subscribe, waiting, failed, replay, pause, resume. A `dead` event says: nothing that was sent before
    `t1` can take effect after it. `hear` is what a receiver of notifications wrote down: when one
    came, and when and with which status it was answered (0: not at all). `skew`: the clock of the
    store was set, and is `ttl` s ahead of true time from then on.
    """

    f: str
    who: str = ""
    q: str = ""  # "project/queue"
    t0: float = 0.0  # before the first byte was sent
    t1: float = 0.0  # after the last byte was read
    out: str = INFO
    status: int = 0  # of HTTP; 0 without an answer

    p: str = ""  # post: the producer's name in this queue; new after each unknown outcome
    n: int = 0  # post: number of the first message
    size: int = 1  # post: how many
    ttl: int = 0  # s; of messages or of the claim
    grace: int = 0  # s
    delay: int = 0  # s
    limit: int = 0
    id: str = ""  # get, delete; subscribe: given; of subscriptions: used; hear: of the delivery
    to: str = ""  # of subscriptions, hear: the endpoint; each subscription has one of its own
    ids: list[str] = []  # bulk: asked for; post: given
    cid: str = ""  # claim: given; renew, release, delete: used
    walk: str = ""  # list: a walk from the beginning of the queue, marker by marker
    marker: str = ""
    every: bool = False  # list: claimed, delayed and own messages included
    final: bool = False  # after the load ended and all claims have lapsed
    got: list[Sighting] = []
    node: str = ""  # which of several was asked
    counts: tuple[int, int, int] = (0, 0, 0)
    """stats: total, claimed, free; waiting: pending, failed, delivered."""
    note: str = ""


class Run(msgspec.Struct):
    """The conditions of a run, without which its history cannot be judged."""

    seed: int
    profile: str
    nemesis: str = "none"
    slack: float = 1.0  # s; the service's times are whole seconds
    deadline: float = 10.0  # s a client waits for an answer
    heal: float = 5.0  # s after a fault until all is well again
    store: str = "sqlite"
    nodes: int = 1
    reads_ahead: bool = False  # the store shows what it may still lose
    apart: bool = False  # the store cannot move a message between two queues in one step
    dead_letters: dict[str, tuple[str, int]] = {}  # queue: its dead-letter queue, claims allowed
    settings: dict[str, str] = {}


class History:
    """Gathers operations, and appends them to `DIR/history.jsonl`.

    What breaks is never this process, so lines may wait a little before they are written.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_bytes(msgspec.json.encode(run))
        self.ops: list[Op] = []
        self.run = run
        self.folder = folder
        self._file = (folder / "history.jsonl").open("ab", buffering=1 << 18)
        self._encode = msgspec.json.Encoder().encode

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self._file.write(self._encode(op) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(folder: Path) -> tuple[Run, list[Op]]:
    """Read a kept history, and what was heard meanwhile."""
    run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
    return run, read_ops(folder / "history.jsonl") + read_ops(folder / HEARD)


def read_ops(file: Path) -> list[Op]:
    """The operations in a file; none if there is no such file."""
    if not file.exists():
        return []
    decode = msgspec.json.Decoder(Op).decode
    with file.open("rb") as lines:
        return [decode(line) for line in lines]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """A message body that tells where it belongs, who posted it, and whether it was changed."""

    run: int
    q: str
    p: str
    n: int
    pad: str
    sum: int


def make_body(run: int, q: str, p: str, n: int) -> dict[str, Any]:
    """The fields of a `Body`."""
    pad = BODY + "é·" * (n % 40)
    return {"run": run, "q": q, "p": p, "n": n, "pad": pad, "sum": _sum(run, q, p, n, pad)}


def read_body(run: int, body: object) -> tuple[str, int]:
    """(producer, number) of one of our bodies; ("", 0) if it was changed or is not ours."""
    try:
        return _read(run, msgspec.convert(body, Body))
    except msgspec.ValidationError:
        return "", 0


def read_encoded(run: int, body: bytes | msgspec.Raw) -> tuple[str, int]:
    """The same of a body that is still JSON."""
    try:
        return _read(run, _decode_body(body))
    except msgspec.DecodeError:
        return "", 0


_decode_body = msgspec.json.Decoder(Body).decode


def _read(run: int, body: Body) -> tuple[str, int]:
    right = body.run == run and body.sum == _sum(run, body.q, body.p, body.n, body.pad)
    return (body.p, body.n) if right else ("", 0)


def _sum(run: int, q: str, p: str, n: int, pad: str) -> int:
    return zlib.crc32(f"{run} {q} {p} {n} {pad}".encode())
