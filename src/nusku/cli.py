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
