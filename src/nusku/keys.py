"""The keys that sign and encrypt: settings, else a file, which a store that is a file makes itself."""

import asyncio
import fcntl
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.keyring import LIBRARY, Ring, key_id
from nusku.storage import sqlite_path

log = structlog.get_logger("nusku.keys")

LOOK_S = 2.0  # between two looks at the key file
SHORT = 32  # characters; fewer can be guessed
NONE_IN_FILE = "key_file holds no key that encrypts: run `nusku encryption rotate`"

# One line for each key. Of those that encrypt the first one does, the others are for what is older.
_SIGNING, _ENCRYPTION = "signing = {}\n", "encryption = {}\n"
_KEY = "[0-9a-f]{64}"
KEPT_MAX = 40  # keys that encrypt in one file
_FILE = re.compile(
    f"{_SIGNING.format(f'({_KEY})')}((?:{_ENCRYPTION.format(_KEY)}){{0,{KEPT_MAX}}})"
)
_OURS = re.compile("^ *(signing|encryption) *=", re.MULTILINE)
_MOST = 4096  # bytes of a file, more than as many keys take


class Keys(NamedTuple):
    """What is in a key file."""

    signing: str
    encryption: tuple[str, ...]

    def text(self) -> str:
        lines = [_SIGNING.format(self.signing)]
        return "".join(lines + [_ENCRYPTION.format(key) for key in self.encryption])


def signing_key(settings: Settings) -> str:
    """The key that signs URLs: ``secret_key``, else the one in the key file.

    That of an SQLite store is made when it is not there, so the store should be open, and nobody
    else's. Empty where there is neither. Raises StoreRefused when the file cannot be used.
    """
    if settings.secret_key:
        if len(settings.secret_key) < SHORT:
            log.warning("secret_key is short and may be guessed", least_characters=SHORT)
        return settings.secret_key
    path = key_file(settings)
    return "" if path is None else _found(path, settings, "secret_key").signing


def ring(settings: Settings) -> Ring:
    """The keys that encrypt: ``encryption_keys``, else those in the key file; as
    :func:`signing_key`.

    Where they are in a file the ring can look whether it was changed. In a file that is set none is
    made, since those who share a store need the same.
    """
    if settings.encryption_keys:
        made = Ring(settings.encryption_keys)
        if made.refusal == LIBRARY:
            raise StoreRefused(f"encryption_keys is set, but {LIBRARY}")
        if len(made.ids) < len(set(settings.encryption_keys)):
            raise StoreRefused("two of encryption_keys have one id; make another key")
        return made
    path = key_file(settings)
    if path is None:
        return Ring()
    watched = _Watched(path)
    found = _found(path, settings, "encryption_keys")
    if not found.encryption and not settings.key_file:  # made before there was encryption
        found = _change(path, _with_one)
        log.info("made a key that encrypts", file=str(path), key=key_id(found.encryption[0]))
    watched.known = found.encryption
    return Ring(found.encryption, watched.changed, NONE_IN_FILE)


def check_keys(settings: Settings) -> None:
    """Raise StoreRefused if a start would for want of keys. Changes nothing."""
    path = key_file(settings)
    if path is None or (settings.secret_key and settings.encryption_keys):
        return
    if _read(path) is None and settings.key_file:
        raise _missing(path)


def known(settings: Settings) -> tuple[str, ...]:
    """The ids of the keys that encrypt as they are now; that of the one in use is the first.

    Makes none. Raises StoreRefused.
    """
    encryption: Sequence[str] = settings.encryption_keys
    if not encryption and (path := key_file(settings)) and (found := _read(path)):
        encryption = found.encryption
    return tuple(map(key_id, encryption))


def key_file(settings: Settings) -> Path | None:
    """Where the keys are; None unless it is set, or the store a file itself. Raises StoreRefused."""
    if settings.key_file:
        return Path(settings.key_file).absolute()  # a link may lead to another file tomorrow
    if not settings.store.startswith("sqlite:"):
        return None
    return Path(f"{sqlite_path(settings.store).resolve()}.key")


@asynccontextmanager
async def kept(ring: Ring) -> AsyncIterator[None]:
    """Look again and again whether the keys were changed."""

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            ring.refresh()

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def rotate(path: Path) -> str:
    """From now on another key encrypts, which is made; return its id. Makes a missing file.

    Raises StoreRefused, also where there are as many as a file can hold.
    """
    if _read(path) is not None:
        return key_id(_change(path, _with_another).encryption[0])
    with _failures(path):
        _make(path)
    return key_id(_change(path, _with_one).encryption[0])


def retire(path: Path, name: str) -> bool:
    """Remove the key of this id; False if it is not in the file, or is the one that encrypts."""
    found = _read(path)
    if found is None or name not in map(key_id, found.encryption[1:]):
        return False

    def without(keys: Keys) -> Keys:
        first, *others = keys.encryption
        return keys._replace(encryption=(first, *(k for k in others if key_id(k) != name)))

    _change(path, without)
    return True


def _with_one(keys: Keys) -> Keys:
    return keys if keys.encryption else _with_another(keys)


def _with_another(keys: Keys) -> Keys:
    if len(keys.encryption) >= KEPT_MAX:
        raise StoreRefused(
            f"the key file holds {KEPT_MAX} keys that encrypt, as many as it can: retire some first"
        )
    return keys._replace(encryption=(secrets.token_hex(32), *keys.encryption))


class _Watched:
    """A key file that somebody may change; to be made before the keys that are ``known`` are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: tuple[str, ...] = ()
        self._stamp = _stamp(path)  # of the file that was last read, or is about to be
        self._complaint: object = None

    def changed(self) -> Sequence[str] | None:
        """The keys that encrypt, if they are others than they were last time."""
        stamp = _stamp(self._path)  # before it is read, so that no later change is missed
        if stamp is not None and stamp == self._stamp:
            return None
        try:
            found = _read(self._path)
        except StoreRefused as error:
            self._refused(stamp, str(error))
            return None
        if found is None or (self.known and not found.encryption):
            self._refused(stamp, f"{self._path} has none that encrypts")
            return None
        self._stamp, self._complaint = stamp, None
        if found.encryption == self.known:
            return None
        self.known = found.encryption
        log.info("the keys that encrypt were changed", keys=list(map(key_id, found.encryption)))
        return found.encryption

    def _refused(self, *complaint: object) -> None:
        """It is read again at the next look, but this is said once of each file."""
        if complaint != self._complaint:
            log.error("the keys stay as they were", reason=complaint[-1])
        self._complaint = complaint


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Another one when the file is another one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _found(path: Path, settings: Settings, instead: str) -> Keys:
    """The keys in the file, which is made where it is to be. ``instead``: what may be set."""
    if settings.key_file:
        found = _read(path)
        if found is None:
            raise _missing(path)
        return found
    try:
        found = _read(path)
        if found is None:
            _make(path)
            found = _read(path)
    except OSError as error:
        raise StoreRefused(
            f"key file {path} cannot be made: {error.strerror}; or set {instead}"
        ) from None
    if found is None:
        raise StoreRefused(f"key file {path} cannot be used: it is a link to nothing")
    return found


def _missing(path: Path) -> StoreRefused:
    return StoreRefused(
        f"key file {path} is not there; restore it, or make one by `nusku encryption rotate`"
    )


def _read(path: Path) -> Keys | None:
    """The keys in the file; None when there is no file. Raises StoreRefused."""
    try:
        # Opening a pipe must not wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreRefused(f"key file {path} cannot be read: {error.strerror}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        found = os.read(descriptor, _MOST) if stat.S_ISREG(mode) else b""
    finally:
        os.close(descriptor)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StoreRefused(
            f"key file {path} can be used by others than its owner: chmod 600 it, or remove it if"
            " they may have read it"
        )
    text = found.decode("latin-1")
    keys = _FILE.fullmatch(text)
    if keys is None and _OURS.search(text):
        raise StoreRefused(
            f"key file {path} is not as it should be: a line `signing = …`, then up to {KEPT_MAX}"
            " lines `encryption = …`, each with 64 digits from 0-9a-f; mend it, or restore it from"
            " a backup, since what was encrypted with keys in it needs them"
        )
    if keys is None:
        raise StoreRefused(
            f"key file {path} holds no key; restore it from a backup, or remove it: a new key is"
            " made, and what was signed or encrypted with the old one is void"
        )
    encryption = tuple(line.removeprefix("encryption = ") for line in keys[2].splitlines())
    if len(set(map(key_id, encryption))) < len(encryption):
        raise StoreRefused(f"key file {path} has a key twice")
    return Keys(keys[1], encryption)


def _make(path: Path) -> None:
    """Put new keys there, as a whole or not at all, and never in the place of others."""
    keys = _with_another(Keys(secrets.token_hex(32), ()))
    # Somebody else may have been faster, and theirs count.
    with _unfinished(path, keys) as unfinished, suppress(FileExistsError):
        path.hardlink_to(unfinished)
        log.info("made keys that sign and encrypt", file=str(path))


def _change(path: Path, change: Callable[[Keys], Keys]) -> Keys:
    """Put other keys in the place of these, as a whole or not at all, and one after the other.

    The file keeps its owner. Raises StoreRefused.
    """
    path = path.resolve()
    with _failures(path), _locked(path) as (uid, gid):
        found = _read(path)
        if found is None:
            raise _missing(path)
        new = change(found)
        if new == found:
            return found
        with _unfinished(path, new) as unfinished:
            if (os.getuid(), os.getgid()) != (uid, gid):
                os.chown(unfinished, uid, gid)
            unfinished.replace(path)
        return new


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreRefused(f"key file {path} cannot be changed: {error.strerror}") from None


@contextmanager
def _locked(path: Path) -> Iterator[tuple[int, int]]:
    """Keep others from changing it; gives its owner and group."""
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = os.fstat(descriptor)
            if os.path.samestat(held, path.stat()):  # else it was replaced while we waited
                yield held.st_uid, held.st_gid
                return
        finally:
            os.close(descriptor)


@contextmanager
def _unfinished(path: Path, keys: Keys) -> Iterator[Path]:
    """A file with these keys beside the path, which is to be brought there inside."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, keys.text().encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
