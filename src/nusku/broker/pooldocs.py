"""What is stored of a pool, what of it may be seen, and what may be given for it."""

import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from nusku.config import Settings, masked
from nusku.config.rules import broken_rules
from nusku.config.settings import FIELDS, allowed_values
from nusku.errors import Invalid, InvalidBody, StoreRefused
from nusku.storage import sqlite_path
from nusku.storage.uri import split

HIDDEN = "***"
URI_MAX = FLAVOR_MAX = 255
NAME = r"^[^/\x00-\x1f\x7f-\x9f]{1,255}$"  # of a pool or flavor: no control characters
WEIGHT_MAX = 2**32 - 1

# Options that stand for the settings of the same names, for this pool alone.
OPTIONS = (
    "listen_store",
    "redis_replicas",
    "sqlite_synchronous",
    "store_connections",
    "store_timeout",
    "synchronous_standby",
    "unreliable",
)
_SECRET = ("password", "passwd", "secret", "token")

SCHEMES = (
    "sqlite",
    "postgresql",
    "postgres",
    "redis",
    "rediss",
    "redis+sentinel",
    "redis+cluster",
)


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of a pool.

    ``capabilities`` and ``identity`` are those that its store had when it was added, in the version
    ``since`` of the record: the pool may have had the same store before, and another pool in between.
    No queue is placed in one that is ``closing``, as its queues are being taken out of it; one that
    is ``gone`` is there no more, and only the number of its version goes on.
    """

    uri: str
    weight: int
    flavor: str | None = None
    options: dict[str, Any] = {}
    capabilities: tuple[str, ...] = ()
    identity: str = ""
    since: int = 0
    state: Literal["open", "closing", "gone"] = "open"

    def __repr__(self) -> str:
        """Without passwords."""
        return f"Document({masked(self.uri)!r}, weight={self.weight}, flavor={self.flavor!r})"


class Pool(msgspec.Struct, frozen=True):
    """A pool as it is shown, passwords as ``***``."""

    name: str
    uri: str
    weight: int
    flavor: str | None
    options: dict[str, Any]


def shown(name: str, pool: Document) -> Pool:
    """What of it may be seen."""
    options = {key: _hidden(key, value) for key, value in pool.options.items()}
    return Pool(name, masked(pool.uri), pool.weight, pool.flavor, options)


def _hidden(key: str, value: Any) -> Any:
    """An option without passwords: those in URIs, and what is called one."""
    if isinstance(value, dict):
        return {name: _hidden(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(key, inner) for inner in value]
    if isinstance(value, str):
        secret = any(word in key.lower() for word in _SECRET)
        return HIDDEN if secret and value else masked(value)
    return value


def uri_of(given: str, old: Document | None) -> str:
    """The URI that is meant: the shown form of the present one is the present one.

    Raises InvalidBody for another that has stars in place of its password.
    """
    if old is not None and given == masked(old.uri):
        return old.uri
    if HIDDEN in given:
        raise InvalidBody(f"'uri': {HIDDEN} stands for a password that is not shown; give it.")
    return given


def options_of(given: Mapping[str, Any], old: Document | None) -> dict[str, Any]:
    """The options that are meant; shown forms of present ones are the present ones."""
    present = old.options if old is not None else {}
    return {
        key: present[key] if key in present and value == _hidden(key, present[key]) else value
        for key, value in given.items()
    }


def told(pool: Document) -> dict[str, Any]:
    """Of the options those that mean something, by the names of settings.

    The service's own ``listen_store`` leads to its own store, so it is nobody else's.
    """
    return {"listen_store": ""} | {k: v for k, v in pool.options.items() if k in OPTIONS}


def check_name(what: str, name: str) -> None:
    """Raise Invalid for one that could not be told from another, or be written."""
    if not re.fullmatch(NAME, name):
        raise Invalid(f"The name of a {what} has 1 to 255 characters that can be printed.")


def check(pool: Document, own_uri: str, settings: Settings, *, own_shared: bool) -> None:
    """Raise InvalidBody for a URI or option that cannot be used, before anything is opened."""
    uri = pool.uri
    if len(uri) > URI_MAX:
        raise InvalidBody(f"'uri' has {len(uri)} characters; it may have {URI_MAX}.")
    if not uri.isprintable() or split(uri).scheme not in SCHEMES:
        raise InvalidBody(
            f"'uri' must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}."
        )
    for name, value in told(pool).items():
        try:
            msgspec.convert(value, FIELDS[name].type)
        except msgspec.ValidationError:
            raise InvalidBody(f"'options.{name}' must be {allowed_values(name)}.") from None
    for name, allowed, _ in broken_rules(msgspec.structs.replace(settings, **told(pool))):
        if name in pool.options:
            raise InvalidBody(f"'options.{name}' must be {allowed}.")
    if uri.startswith("sqlite:"):
        _check_file(uri, own_uri, own_shared=own_shared)


def _check_file(uri: str, own_uri: str, *, own_shared: bool) -> None:
    """A pool's file lies below the folder of the service's own: whoever may add pools must not
    be able to write wherever the server can.
    """
    if own_shared:
        raise InvalidBody(
            "'uri': an SQLite file belongs to one process, so it cannot be a pool of a service"
            " whose own store is shared by many."
        )
    try:
        file = absolute(sqlite_path(uri))
    except StoreRefused as error:
        raise InvalidBody(f"'uri': {error}") from None
    folder = absolute(sqlite_path(own_uri)).parent
    if not file.is_relative_to(folder):
        raise InvalidBody(
            f"'uri': the file of a pool must be below the folder of the service's own store,"
            f" {folder}."
        )


def absolute(path: Path) -> Path:
    """The path as it is written, without ``..``. Links are followed by those who made them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
