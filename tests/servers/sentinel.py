"""A Redis master and its replica, and three Sentinels that promote it when the master is gone."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from redis.exceptions import RedisError

from tests.servers.process import START_S, DidNotStart
from tests.servers.redis import Persistence, Redis

NAME = "nusku"
"""What the Sentinels call the master."""

WATCHERS = 3


class Sentinel(Redis):
    """One that watches. It keeps what it knows in its configuration file."""

    def __init__(self, watched: Redis, down_after_ms: int, place: Path | None) -> None:
        super().__init__(persistence="no", place=place, name="sentinel")
        self._file = self.folder / "sentinel.conf"
        lines = [
            f"bind {self.host}",
            f"port {self.port}",
            f"dir {self.folder}",
            f"sentinel monitor {NAME} {watched.host} {watched.port} {WATCHERS // 2 + 1}",
            f"sentinel down-after-milliseconds {NAME} {down_after_ms}",
            f"sentinel failover-timeout {NAME} {10 * down_after_ms}",
        ]
        self._file.write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str | Path]:
        return [self.program, self._file, "--sentinel"]


class Sentinels:
    """``nodes`` are the two servers, ``watchers`` the three Sentinels."""

    def __init__(
        self,
        *,
        persistence: Persistence = "always",
        settings: Mapping[str, str] | None = None,
        down_after_ms: int = 1000,
        place: Path | None = None,
    ) -> None:
        self.nodes = [
            Redis(persistence=persistence, settings=settings, place=place, name=f"node{n}")
            for n in range(2)
        ]
        self.watchers: list[Sentinel] = []
        self._down_after_ms = down_after_ms
        self._place = place

    @property
    def uri(self) -> str:
        watchers = ",".join(f"{one.host}:{one.port}" for one in self.watchers)
        return f"redis+sentinel://{watchers}/{NAME}"

    def start(self) -> Self:
        master, replica = self.nodes
        master.start()
        replica.settings["replicaof"] = f"{master.host} {master.port}"
        replica.start()
        self.wait_until(lambda: replica.ask("ROLE")[3] == "connected", "the replica was connected")
        for _ in range(WATCHERS):
            self.watchers.append(Sentinel(master, self._down_after_ms, self._place))
            self.watchers[-1].start()
        self.wait_until(self._everybody_is_known, "the Sentinels knew all")
        return self

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Look until it holds; what a node does not answer counts as no."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(RedisError, OSError):
                if holds():
                    return
            if time.monotonic() > deadline:
                logs = "\n".join(one.log()[-1000:] for one in self.watchers)
                raise DidNotStart(f"in vain waited until {what}: {logs}")
            time.sleep(0.02)  # there is no event to wait for

    def _everybody_is_known(self) -> bool:
        for watcher in self.watchers:
            told = watcher.ask("SENTINEL", "MASTER", NAME)
            known = told if isinstance(told, dict) else _pairs(told)
            if int(known["num-other-sentinels"]) != WATCHERS - 1 or int(known["num-slaves"]) != 1:
                return False
        return True

    def master(self) -> Redis:
        """The one that most of the Sentinels name."""
        ports = [
            int(watcher.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])
            for watcher in self.watchers
            if watcher.running
        ]
        port = max(ports, key=ports.count)
        return next(node for node in self.nodes if node.port == port)

    def wait_for_another(self, than: Redis) -> Redis:
        """Wait until another is the master, and says so itself; return it."""
        self.wait_until(
            lambda: self.master() is not than and self.master().ask("ROLE")[0] == "master",
            "another was the master",
        )
        return self.master()

    def failover(self) -> Redis:
        """Let the replica take the place of the master; return it."""
        before = self.master()
        self.watchers[0].ask("SENTINEL", "FAILOVER", NAME)
        return self.wait_for_another(before)

    def remove(self) -> None:
        """End all and remove their files."""
        for one in [*self.watchers, *self.nodes]:
            one.remove()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def _pairs(told: Sequence[str]) -> dict[str, str]:
    return dict(zip(told[::2], told[1::2], strict=True))
