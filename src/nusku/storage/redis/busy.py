"""The lists of lanes that may hold messages, by kind.

They are what is looked at to find work, to count, and to tidy up, so that ten thousand empty lanes
cost nothing. A list and a lane may be on different servers, so no step changes both. Hence:

* A lane has a *registration*, a number that only grows, and a flag whether it is in the list.
* Before its first message, its name goes into the list together with the number. Then the message
  is added along with that number, which sets the flag, unless the lane has another number by now.
* To take a lane off, it gets the next number and loses the flag, if it is empty; then what was in
  the list under the old number goes.

So whatever stops halfway leaves at most an entry too many: one whose number is not the lane's. It
is never right again, and whoever meets it may remove it.

A server that forgets what it has answered may forget entries, and then nobody would find these
lanes. So now and then all lanes are compared with the lists, which takes its time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from nusku.errors import Unavailable
from nusku.model import Counts, Kind, Occupied, QueueKey
from nusku.storage.redis.calls import LANES
from nusku.storage.redis.engine import Engine
from nusku.storage.redis.keys import KINDS, Place, busy_set, key_of, project_prefix, slot_of

TOGETHER = 100  # lanes looked at before others get their turn
SCREENED = 5_000  # entries looked at for their project before others get their turn
REST_MS = 30_000  # a lane where nothing is to be done is looked at again after this long at most
COMPARED_S = 3600.0  # between two comparisons of all lanes with the lists
PACE_S = 0.05  # between two steps of one
SCANNED = 200  # keys looked at by a step
LISTED_MS = 5_000  # after this long the lists are read again, for what other nodes put there


def _member(name: str, registration: int) -> bytes:
    return b"%d %b" % (registration, name.encode())


class Entry:
    """An entry of a list: a lane and the number that it had."""

    __slots__ = ("key", "kind", "member", "place", "registration")

    def __init__(self, kind: Kind, member: bytes, key: QueueKey, place: Place, number: int) -> None:
        self.kind = kind
        self.member = member
        self.key = key
        self.place = place
        self.registration = number


class Busy:
    """See above; and what is done with all lanes that may hold messages."""

    def __init__(self, engine: Engine, place: Callable[[QueueKey], Place]) -> None:
        self._engine = engine
        self._place = place
        self._resting: dict[Place, int] = {}
        self._entries: list[Entry] = []
        self._listed_ms = -LISTED_MS

    async def register(self, key: QueueKey, registration: int) -> None:
        """Put a lane in the list, for a message that is about to be added."""
        name = busy_set(key.kind)
        member = _member(self._place(key).name, registration)
        await self._engine.command("SADD", name, member, slot=slot_of(name), writes=True, more=True)
        self._listed_ms = -LISTED_MS

    def touched(self, place: Place) -> None:
        """There may be something to do in this lane sooner than was thought."""
        self._resting.pop(place, None)

    async def _list(self, kinds: Iterable[Kind]) -> list[Entry]:
        names = [(kind, busy_set(kind)) for kind in kinds]
        lists = await asyncio.gather(
            *(self._engine.command("SMEMBERS", name, slot=slot_of(name)) for _, name in names)
        )
        found = []
        for (kind, _), members in zip(names, lists, strict=True):
            for member in members:
                number, _, lane = member.partition(b" ")
                key = key_of(lane.decode())
                if key is not None and number.isdigit():
                    found.append(Entry(kind, member, key, self._place(key), int(number)))
        return found

    async def of_project(self, project: str) -> list[QueueKey]:
        """Its queues and topics that may hold messages.

        The lists have those of all projects, so the others' are told by how their names begin.
        """
        begin = b" " + project_prefix(project).encode()
        keys = set()
        for kind in ("queue", "topic"):
            name = busy_set(kind)
            members = await self._engine.command("SMEMBERS", name, slot=slot_of(name))
            for start in range(0, len(members), SCREENED):
                for member in [one for one in members[start : start + SCREENED] if begin in one]:
                    key = key_of(member.partition(b" ")[2].decode())
                    if key is not None:
                        keys.add(key)
                await asyncio.sleep(0)
        return list(keys)

    async def _each(
        self, entries: Sequence[Entry], ask: Callable[[Entry], Awaitable[list[Any]]]
    ) -> list[tuple[Entry, list[Any]]]:
        answers: list[tuple[Entry, list[Any]]] = []
        for start in range(0, len(entries), TOGETHER):
            some = entries[start : start + TOGETHER]
            answers += zip(some, await asyncio.gather(*map(ask, some)), strict=True)
        over = [entry for entry, answer in answers if answer[-1]]
        for start in range(0, len(over), TOGETHER):
            await asyncio.gather(*map(self._retire, over[start : start + TOGETHER]))
        return answers

    async def _retire(self, entry: Entry) -> None:
        """Take it off the list, if that may be done; it is no matter when that fails."""
        with suppress(Unavailable):
            _, done = await self._engine.run(LANES, (entry.place,), ("retire", entry.registration))
            if done:
                name = busy_set(entry.kind)
                await self._engine.command(
                    "SREM", name, entry.member, slot=slot_of(name), writes=True
                )
                self._listed_ms = -LISTED_MS

    async def keep_comparing(self) -> None:
        """Compare all lanes with the lists now and then, for ever."""
        while True:
            await asyncio.sleep(COMPARED_S)
            with suppress(Unavailable):
                await self.compare(PACE_S)

    async def compare(self, pace_s: float = 0.0) -> int:
        """Put the lanes into the lists that should be there; say how many were not."""
        missing = 0
        async for keys in self._engine.lanes(SCANNED):
            members = {entry.member for entry in await self._list({key.kind for key in keys})}
            places = [self._place(key) for key in keys]
            answers = await asyncio.gather(
                *(self._engine.run(LANES, (one,), ("listed",), writes=False) for one in places)
            )
            for key, place, (_, number) in zip(keys, places, answers, strict=True):
                if number and _member(place.name, number) not in members:
                    missing += 1
                    await self.register(key, number)
            await asyncio.sleep(pace_s)
        return missing

    async def occupied(self, kind: Kind) -> list[Occupied]:
        answers = await self._each(await self._list((kind,)), self._look_at_oldest)
        return [
            Occupied(entry.key, sum(answer[2:5]), answer[5])
            for entry, answer in answers
            if answer[5]
        ]

    def _look_at_oldest(self, entry: Entry) -> Awaitable[list[Any]]:
        return self._engine.run(
            LANES, (entry.place,), ("look", entry.registration, True), 4, writes=False
        )

    def _look(self, entry: Entry) -> Awaitable[list[Any]]:
        return self._engine.run(
            LANES, (entry.place,), ("look", entry.registration, False), 2, writes=False
        )

    async def volume(self) -> Counts:
        answers = await self._each(await self._list(("queue", "topic")), self._look)
        now = [answer[1] for _, answer in answers] or [await self._now_ms()]
        free, held, delayed = (sum(answer[n] for _, answer in answers) for n in (2, 3, 4))
        return Counts(free, held, delayed, None, None, max(now))

    async def _now_ms(self) -> int:
        if self._engine.by_own_clock:
            return self._engine.now_ms()
        seconds, micros = await self._engine.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def expire(self, limit: int) -> int:
        """Tidy up where something is to be done; say how many rows that were."""
        now = self._engine.now_ms()
        if now - self._listed_ms >= LISTED_MS or now < self._listed_ms:
            self._entries = await self._list(KINDS)
            self._listed_ms = now
            known = {entry.place for entry in self._entries}
            self._resting = {k: v for k, v in self._resting.items() if k in known}
        waiting = [one for one in self._entries if self._resting.get(one.place, 0) <= now]
        done = 0
        for start in range(0, len(waiting), TOGETHER):
            some = waiting[start : start + TOGETHER]
            # Each gets a share of what is left, so that all together do not do more.
            while some and done < limit:
                share = max(1, (limit - done) // len(some))
                part = some[: limit - done]
                answers = await self._each(part, partial(self._expire, share))
                again = []
                for entry, (_, rows, rest_ms, _) in answers:
                    done += rows
                    if rest_ms:
                        self._resting[entry.place] = now + min(rest_ms, REST_MS)
                    else:
                        again.append(entry)
                if not any(answer[1] for _, answer in answers):
                    again = []
                some = again + some[len(part) :]
            if done >= limit:
                break
        return done

    def _expire(self, limit: int, entry: Entry) -> Awaitable[list[Any]]:
        return self._engine.run(
            LANES, (entry.place,), ("expire", entry.registration, limit), min(limit, 200)
        )
