"""One connection to a server: how it is made, what is asked over it, and how it ends.

A query is never cancelled, since the server would take that for a reason not to wait for its
standby: who has waited long enough hangs up. Statements have no names behind a pooler, where the
next one may meet another connection of the server.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
import structlog

from nusku.errors import StoreRefused

log = structlog.get_logger("nusku.storage")

CONNECT_S = 5.0
OTHERS_S = 1.0  # for servers that may know of a newer primary than the one that was found
OLDEST = 130_000

IDENTIFY = """
SELECT current_setting('server_version_num')::int AS version,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS standby,
    CASE WHEN NOT pg_is_in_recovery() THEN
        ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint
    END AS timeline,
    pg_backend_pid() AS pid,
    current_setting('default_transaction_isolation') AS isolation,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('synchronous_standby_names') <> '' AS synchronous
"""

# What goes wrong at connecting, be it the network or what the server says. asyncpg has an internal
# error for who asks something in the moment in which the server ends a session.
UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

# They warn of what concerns the operator and has nothing to do with the transaction.
_HARMLESS = frozenset({"GetNewTransactionId", "GetNewMultiXactId", "SetTransactionIdLimit"})


class Identity(NamedTuple):
    """What a server says of itself. ``pooled``: somebody stands between it and us."""

    version: int
    encoding: str
    timeline: int | None
    isolation: str
    read_only: bool
    synchronous: bool
    pooled: bool


class Warned(Exception):
    """The server answered with success, and with a warning that it was none."""


class Link:
    """A connection on which one thing is asked at a time."""

    def __init__(self, connection: "asyncpg.Connection[Any]", identity: Identity) -> None:
        self.connection = connection
        self.identity = identity
        self.timed_out = False
        self._statements: dict[str, Any] = {}
        self._warning: str | None = None
        connection.add_log_listener(self._listen)

    @property
    def open(self) -> bool:
        return not self.connection.is_closed()

    def _listen(self, _: Any, message: Any) -> None:
        if (
            message.severity_en == "WARNING"
            and getattr(message, "server_source_function", None) not in _HARMLESS
        ):
            self._warning = message.message

    async def call(self, statement: str, args: Sequence[Any], timeout_s: float) -> list[Any]:
        """The rows it returns. Raises Warned when its commit was not what it should be."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout_s, self._hang_up)
        self._warning = None
        try:
            prepared = self._statements.get(statement)
            if prepared is None:
                name = "" if self.identity.pooled else f"nusku_{len(self._statements)}"
                prepared = await self.connection.prepare(statement, name=name)
                self._statements[statement] = prepared
            rows: list[Any] = await prepared.fetch(*args)
        finally:
            timer.cancel()
        if self._warning is not None:
            raise Warned(self._warning)
        return rows

    def _hang_up(self) -> None:
        self.timed_out = True
        self.cut()

    def cut(self) -> None:
        """Close it at once, whatever is under way."""
        self.connection.terminate()

    async def close(self) -> None:
        """Close it politely, when nothing is under way."""
        with contextlib.suppress(*UNREACHABLE):
            await asyncio.wait_for(self.connection.close(), 1)
        self.cut()


async def connect(server: str, timeout_s: float = CONNECT_S) -> Link:
    """Connect to one server and ask who it is. Raises one of UNREACHABLE, or ValueError."""
    connection = await asyncpg.connect(server, timeout=timeout_s, statement_cache_size=0)
    timer = asyncio.get_running_loop().call_later(timeout_s, connection.terminate)
    try:
        [said] = await connection.fetch(IDENTIFY)
    except BaseException:
        connection.terminate()
        raise
    finally:
        timer.cancel()
    return Link(
        connection,
        Identity(
            said["version"],
            said["encoding"],
            said["timeline"],
            said["isolation"],
            said["read_only"],
            said["synchronous"],
            said["pid"] != connection.get_server_pid(),
        ),
    )


async def connect_to_primary(
    servers: Sequence[str], timeline: int = 0, timeout_s: float = CONNECT_S
) -> Link:
    """Look at all servers that can be reached, and take the primary with the highest timeline, if
    that is not below one already seen. Raises one of UNREACHABLE, or ValueError.
    """
    tries = {asyncio.ensure_future(connect(server, timeout_s)) for server in servers}
    links, errors = await _all_of(tries, timeout_s)
    best = max(links, key=lambda link: link.identity.timeline or 0, default=None)
    for link in links:
        if link is not best:
            await link.close()
    if best is None:
        raise errors[0] if errors else TimeoutError
    seen = best.identity.timeline
    if seen is not None and seen >= timeline:
        return best
    await best.close()
    if seen is None:
        raise OSError("only standbys can be reached, and none of them may be written to")
    raise OSError(f"it was the primary once (timeline {seen}), and is no more (now {timeline})")


async def _all_of(
    tries: "set[asyncio.Task[Link]]", timeout_s: float
) -> tuple[list[Link], list[BaseException]]:
    """What they come to. When one has found a primary, the others are given little more time."""
    loop = asyncio.get_running_loop()
    links: list[Link] = []
    errors: list[BaseException] = []
    until = loop.time() + timeout_s
    try:
        while tries and (left := until - loop.time()) > 0:
            done, tries = await asyncio.wait(
                tries, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                error = one.exception()
                if error is not None:
                    errors.append(error)
                    continue
                links.append(one.result())
                if links[-1].identity.timeline is not None:
                    until = min(until, loop.time() + OTHERS_S)
    except BaseException:
        for link in links:
            link.cut()
        raise
    finally:
        for one in tries:
            one.cancel()
    return links, errors


def check(identity: Identity, shown: str, *, standby: bool) -> None:
    """Raise StoreRefused for a server that no store can be on."""
    if identity.version < OLDEST:
        raise StoreRefused(f"store {shown}: nusku needs PostgreSQL 13 or newer")
    if identity.encoding != "UTF8":
        raise StoreRefused(
            f"store {shown}: the database's encoding is {identity.encoding}; nusku needs UTF8"
        )
    if identity.isolation != "read committed":
        raise StoreRefused(
            f"store {shown}: default_transaction_isolation is {identity.isolation!r} for this role"
            " or database; nusku needs 'read committed'"
        )
    if identity.read_only:
        raise StoreRefused(f"store {shown}: transactions are read-only by default")
    if standby and not identity.synchronous:
        raise StoreRefused(
            f"store {shown}: synchronous_standby is on, but the server does not wait for a standby:"
            " set synchronous_standby_names there"
        )


def reason(error: BaseException) -> str:
    """Why a server could not be reached, in words."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return " ".join(str(error).split()) or type(error).__name__
