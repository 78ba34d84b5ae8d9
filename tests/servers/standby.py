"""Two PostgreSQL servers: a primary that waits for its standby with each commit."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.postgres import USER, Postgres
from tests.servers.process import START_S, DidNotStart, free_port

NAME = "standby"


class PrimaryAndStandby:
    """``primary`` is written to and ``standby`` follows; :meth:`promote` swaps the names.

    What either said is written is still there after a ``kill``. ``synchronous_commit`` is that of
    the primary: "local" shows what asynchronous replication loses. The standby connects to the
    primary's port, or to ``upstream``, an address that somebody leads there.
    """

    def __init__(
        self,
        *,
        synchronous_commit: str = "on",
        settings: Mapping[str, str] | None = None,
        place: Path | None = None,
    ) -> None:
        both = {
            "wal_keep_size": "256MB",
            "wal_receiver_status_interval": "1s",
            "wal_retrieve_retry_interval": "100ms",
            **(settings or {}),
        }
        self.synchronous_commit = synchronous_commit
        self.upstream: tuple[str, int] | None = None
        self.primary = Postgres(durable=True, settings=both, place=place)
        self.standby = Postgres(durable=True, settings=both, place=place)

    def start(self) -> Self:
        """Start both; the primary waits for its standby from the beginning."""
        self.primary.start()
        self._follow()
        return self

    def _follow(self) -> None:
        """Make the standby a copy of the primary, start it and let the primary wait for it."""
        shutil.rmtree(self.standby.data, ignore_errors=True)
        self.standby.run(
            "pg_basebackup",
            *("--host", self.primary.host, "--port", str(self.primary.port), "--username", USER),
            *("--pgdata", self.standby.data, "--checkpoint", "fast", "--no-sync"),
            "--write-recovery-conf",
        )
        self.standby.start()
        self.heal()
        self.primary.configure(
            synchronous_commit=self.synchronous_commit, synchronous_standby_names=NAME
        )
        self.wait_for_standby()

    def wait_for_standby(self) -> None:
        """Wait until the standby has all that the primary has, and the primary counts on it."""
        deadline = time.monotonic() + START_S
        while not self.primary.execute(
            "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"
            " AND replay_lsn >= pg_current_wal_lsn()"
        ):
            if time.monotonic() > deadline:
                raise DidNotStart(f"it does not follow: {self.standby.log()[-2000:]}")
            time.sleep(0.02)  # there is no event to wait for

    def cut(self) -> None:
        """Cut replication, and nothing else: commits on the primary wait from now on."""
        self._connect_to("127.0.0.1", free_port())
        deadline = time.monotonic() + START_S
        while self.primary.execute("SELECT FROM pg_stat_replication"):
            if time.monotonic() > deadline:
                raise DidNotStart("replication goes on")
            time.sleep(0.01)  # there is no event to wait for

    def heal(self) -> None:
        """Let the standby connect to the primary again."""
        self._connect_to(*(self.upstream or (self.primary.host, self.primary.port)))

    def _connect_to(self, host: str, port: int) -> None:
        self.standby.configure(
            primary_conninfo=f"host={host} port={port} user={USER} application_name={NAME}"
        )

    def promote(self) -> None:
        """Make the standby the primary, which waits for nobody until :meth:`rejoin`.

        The old one is left as it is: usually it was killed before. It may be started again as it
        was, to see whether anybody falls for it.
        """
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Make the old primary a standby of the new one, by a new copy."""
        self.standby.kill()
        self._follow()

    def uri(self, database: str = "postgres") -> str:
        """Both, for clients that look for the one that can be written to."""
        first, second = sorted((self.primary, self.standby), key=lambda server: server.port)
        return (
            f"postgresql://{USER}@{first.host}:{first.port},{second.host}:{second.port}"
            f"/{database}?target_session_attrs=read-write"
        )

    def remove(self) -> None:
        """End both and remove their files."""
        self.standby.remove()
        self.primary.remove()

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
