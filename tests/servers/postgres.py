"""A PostgreSQL server of one's own."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncpg

from tests.servers.guardian import children
from tests.servers.process import DidNotStart, Process, free_port, unprivileged
from tests.servers.programs import postgres_folder

T = TypeVar("T")

USER = "nusku"
SMALL: Mapping[str, str] = {
    "shared_buffers": "64MB",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "max_connections": "200",
    "autovacuum_naptime": "10s",
    "log_min_messages": "warning",
    "timezone": "UTC",
}
CARELESS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
}


class Background:
    """A thread with an event loop, for callers that may have a loop of their own that runs."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "postgres")
        self._runner: asyncio.Runner | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait for it. Connections may be kept from one call to the next."""
        return self._thread.submit(self._run, work).result()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(work)

    def close(self) -> None:
        if self._runner is not None:
            self._thread.submit(self._runner.close).result()
            self._runner = None


background = Background()


class Postgres(Process):
    """One server; ``durable`` when something is going to be killed and must then still be there.

    ``settings`` are handed over at each start, so that they may be changed between two.
    """

    quick_end = signal.SIGQUIT

    def __init__(
        self,
        *,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
        place: Path | None = None,
    ) -> None:
        self.programs = postgres_folder()
        super().__init__("postgres", place)
        self.durable = durable
        self.settings = {**SMALL, **({} if durable else CARELESS), **(settings or {})}
        self.host = "127.0.0.1"
        self.port = free_port()
        self.data = self.folder / "data"
        self._databases = 0
        if user := self.user():
            os.chown(self.folder, user.pw_uid, user.pw_gid)

    def user(self) -> pwd.struct_passwd | None:
        return unprivileged()

    def command(self) -> Sequence[str | Path]:
        told = {"listen_addresses": self.host, "port": str(self.port)}
        told |= {"unix_socket_directories": str(self.folder), **self.settings}
        return [
            self.programs / "postgres",
            *("-D", self.data),
            *(word for name, value in told.items() for word in ("-c", f"{name}={value}")),
        ]

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs to its end as the user that owns the files."""
        user = self.user()
        ended = subprocess.run(
            [self.programs / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            check=False,
        )
        if ended.returncode != 0:
            raise DidNotStart(f"{program}: {ended.stdout[-1000:]}{ended.stderr[-2000:]}")

    def launch(self) -> None:
        if not self.data.exists():
            self.run(
                "initdb",
                *("--pgdata", self.data, "--username", USER, "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--data-checksums"),
            )
        super().launch()

    def start(self) -> Self:
        """As any server; a port that somebody took in the meantime is exchanged for another."""
        for _ in range(5):
            try:
                return super().start()
            except DidNotStart:
                if "Address already in use" not in self.log():
                    raise
                self.log_file.unlink()
                self.port = free_port()
        raise DidNotStart("no free port was found")

    def answers(self) -> bool:
        lines = []
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        ready = len(lines) > 7 and lines[7].strip() in {"ready", "standby"}
        return ready and int(lines[0]) == self.pid

    def stop(self) -> None:
        """A fast shutdown: connections are closed, everything is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """``kill -9`` of all its processes, as when the machine goes."""
        helpers = children(self.pid) if self.running else []
        super().kill()
        for pid in helpers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        super().pause()
        self._signal_children(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_children(signal.SIGCONT)
        super().resume()

    def _signal_children(self, number: signal.Signals) -> None:
        for pid in children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def configure(self, **settings: str) -> None:
        """Change settings that can be changed while it runs, for good."""
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Let a standby become a primary and wait until it is one."""
        self.run("pg_ctl", "promote", "--pgdata", self.data, "--wait")

    # Databases

    def uri(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@{self.host}:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[asyncpg.Record]:
        """Run one statement, or several without parameters that return nothing."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.uri(database))
            try:
                return await connection.fetch(statement)
            finally:
                await connection.close()

        return background.run(run())

    def create(self, template: str = "template0") -> str:
        """The URI of a new database that is a copy of that one."""
        self._databases += 1
        name = f"store{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.uri(name)

    def drop(self, uri: str) -> None:
        """Remove a database whoever uses it."""
        name = uri.rsplit("/", 1)[1]
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self.folder, ignore_errors=True)
