"""A Redis server of one's own, or a Valkey one where that is what the machine has."""

import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from redis import Redis as Client
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.servers.process import DidNotStart, Process, free_port
from tests.servers.programs import redis_server

BUS = 10_000
"""How far above its port a node of a cluster listens to the others."""

Persistence = Literal["always", "everysec", "no"]


def client_of(port: int) -> Client:
    """A client for the tests' own use, that says at once when it gets no answer."""
    return Client(
        host="127.0.0.1",
        port=port,
        socket_timeout=10,
        socket_connect_timeout=10,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


class Redis(Process):
    """One server. ``persistence`` is its ``appendfsync``, or "no" for none: all is gone with it.

    ``settings`` are handed over at each start, so that they may be changed between two.
    """

    quick_end = signal.SIGKILL  # asked to end, a master waits for its replicas, for seconds

    def __init__(
        self,
        *,
        persistence: Persistence = "always",
        settings: Mapping[str, str] | None = None,
        place: Path | None = None,
        name: str = "redis",
    ) -> None:
        self.program = redis_server()
        super().__init__(name, place)
        self.host = "127.0.0.1"
        self.port = free_port(BUS)
        self.settings = {
            "save": "",
            "appendonly": "no" if persistence == "no" else "yes",
            "appendfsync": persistence,
            "maxmemory-policy": "noeviction",
            "repl-diskless-sync-delay": "0",
            **(settings or {}),
        }

    def command(self) -> Sequence[str | Path]:
        told = {"bind": self.host, "port": str(self.port), "dir": str(self.folder)}
        return [
            self.program,
            *(
                word
                for name, value in (told | self.settings).items()
                for word in (f"--{name}", value)
            ),
        ]

    def start(self) -> Self:
        """As any server; a port that somebody took in the meantime is exchanged for another."""
        for _ in range(5):
            try:
                return super().start()
            except DidNotStart:
                if "in use" not in self.log():
                    raise
                self.log_file.unlink()
                self.port = free_port(BUS)
        raise DidNotStart("no free port was found")

    def answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError), self.client() as client:
            return int(client.info("server")["process_id"]) == self.pid
        return False

    def client(self) -> Client:
        """A new client; the caller closes it."""
        return client_of(self.port)

    def ask(self, *words: object) -> Any:
        """What it answers to a command, as the protocol has it."""
        with self.client() as client:
            return client.execute_command(*words)

    @property
    def uri(self) -> str:
        return f"redis://{self.host}:{self.port}"

    def flush(self) -> None:
        """Forget everything, at once for whoever looks."""
        with self.client() as client:
            client.flushall(asynchronous=True)
