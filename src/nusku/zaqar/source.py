"""What a running Zaqar shows of itself: its v2 API, read and never written to.

Zaqar answers in ways that clients do not expect, and they differ between its stores (contract
http-v2.md section 14). What is put up with here was seen on Zaqar 23 over Redis:

* Claimed messages cannot be listed from the beginning (503), only behind a marker, of any kind.
* A marker whose queue or message is gone leads back to the beginning, and so does a message that
  has become the first of its queue: the list of a queue with one message has no end.
* A page of which all messages have expired is empty, as the last page is.
* When a claim was not released and its time is over, its messages go on naming it, while it cannot
  be read (503), nor can the statistics of the queue.
* Names of queues are cut at a dot where they are listed.
* Topics cannot be listed (503); where they can, their messages cannot (500).
* ``NaN``, or half a surrogate pair, may be in a body.
"""

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import aiohttp
import msgspec

T = TypeVar("T")

Kind = Literal["queue", "topic"]

PAGE = 20  # the most that Zaqar gives at once, unless it was told otherwise
AT_ONCE = 4  # requests under way
TIMEOUT_S = 30.0
PATIENCE_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # pauses before a read is tried again
BRIEFLY_S = (0.2, 1.0)  # the same where failure is to be expected
CLAIM_PATIENCE_S = (0.2,)
RETRY_AFTER_MAX_S = 60.0
AWAY = frozenset({429, 502, 503, 504})
LONGEST_CLAIM_S = 43_200  # unless Zaqar was told otherwise
ANSWER_BYTES_MAX = 1 << 28


class ZaqarError(Exception):
    """Zaqar cannot be read; the text is for the operator."""


class NotShown(ZaqarError):
    """There is no such thing on this Zaqar, or it does not show it to us."""


class Away(ZaqarError):
    """It did not answer, or said that it cannot answer now."""


class Queue(msgspec.Struct, frozen=True):
    """A queue or topic as it is listed, with the defaults among its metadata."""

    name: str
    metadata: dict[str, Any] = {}


class Listing(NamedTuple):
    """All queues or topics, and names that were listed twice on one page: more than one is meant,
    and not all of them have that name.
    """

    queues: Sequence[Queue]
    twice: Sequence[str]


class Message(NamedTuple):
    """A message as it was shown at ``seen_s``, on the clock of the event loop.

    ``left_s`` is how long it lived from then on; ``unsure``: that was not to be known. ``mended``:
    the body held what JSON has not, in whose place there is null.
    """

    id: str
    body: bytes
    ttl_s: int
    age_s: int
    left_s: int
    claimed: bool
    seen_s: float
    unsure: bool = False
    mended: bool = False


class Page(NamedTuple):
    """Messages in their order, and the marker behind them."""

    messages: Sequence[Message]
    marker: str


class Subscription(msgspec.Struct, frozen=True):
    """A subscription as it is listed. One without ``confirmed`` counts as confirmed."""

    id: str
    subscriber: str
    ttl: int
    age: int
    options: dict[str, Any] | None = None
    confirmed: bool = True


class Pool(msgspec.Struct, frozen=True):
    """A pool as it is listed, with details."""

    name: str
    uri: str
    weight: int
    flavor: str | None = None
    options: dict[str, Any] | None = None


class Flavor(msgspec.Struct, frozen=True):
    """A flavor as it is listed."""

    name: str
    pool_list: list[str] = []


class _Link(msgspec.Struct):
    href: str


class _Message(msgspec.Struct):
    id: str
    ttl: int
    age: int
    href: str = ""
    body: msgspec.Raw = msgspec.Raw(b"null")
    mended: bool = False


class _Messages(msgspec.Struct):
    messages: list[_Message]
    links: list[_Link]

    @property
    def marker(self) -> str:
        """The one behind these; empty where nothing follows."""
        for link in self.links:
            return parse_qs(urlsplit(link.href).query).get("marker", [""])[-1]
        return ""


class _Claim(msgspec.Struct):
    ttl: int
    age: int


class _Queues(msgspec.Struct):
    queues: list[Queue]


class _Topics(msgspec.Struct):
    topics: list[Queue]


class _Subscriptions(msgspec.Struct):
    subscriptions: list[Subscription]


class _Pools(msgspec.Struct):
    pools: list[Pool]


class _Flavors(msgspec.Struct):
    flavors: list[Flavor]


class _Total(msgspec.Struct):
    total: int = 0


class _Stats(msgspec.Struct):
    messages: _Total


class Source:
    """One project of a Zaqar. ``pause`` waits so many seconds before a read is tried again."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        headers: Mapping[str, str],
        gate: asyncio.Semaphore,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._headers = {"Client-ID": str(uuid.uuid4()), "Accept": "application/json", **headers}
        self._gate = gate
        self._pause = pause
        self._only_behind_markers = False  # claimed messages, that is

    async def check(self) -> None:
        """Raise ZaqarError unless this is the v2 API, and it lets us in."""
        try:
            await self._get("/v2/queues?limit=1", _Queues, BRIEFLY_S)
        except NotShown as error:
            raise ZaqarError(f"{self._url} is not a Zaqar with the v2 API: {error}") from None

    # What there is

    async def queues(self, kind: Kind) -> "Listing":
        """All queues or topics. Raises NotShown or Away for topics that cannot be listed."""
        if kind == "queue":
            pages = self._pages("/v2/queues?detailed=true", _Queues, lambda p: _named(p.queues))
        else:
            pages = self._pages(
                "/v2/topics?detailed=true", _Topics, lambda p: _named(p.topics), BRIEFLY_S
            )
        found: dict[str, Queue] = {}
        twice: set[str] = set()
        async for page in pages:
            names = [queue.name for queue in page]
            twice.update(name for name in names if names.count(name) > 1)
            found.update((queue.name, queue) for queue in page)
        return Listing(list(found.values()), sorted(twice))

    async def subscriptions(self, kind: Kind, name: str) -> AsyncIterator[Sequence[Subscription]]:
        """All of a queue or topic; one may come more than once. Raises NotShown, for topics."""
        path = f"{_path(kind, name)}/subscriptions?"
        async for page in self._pages(
            path, _Subscriptions, lambda page: [(s.id, s) for s in page.subscriptions]
        ):
            yield page

    def pools(self) -> AsyncIterator[Sequence[Pool]]:
        """Those of the whole service; one may come more than once. Raises NotShown, mostly."""
        return self._pages("/v2/pools?detailed=true", _Pools, lambda p: _named(p.pools))

    def flavors(self) -> AsyncIterator[Sequence[Flavor]]:
        """Those of the project; one may come more than once. Raises NotShown, mostly."""
        return self._pages("/v2/flavors?detailed=true", _Flavors, lambda p: _named(p.flavors))

    async def _pages(
        self,
        path: str,
        type_: type[T],
        items: Callable[[T], Sequence[tuple[str, Any]]],
        patience_s: Sequence[float] = PATIENCE_S,
    ) -> AsyncIterator[Sequence[Any]]:
        """Page by page, to the first empty one, from pairs of a marker and an item.

        Where a marker leads back to what was seen already, those before it are tried: one of them
        leads on.
        """
        seen: set[str] = set()
        markers = [""]
        while markers:
            marker = markers.pop()
            query = {"limit": PAGE} | ({"marker": marker} if marker else {})
            separator = "" if path.endswith("?") else "&"
            page = items(await self._get(f"{path}{separator}{urlencode(query)}", type_, patience_s))
            if not page:
                return
            if not seen.issuperset(found for found, _ in page):
                markers = [found for found, _ in page]
                seen.update(markers)
            yield [item for _, item in page]

    async def is_cut(self, queue: Queue) -> bool:
        """Whether no queue has this name, although it is listed; or one that has nothing in it.

        As a marker such a name means nothing, so that the list begins at the beginning. So it does
        behind the first of all, which can only be told by what its metadata say.
        """
        query = urlencode({"limit": 1, "marker": queue.name})
        page = (await self._get(f"/v2/queues?{query}", _Queues)).queues
        if not page or page[0].name != queue.name:
            return bool(page) and page[0].name < queue.name
        return queue.metadata == await self.metadata("queue", str(uuid.uuid4()))

    async def metadata(self, kind: Kind, name: str) -> dict[str, Any]:
        """Those of one queue or topic, with the defaults; those alone if there is none."""
        return await self._get(_path(kind, name), dict[str, Any])

    async def total(self, kind: Kind, name: str) -> int | None:
        """How many messages there are by the statistics, which may count expired ones; None when
        there are no statistics.
        """
        try:
            stats = await self._get(f"{_path(kind, name)}/stats", _Stats, BRIEFLY_S)
        except (NotShown, Away):
            return None
        return stats.messages.total

    # Messages

    async def messages(self, kind: Kind, name: str, marker: str = "") -> AsyncIterator[Page]:
        """All behind a marker in their order, claimed and delayed ones too.

        One may come more than once. Raises NotShown, for topics.
        """
        path = f"{_path(kind, name)}/messages"
        seen: set[str] = set()
        pages = idle = 0  # how many there were, and how many since the last with something new
        while True:
            asked_s = asyncio.get_running_loop().time()
            found = await (self._behind(path, marker) if marker else self._first(path))
            if not found.messages:
                return
            fresh = not seen.issuperset(m.id for m in found.messages)
            seen.update(m.id for m in found.messages)
            pages, idle = pages + 1, 0 if fresh else idle + 1
            yield Page(await self._with_lives(path, found.messages, asked_s), found.marker)
            # Led back to the beginning, all that was seen has to be passed again, and no more.
            if found.marker in {"", marker} or idle > pages / 2 + 1:
                return
            marker = found.marker

    async def _behind(self, path: str, marker: str) -> _Messages:
        return await self._messages(path, {"marker": marker, "include_claimed": "true"})

    async def _first(self, path: str) -> _Messages:
        if not self._only_behind_markers:
            for _ in range(2):
                try:
                    return await self._messages(path, {"include_claimed": "true"}, patience_s=())
                except Away:
                    await self._messages(path, {})  # until it is back, if it is away
            self._only_behind_markers = True
        # A marker of zero is one before all messages, or means nothing, or leads nowhere. Without
        # claimed ones the beginning can be listed, and expired ones before it are passed over.
        found = await self._behind(path, "0")
        return found if found.messages else await self._messages(path, {})

    async def _messages(
        self, path: str, query: Mapping[str, str], patience_s: Sequence[float] = PATIENCE_S
    ) -> _Messages:
        given = {"limit": str(PAGE), "echo": "true", "include_delayed": "true", **query}
        where = f"{path}?{urlencode(given)}"
        body = await self._read(where, patience_s)
        try:
            return msgspec.json.decode(body, type=_Messages)
        except msgspec.DecodeError:
            return _decoded(_mended(body), _Messages, where)

    async def _with_lives(
        self, path: str, found: Sequence[_Message], seen_s: float
    ) -> list[Message]:
        """How long they live: by ttl and age, unless a claim has prolonged it.

        A message outlives its claim. If by its ttl and age it would not, the claim has given it
        the ttl that is shown, when it began. (One that was prolonged and seems to outlive the claim
        all the same cannot be told from others; it gets less than the rest of its life then.)
        """
        holders = {
            id_: m for m in found if (id_ := _claim_of(m)) and m.ttl - m.age < LONGEST_CLAIM_S
        }
        claims = await asyncio.gather(*(self._claim(path, id_) for id_ in holders))
        live = {id_: claim for id_, claim in zip(holders, claims, strict=True) if claim is not None}
        messages = []
        for m in found:
            left_s, claim = m.ttl - m.age, live.get(_claim_of(m))
            if claim is not None and left_s < claim.ttl - claim.age:
                left_s = m.ttl - claim.age
            unsure = left_s <= 0  # it is shown, so it lives; prolonged by a claim that is over
            messages.append(
                Message(
                    m.id, bytes(m.body), m.ttl, m.age, m.ttl if unsure else left_s,
                    bool(_claim_of(m)), seen_s, unsure, m.mended,
                )
            )  # fmt: skip
        return messages

    async def _claim(self, path: str, id_: str) -> _Claim | None:
        try:
            where = f"{path.removesuffix('/messages')}/claims/{quote(id_, safe='')}"
            return await self._get(where, _Claim, CLAIM_PATIENCE_S)
        except (NotShown, Away):  # over by now
            return None

    # Asking

    async def _get(self, path: str, type_: type[T], patience_s: Sequence[float] = PATIENCE_S) -> T:
        return _decoded(await self._read(path, patience_s), type_, path)

    async def _read(self, path: str, patience_s: Sequence[float]) -> bytes:
        """The body of a 200. Raises NotShown, Away when patience is at its end, ZaqarError."""
        pauses_s = iter(patience_s)
        while True:
            try:
                status, body, after_s = await self._ask(path)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why, after_s = f"{self._url} cannot be reached: {_said(error)}", 0.0
            else:
                if status == 200:
                    return body
                told = f"GET {path} answered {status}: {_description(body)}"
                if status == 401:
                    raise ZaqarError(f"{told} (the token is missing, or not valid any more)")
                if status in {403, 404, 405, 500}:
                    raise NotShown(told)
                if status not in AWAY:
                    raise ZaqarError(told)
                why = told
            pause_s = next(pauses_s, None)
            if pause_s is None:
                raise Away(why)
            await self._pause(max(pause_s, min(after_s, RETRY_AFTER_MAX_S)))

    async def _ask(self, path: str) -> tuple[int, bytes, float]:
        async with (
            self._gate,
            self._session.get(
                self._url + path,
                headers=self._headers,
                allow_redirects=False,  # a token is for whom it was given
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as answer,
        ):
            body = await answer.read()
            after = answer.headers.get("Retry-After", "")
            return answer.status, body, float(after) if after.isdecimal() else 0.0


def _path(kind: Kind, name: str) -> str:
    return f"/v2/{kind}s/{quote(name, safe='')}"


def _named(items: Sequence[Any]) -> list[tuple[str, Any]]:
    """Things whose names are markers."""
    return [(item.name, item) for item in items]


def _claim_of(message: _Message) -> str:
    """The id of the claim that holds it; empty where none does."""
    return parse_qs(urlsplit(message.href).query).get("claim_id", [""])[-1]


def _decoded(body: bytes, type_: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotShown(f"GET {path} answered what a Zaqar does not: {error}") from None


def _mended(body: bytes) -> bytes:
    """The same as JSON, if it is nothing worse than numbers that JSON has not."""
    try:
        document = json.loads(body)
        for message in document["messages"]:
            message["mended"], message["body"] = _finite(message.get("body"))
        return json.dumps(document).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return body


def _finite(value: Any) -> tuple[bool, Any]:
    """Whether there was something to mend, and the value with null or U+FFFD in its place."""
    if isinstance(value, float) and not math.isfinite(value):
        return True, None
    if isinstance(value, str):
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return whole != value, whole
    if isinstance(value, dict):
        parts = {key: _finite(inner) for key, inner in value.items()}
        return any(m for m, _ in parts.values()), {key: v for key, (_, v) in parts.items()}
    if isinstance(value, list):
        items = [_finite(inner) for inner in value]
        return any(m for m, _ in items), [v for _, v in items]
    return False, value


def _description(body: bytes) -> str:
    try:
        document = msgspec.json.decode(body)
        return str(document.get("description") or document.get("title"))[:300]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return body[:200].decode(errors="replace").strip() or "nothing"


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
