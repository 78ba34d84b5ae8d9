"""Keys that nobody configured: made at the first start, and kept in a file beside the store."""

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.storage import sqlite_path

log = structlog.get_logger("nusku.keys")

SHORT = 32  # characters; fewer can be guessed

# One line for each key, so that there may be others.
_LINE = "signing = {}\n"
_FILE = re.compile(_LINE.format("([0-9a-f]{64})"))


def signing_key(settings: Settings) -> str:
    """The key that signs URLs: ``secret_key``, else the one beside an SQLite store.

    The latter is made when it is not there, so the store should be open, and nobody else's. Empty
    where there is neither. Raises StoreRefused when the file cannot be used.
    """
    if settings.secret_key:
        if len(settings.secret_key) < SHORT:
            log.warning("secret_key is short and may be guessed", least_characters=SHORT)
        return settings.secret_key
    path = key_file(settings)
    if path is None:
        return ""
    try:
        key = _read(path)
        if not key:
            _make(path)
            key = _read(path)
    except OSError as error:
        raise StoreRefused(
            f"key file {path} cannot be made: {error.strerror}; or set secret_key"
        ) from None
    if not key:
        raise StoreRefused(f"key file {path} cannot be used: it is a link to nothing")
    return key


def check_key(settings: Settings) -> None:
    """Raise StoreRefused if a start would for want of the key. Changes nothing."""
    path = None if settings.secret_key else key_file(settings)
    if path is not None:
        _read(path)


def key_file(settings: Settings) -> Path | None:
    """Where the keys of this store are; None unless it is a file itself. Raises StoreRefused."""
    if not settings.store.startswith("sqlite:"):
        return None
    return Path(f"{sqlite_path(settings.store).resolve()}.key")


def _read(path: Path) -> str:
    """The key in the file; empty when there is no file. Raises StoreRefused."""
    try:
        # Opening a pipe must not wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StoreRefused(f"key file {path} cannot be read: {error.strerror}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        found = os.read(descriptor, 4096) if stat.S_ISREG(mode) else b""
    finally:
        os.close(descriptor)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StoreRefused(
            f"key file {path} can be used by others than its owner: chmod 600 it, or remove it if"
            " they may have read it"
        )
    key = _FILE.fullmatch(found.decode("latin-1"))
    if key is None:
        raise StoreRefused(
            f"key file {path} holds no key; restore it from a backup, or remove it: a new key is"
            " made, and what was signed with the old one is void"
        )
    return key[1]


def _make(path: Path) -> None:
    """Put a new key there, as a whole or not at all, and never in the place of another."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, _LINE.format(secrets.token_hex(32)).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileExistsError):  # somebody else was faster, and theirs counts
            path.hardlink_to(unfinished)
            log.info("made a key that signs URLs", file=str(path))
    finally:
        unfinished.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
