"""The `nusku` command. It reads settings, calls one function, and says what went wrong.

Exit codes: 0 done or stopped cleanly, 1 the store failed while running, 2 wrong settings, usage or
store. Every problem is one line on stderr, starting with ``nusku:``.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from nusku import __version__
from nusku.config import (
    FILE_VARIABLE,
    KEY_VARIABLE,
    ConfigError,
    Settings,
    as_toml,
    load,
    masked,
)
from nusku.config.settings import QUOTA_MAX, TEN_YEARS_S
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


def _log_to_stderr() -> None:
    """What a command prints may be read by a program."""
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


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
            _log_to_stderr()
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


def _refuse_if(problems: Iterable[str]) -> None:
    if found := tuple(problems):
        _refuse(*found)


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
    from nusku import auth, keys, storage, tls
    from nusku.broker import policy
    from nusku.notify.letters import templates

    click.echo(as_toml(settings), nl=False)
    templates(settings.mail_templates)
    auth.check(settings)
    policy.check(settings)
    tls.check(settings)
    keys.check_keys(settings)
    click.echo(f"\n# {storage.inspect_store(settings.store)}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_with_settings("store")
def backup(settings: Settings, file: Path) -> None:
    """Copy the store to FILE, also while a server runs on it.

    API keys and quotas go to FILE.admin, if there are any. The keys that sign and encrypt are not
    copied: keep them apart, or lose what was signed and encrypted.
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
    flavors, API keys and quotas. Interrupted, it goes on where it was when it is started again.
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
_TOKEN = click.option(
    "--token",
    metavar="TOKEN",
    envvar=[KEY_VARIABLE, "OS_TOKEN"],
    help=f"An API key or a token of an admin; also {KEY_VARIABLE} or OS_TOKEN.",
)


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


@main.group()
def encryption() -> None:
    """The keys of encrypted queues; with a server running or without."""


@encryption.command("show")
@click.option("--queues", is_flag=True, help="Also which queues need the keys that are not in use.")
@_with_settings("store")
def encryption_show(settings: Settings, queues: bool) -> None:
    """Show the keys by their ids, and how many messages need each, pools included.

    Reads all messages, and changes nothing. Exits with 2 if a key is missing.
    """
    import asyncio

    from nusku import encryption

    uses = asyncio.run(encryption.uses(settings))
    keys = encryption.states(settings, uses)
    _table(("KEY", "STATE", "MESSAGES"), *((k.id, k.state, str(k.messages)) for k in keys))
    if queues:
        in_use = {k.id for k in keys if k.state == "encrypts"}
        rows = [
            (use.key, use.pool or "-", *use.queue, str(use.messages))
            for use in uses
            if use.key not in in_use
        ]
        click.echo()
        _table(("KEY", "POOL", "KIND", "PROJECT", "NAME", "MESSAGES"), *sorted(rows))
    _refuse_if(
        f"{k.messages} messages need the key {k.id}, which is missing"
        for k in keys
        if k.state == "missing"
    )


@encryption.command("rotate")
@_with_settings("store")
def encryption_rotate(settings: Settings) -> None:
    """Make a key that encrypts from now on what comes, in the key file.

    Running servers notice within two seconds. What is there stays readable by the older keys.
    """
    from nusku import audit, keys

    path = keys.key_file(settings)
    if settings.encryption_keys:
        _refuse("encryption_keys is set: put another key in front of those, on all nodes")
    if path is None:
        _refuse("set key_file, or encryption_keys: there is no file beside a shared store")
    with audit.opened(settings) as trail:
        made = keys.rotate(path)
        if trail is not None:
            trail.command("encryption:rotate", made)
    click.echo(f"key {made} in {path} encrypts from now on")


@encryption.command("retire")
@click.argument("key", metavar="KEY")
@_with_settings("store")
def encryption_retire(settings: Settings, key: str) -> None:
    """Remove the KEY of this id from the key file, if no message needs it any more."""
    import asyncio

    from nusku import audit, encryption

    with audit.opened(settings) as trail:
        done = asyncio.run(encryption.retire(settings, key))
        if trail is not None:
            trail.command("encryption:retire", key)
    click.echo(done)


@main.group()
def key() -> None:
    """API keys, for `auth = key`.

    Works on the store, with a server running or without. Servers notice within two seconds.
    """


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """A length of time, such as 90d."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and unit in _UNITS_S):
        raise click.BadParameter(f"{text!r} is no time such as 90d, 12h, 30m or 45s")
    seconds = int(number[:12]) * _UNITS_S[unit]
    if not 0 < seconds <= TEN_YEARS_S:
        raise click.BadParameter(f"{text!r} is not between 1s and 3650d")
    return seconds


def _list_of(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@key.command("create")
@click.option("--project", metavar="ID", required=True, help="The project that it is for.")
@click.option("--roles", metavar="ROLES", default="", help="Its roles, apart by commas.")
@click.option("--user", metavar="NAME", default="", help="Who has it; its id if not given.")
@click.option("--ttl", metavar="TIME", callback=_seconds, help="How long it holds: 90d, 12h, 30m.")
@click.option("--note", metavar="TEXT", default="", help="What it is for.")
@_with_settings("store")
def key_create(
    settings: Settings, project: str, roles: str, user: str, ttl: int | None, note: str
) -> None:
    """Make a key, and print it: this once, as only its hash is kept.

    Clients send it as X-Auth-Token, or as Authorization: Bearer.
    """
    import asyncio

    from nusku import audit
    from nusku.auth import api_keys
    from nusku.storage.registry import opened_registry

    async def run() -> api_keys.NewKey:
        async with opened_registry(settings) as registry:
            return await api_keys.create(
                registry, project, _list_of(roles), user=user, note=note, ttl_s=ttl
            )

    with audit.opened(settings) as trail:
        made = asyncio.run(run())
        if trail is not None:
            trail.command("keys:create", f"{project}/{made.id}")
    expires_s = made.record.expires_s
    until = "until it is revoked" if expires_s is None else f"until {_when(expires_s)}"
    _notice(f"key {made.id} for project {project} holds {until}; it is not shown again")
    click.echo(made.text)


@key.command("list")
@click.option("--project", metavar="ID", help="Only those for this project.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
@_with_settings("store")
def key_list(settings: Settings, project: str | None, as_json: bool) -> None:
    """Show which keys there are, the oldest first. Times are UTC."""
    import asyncio
    import json
    import time

    from nusku.auth import api_keys
    from nusku.storage.registry import opened_registry

    async def run() -> dict[str, api_keys.KeyRecord]:
        async with opened_registry(settings) as registry:
            return await api_keys.page(registry)

    now_s = time.time()
    keys: list[dict[str, Any]] = [
        {
            "id": id_,
            "project": one.project,
            "roles": list(one.roles),
            "user": one.user or id_,
            "created": _when(one.created_s),
            "expires": None if one.expires_s is None else _when(one.expires_s),
            "expired": one.expires_s is not None and one.expires_s <= now_s,
            "note": one.note,
        }
        for id_, one in asyncio.run(run()).items()
        if project in {None, one.project}
    ]
    if as_json:
        click.echo(json.dumps(keys, indent=2, ensure_ascii=False))
        return
    rows = [
        (
            one["id"],
            one["project"],
            ",".join(one["roles"]) or "-",
            one["user"],
            one["created"],
            "expired" if one["expired"] else one["expires"] or "never",
            one["note"],
        )
        for one in keys
    ]
    _table(("ID", "PROJECT", "ROLES", "USER", "CREATED", "EXPIRES", "NOTE"), *rows)


def _table(*rows: Sequence[str]) -> None:
    """Print these in columns; the first is their head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _when(time_s: float) -> str:
    """A time of the wall clock, in seconds since the epoch."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@key.command("revoke")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_with_settings("store")
def key_revoke(settings: Settings, ids: tuple[str, ...]) -> None:
    """Let nobody in by these keys any more. An ID may be the key itself, too."""
    import asyncio

    from nusku import audit
    from nusku.auth import api_keys
    from nusku.storage.registry import opened_registry

    async def run(trail: audit.Audit | None) -> list[int]:
        unknown = []
        async with opened_registry(settings) as registry:
            for n, one in enumerate(ids, 1):
                id_ = await api_keys.revoke(registry, one)
                if not id_:
                    unknown.append(n)
                elif trail is not None:
                    trail.command("keys:revoke", id_)
        return unknown

    with audit.opened(settings) as trail:
        unknown = asyncio.run(run(trail))
    if unknown:
        places = ", ".join(map(str, unknown))  # since they may be keys themselves
        _refuse(f"there are no such keys: number {places} of those given; the others are revoked")


@main.group()
def quota() -> None:
    """How much projects may have and ask for; with a server running or without."""


_AMOUNTS = {
    "queues": "Queues and topics.",
    "messages": "Messages.",
    "bytes": "Bytes of messages, as they are stored.",
    "subscriptions": "Subscriptions.",
    "requests": "Requests a second.",
}


def _amount(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """A number, 0 for ``none``, -1 for ``default``; None where nothing is given."""
    words = {None: None, "none": 0, "default": -1}
    if text in words:
        return words[text]
    if not (text and text.isdecimal() and int(text[:20]) <= QUOTA_MAX):
        raise click.BadParameter(f"{text!r} is no number up to {QUOTA_MAX}, none or default")
    return int(text)


def _with_amounts(command: Callable[..., None]) -> Callable[..., None]:
    for name, what in reversed(_AMOUNTS.items()):
        command = click.option(f"--{name}", metavar="N", callback=_amount, help=what)(command)
    return command


@quota.command("set")
@click.argument("project")
@_with_amounts
@_with_settings("store")
def quota_set(settings: Settings, project: str, **amounts: int | None) -> None:
    """Say how much the project PROJECT may have. Servers heed it within two seconds.

    N may be `none` for no limit, and `default` for what the settings say of all projects. What is not
    named stays as it is.
    """
    import asyncio

    from nusku import audit
    from nusku.auth.names import legal_project
    from nusku.broker import limits
    from nusku.storage.registry import opened_registry

    changes = {name: n for name, n in amounts.items() if n is not None}
    if not changes:
        _refuse("say how much of what, such as --messages 10000")
    if not legal_project(project):
        _refuse(f"{project!r} is no project's id")

    async def run() -> None:
        async with opened_registry(settings) as registry:
            await limits.say(registry, project, changes)

    with audit.opened(settings) as trail:
        asyncio.run(run())
        if trail is not None:
            trail.command("quotas:set", project)


@quota.command("unset")
@click.argument("project")
@_with_settings("store")
def quota_unset(settings: Settings, project: str) -> None:
    """Let the project PROJECT have what the settings say of all projects."""
    import asyncio

    from nusku import audit
    from nusku.broker import limits
    from nusku.storage.registry import opened_registry

    async def run() -> None:
        async with opened_registry(settings) as registry:
            await limits.unsay(registry, project)

    with audit.opened(settings) as trail:
        asyncio.run(run())
        if trail is not None:
            trail.command("quotas:unset", project)


@quota.command("show")
@click.argument("project", required=False)
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@_with_settings("store")
def quota_show(settings: Settings, project: str | None, as_json: bool) -> None:
    """Show what is in force: for all projects of which something was said, or for PROJECT.

    What the settings say of all the others comes first, as `*`. A server may have other settings.
    """
    import asyncio
    import json

    from nusku.broker import limits
    from nusku.storage.registry import opened_registry

    async def run() -> dict[str, dict[str, int]]:
        async with opened_registry(settings) as registry:
            return await limits.in_force(registry, settings, project)

    found = asyncio.run(run())
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [
        (name, *(str(amounts[what] or "none") for what in _AMOUNTS))
        for name, amounts in found.items()
    ]
    _table(("PROJECT", *map(str.upper, _AMOUNTS)), *rows)
