"""PgBouncer in transaction mode before a PostgreSQL server."""

import os
import pwd
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers import programs
from tests.servers.postgres import USER, Postgres
from tests.servers.process import Process, free_port, unprivileged


class PgBouncer(Process):
    """Statements of one client may meet another connection in each transaction."""

    def __init__(
        self,
        server: Postgres,
        *,
        pool_size: int = 4,
        settings: Mapping[str, str] | None = None,
        place: Path | None = None,
    ) -> None:
        self.program = programs.pgbouncer()
        super().__init__("pgbouncer", place)
        self.server = server
        self.host = "127.0.0.1"
        self.port = free_port()
        self.settings = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": str(pool_size),
            "max_client_conn": "500",
            "ignore_startup_parameters": "extra_float_digits,search_path,jit",
            **(settings or {}),
        }
        if user := self.user():
            os.chown(self.folder, user.pw_uid, user.pw_gid)

    def user(self) -> pwd.struct_passwd | None:
        return unprivileged()

    def command(self) -> Sequence[str | Path]:
        file = self.folder / "pgbouncer.ini"
        target = f"host={self.server.host} port={self.server.port} user={USER}"
        lines = ["[databases]", f"* = {target}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in self.settings.items()]
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o644)
        return [self.program, file]

    def answers(self) -> bool:
        """It ends when it cannot have its port, so whoever listens there is it."""
        with socket.socket() as attempt:
            return attempt.connect_ex((self.host, self.port)) == 0 and self.running

    def uri(self, database: str = "postgres") -> str:
        """The URI of a database of the server, by way of this."""
        return f"postgresql://{USER}@{self.host}:{self.port}/{database}"
