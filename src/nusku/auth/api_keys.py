"""API keys: made and withdrawn by operators, kept in the registry as hashes.

A key is ``nsk_``, its id, ``_`` and its secret. The id is no secret: it finds the key and names it
to people. The secret has 238 random bits, so a plain hash of the key tells nobody what it is, and
salt or stretching, which passwords need, would add nothing but time to every request.
"""

import hmac
import math
import secrets
import string
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, NamedTuple

import msgspec
import structlog

from nusku.auth.names import legal_name, legal_project
from nusku.auth.scheme import Refused
from nusku.errors import Invalid
from nusku.model import Caller
from nusku.storage import Registry
from nusku.storage.registry import Mirror

log = structlog.get_logger("nusku.auth")

TABLE = "keys"
PREFIX = "nsk_"
NOTE_MAX = 256

_ID_LENGTH, _SECRET_LENGTH = 12, 40
_ID_END = len(PREFIX) + _ID_LENGTH
_ID_CHARACTERS = string.ascii_lowercase + string.digits
_SECRET_CHARACTERS = string.ascii_letters + string.digits


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a key. Times are seconds since the epoch; ``expires_s`` None is never."""

    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    project: str
    roles: tuple[str, ...] = ()
    user: str = ""
    note: str = ""
    created_s: float
    expires_s: float | None = None


class NewKey(NamedTuple):
    """A key that was just made; ``text`` is nowhere else."""

    id: str
    text: str
    record: KeyRecord


async def create(
    registry: Registry,
    project: str,
    roles: Sequence[str],
    *,
    user: str = "",
    note: str = "",
    ttl_s: int | None = None,
    now_s: Callable[[], float] = time.time,
) -> NewKey:
    """Make a key for a project. Raises Invalid.

    Args:
        registry: where it is kept.
        project: whom its requests are for.
        roles: names of the roles that they have.
        user: the user that they come from; the key's id if empty.
        note: what people will know it by.
        ttl_s: how long it is taken; None is for ever.
        now_s: the wall clock.
    """
    if not legal_project(project):
        raise Invalid("A project has 1 to 256 printable characters of Latin-1.")
    if not all(map(legal_name, roles)):
        raise Invalid("A role has 1 to 256 printable characters, and no comma.")
    if user and not legal_name(user):
        raise Invalid("A user has at most 256 printable characters, and no comma.")
    if len(note) > NOTE_MAX or not note.isprintable():
        raise Invalid(f"A note has at most {NOTE_MAX} printable characters.")
    id_ = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_CHARACTERS) for _ in range(_SECRET_LENGTH))
    text = f"{PREFIX}{id_}_{secret}"
    created_s = round(now_s(), 3)
    record = KeyRecord(
        digest=_digest(text).hex(),
        project=project,
        roles=tuple(dict.fromkeys(roles)),
        user=user,
        note=note,
        created_s=created_s,
        expires_s=None if ttl_s is None else created_s + ttl_s,
    )
    await registry.write(TABLE, id_, msgspec.json.encode(record))
    return NewKey(id_, text, record)


async def page(registry: Registry) -> dict[str, KeyRecord]:
    """All keys by their ids, also those that have expired, the oldest first."""
    keys = _records(await registry.all(TABLE))
    return dict(sorted(keys.items(), key=lambda one: (one[1].created_s, one[0])))


async def revoke(registry: Registry, key: str) -> str:
    """Withdraw a key, by its id or its text; return its id, empty when there is no such key."""
    id_ = key[len(PREFIX) : _ID_END] if key.startswith(PREFIX) else key
    if await registry.read(TABLE, id_) is None:
        return ""
    await registry.write(TABLE, id_, None)
    return id_


class _Key(NamedTuple):
    """What a request with this key needs."""

    digest: bytes
    caller: Caller


class ApiKeys:
    """``auth = key``. See :class:`nusku.auth.scheme.Scheme`.

    A key is known as soon as ``mirror`` has it, on every node, and gone as soon as it has not.
    """

    challenge = 'Bearer realm="nusku"'

    def __init__(self, mirror: Mirror, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._stored: Mapping[str, bytes] = {}
        self._keys: dict[str, _Key] = {}
        mirror.follow(TABLE, self._learn)

    def known(self, token: str) -> Caller | None:
        key = self._keys.get(token[len(PREFIX) : _ID_END])
        if (
            key is None
            or not hmac.compare_digest(_digest(token), key.digest)
            or self._now_s() >= key.caller.expires_s
        ):
            return None
        return key.caller

    async def caller(self, token: str) -> Caller | None:
        if not token.startswith(PREFIX):
            return None
        caller = self.known(token)
        if caller is None:
            id_ = token[len(PREFIX) : _ID_END]
            key = self._keys.get(id_)
            if key is None or not hmac.compare_digest(_digest(token), key.digest):
                raise Refused("unknown key")
            raise Refused(f"key {id_} has expired")
        return caller

    async def aclose(self) -> None:
        """Nothing is under way."""

    def _learn(self, stored: Mapping[str, bytes]) -> None:
        """Take over the table; what has not changed is not looked at again."""
        before = self._stored
        changed = {id_: value for id_, value in stored.items() if before.get(id_) != value}
        kept = {id_: key for id_, key in self._keys.items() if id_ in stored and id_ not in changed}
        self._keys = kept | {id_: _key(id_, one) for id_, one in _records(changed).items()}
        self._stored = stored
        if not stored:
            log.warning("there are no API keys, so none lets anybody in: `nusku key create`")


def _key(id_: str, record: KeyRecord) -> _Key:
    expires_s = math.inf if record.expires_s is None else record.expires_s
    caller = Caller(
        record.project,
        frozenset(record.roles),
        "key",
        user=record.user or id_,
        user_name=record.user or id_,
        expires_s=expires_s,
    )
    return _Key(bytes.fromhex(record.digest), caller)


def _records(stored: Mapping[str, bytes]) -> dict[str, KeyRecord]:
    """Those that can be read; one that cannot is none, so that it lets nobody in."""
    records = {}
    for id_, value in stored.items():
        try:
            records[id_] = msgspec.json.decode(value, type=KeyRecord)
        except msgspec.DecodeError:
            log.warning("a stored key cannot be read, and is not accepted", key=id_)
    return records


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()
