"""The `nusku` command. It reads settings, calls one function, and says what went wrong.

Exit codes: 0 done or stopped cleanly, 1 the store failed while running, 2 wrong settings, usage or
store. Every problem is one line on stderr, starting with ``nusku:``.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from nusku import __version__
from nusku.config import FILE_VARIABLE, ConfigError, Settings, as_toml, load, masked
from nusku.errors import NuskuError, StoreRefused

# Read as text: `load` checks them, with the same words as for the file and the environment.
_SETTINGS = {
    "host": "Address to listen on.",
    "port": "TCP port; 0 takes a free one.",
    "store": "URI of the store, such as sqlite:///nusku.db.",
    "workers": "Processes that serve; 1 on SQLite.",
    "auth": "How requests are authenticated.",
    "log_level": "Least severe thing that is logged.",
    "log_format": "text, json or auto.",
}


def _with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``--config`` and an option for each setting; it is called with Settings."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(config: Path | None, **options: Any) -> None:
            given = {name: options.pop(name) for name in names}
            overrides = {name: value for name, value in given.items() if value is not None}
            try:
                settings = load(config, os.environ, overrides, _notice)
            except ConfigError as error:
                _refuse(*error.problems)
            try:
                command(settings, **options)
            except ConfigError as error:
                _refuse(*error.problems)
            except (StoreRefused, NuskuError) as error:
                # Stores name the URI that they refuse; it may hold a password.
                _refuse(str(error).replace(settings.store, masked(settings.store)))

        for name in reversed(names):
            flag = f"--{name.replace('_', '-')}"
            called = click.option(flag, metavar="VALUE", help=_SETTINGS[name])(called)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            envvar=FILE_VARIABLE,
            help=f"TOML file with settings; also {FILE_VARIABLE}.",
        )(called)

    return decorate


def _notice(text: str) -> None:
    click.echo(f"nusku: {text}", err=True)


def _refuse(*problems: str) -> NoReturn:
    for problem in problems:
        click.echo(f"nusku: {problem}", err=True)
    sys.exit(2)


class _Bar:
    """Progress on stderr, of work whose size may change meanwhile."""

    def __init__(self, label: str) -> None:
        self._bar = click.progressbar(length=1, label=label, file=sys.stderr)
        self._done = 0

    def __enter__(self) -> "_Bar":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def reach(self, done: int, whole: int) -> None:
        """So much of so much is done."""
        self._bar.length = max(whole, 1)
        self._bar.update(done - self._done)
        self._done = done

    def advance(self, more: int, left: int) -> None:
        """So much more is done, and so much is left."""
        self.reach(self._done + more, self._done + more + left)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nusku", message="%(prog)s %(version)s")
def main() -> None:
    """A message queue service that speaks the Zaqar v2 API.

    Every setting of docs/settings.md can also be given as NUSKU_<NAME>, or in the TOML file.
    """


@main.command()
@_with_settings("host", "port", "store", "auth", "workers", "log_level", "log_format")
def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or SIGINT."""
    from nusku import server

    sys.exit(server.run(settings))


@main.command()
@_with_settings("host", "port", "store", "auth", "workers", "log_level", "log_format")
def check(settings: Settings) -> None:
    """Check settings and store, and print the settings in force.

    Changes nothing, and may be run beside a server. What it prints is a TOML file.
    """
    from nusku import keys, storage
    from nusku.notify.letters import templates

    click.echo(as_toml(settings), nl=False)
    templates(settings.mail_templates)
    keys.check_key(settings)
    click.echo(f"\n# {storage.inspect_store(settings.store)}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_with_settings("store")
def backup(settings: Settings, file: Path) -> None:
    """Copy the store to FILE, also while a server runs on it.

    The key beside it is not copied: keep that apart, or lose what was signed with it.
    """
    from nusku import storage

    storage.backup_store(settings.store, file)


@main.command()
@_with_settings("store")
def migrate(settings: Settings) -> None:
    """Create or bring up to date what the store needs.

    A server does the same at its start, where its user of the database may.
    """
    from nusku import storage

    click.echo(storage.migrate_store(settings.store))


@main.command("copy")
@click.option("--from", "source", metavar="URI", required=True, help="The store to copy.")
@click.option("--to", "target", metavar="URI", required=True, help="An empty store.")
@_with_settings()
def copy_(settings: Settings, source: str, target: str) -> None:
    """Copy everything from one store to another, while no server uses either.

    Queues, messages with the rest of their lives and their places, claims, subscriptions, pools and
    flavors. Interrupted, it goes on where it was when it is started again.
    """
    import asyncio

    from nusku.metrics import Metrics
    from nusku.storage import StoreOptions, copying, open_store

    async def run(progress: Callable[[copying.Progress], None]) -> copying.Summary:
        options = StoreOptions.of(settings)
        from_ = await open_store(source, None, options, Metrics())
        try:
            to = await open_store(target, None, options, Metrics())
            try:
                return await copying.copy(from_, to, progress)
            finally:
                await to.close()
        finally:
            await from_.close()

    with _Bar("copying") as bar:
        summary = asyncio.run(run(lambda step: bar.reach(step.done, step.whole)))
    click.echo(summary)


@main.command()
@click.option("--url", metavar="URL", required=True, help="The Zaqar, such as http://zaqar:8888.")
@click.option("--project", "projects", metavar="ID", multiple=True, required=True, help="Whose.")
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="Only these queues.")
@click.option("--token", metavar="TOKEN", envvar="OS_TOKEN", help="As X-Auth-Token.")
@click.option("--roles", metavar="ROLES", default="admin", show_default=True, help="As X-Roles.")
@click.option("--pools/--no-pools", default=True, help="Whether pools and flavors come along.")
@click.option("--forget", is_flag=True, help="Bring nothing; forget what was brought before.")
@_with_settings("store")
def import_zaqar(
    settings: Settings,
    url: str,
    projects: tuple[str, ...],
    queues: tuple[str, ...],
    token: str | None,
    roles: str,
    pools: bool,
    forget: bool,
) -> None:
    """Bring over what a running Zaqar shows of the given projects.

    Queues and topics with their metadata, messages in their order with the rest of their lives
    (claimed ones come unclaimed), subscriptions, pools and flavors. Nothing is changed there.
    Interrupted, it goes on where it was when it is started again: what has come is known by its ids,
    which take some room in the store until --forget.
    """
    import asyncio

    from nusku import zaqar

    if forget:
        click.echo(f"forgot {asyncio.run(zaqar.forget(settings, projects))} ids and names")
        return
    origin = zaqar.Origin(url, projects, queues, token or "", roles, pools)
    with _Bar("importing") as bar:
        try:
            summary = asyncio.run(zaqar.bring(settings, origin, bar.reach))
        except zaqar.ZaqarError as error:
            _refuse(str(error))
    click.echo(summary)


@main.group()
def pool() -> None:
    """What operators do with pools; needs a running server."""


_URL = click.option(
    "--url", metavar="URL", default="http://127.0.0.1:8888", show_default=True, help="The server."
)
_TOKEN = click.option("--token", metavar="TOKEN", envvar="OS_TOKEN", help="As X-Auth-Token.")


@pool.command()
@click.argument("name")
@_URL
@_TOKEN
def drain(name: str, url: str, token: str | None) -> None:
    """Bring all queues of the pool NAME to others, while clients keep working.

    The pool gets no new queues from then on. Interrupted, it goes on where it was when it is
    started again.
    """
    import asyncio
    import uuid

    from nusku import draining

    identity = {"X-Auth-Token": token} if token else {"X-Project-ID": "admin", "X-Roles": "admin"}
    headers = {"Client-ID": str(uuid.uuid4()), **identity}
    with _Bar(f"draining {name}") as bar:

        def progress(step: draining.Progress) -> None:
            bar.advance(
                step.moved_messages + step.moved_queues, step.messages_left + step.queues_left
            )

        try:
            moved = asyncio.run(draining.drain(url, name, headers, progress))
        except draining.Refused as refusal:
            _refuse(str(refusal))
    click.echo(f"moved {moved.queues} queues with {moved.messages} messages")
