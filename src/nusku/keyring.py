"""Bodies at rest: AES-256-GCM, each queue under keys of its own (contract README, choice 8).

An encrypted body is, one behind the other,

=======  ==============  ===========================================================
bytes    what
=======  ==============  ===========================================================
2        mark            01 FF: where JSON is UTF-8, neither can stand in its place
4        key id          names the key of the ring, and is derived from it
16       salt            random, another one for each process and queue
12       nonce           random
…        ciphertext      as long as what was encrypted
16       tag
=======  ==============  ===========================================================

The cipher's key is HKDF-SHA256 of the ring's key, the salt, and the queue's kind, project and name,
so what is taken to another queue cannot be decrypted there. All before the nonce is authenticated
too. Random nonces are good for 2^32 messages under one key, and salts are taken anew before that.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from nusku.model import QueueKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MARK = b"\x01\xff"
_ID, _SALT, _NONCE, _TAG = 4, 16, 12, 16
MARKED = len(MARK) + _ID  # bytes of a body that say whether it is encrypted, and with which key
_HEAD = MARKED + _SALT
OVERHEAD = _HEAD + _NONCE + _TAG  # bytes that an encrypted body is longer
CACHED_MAX = 10_000  # ciphers that are kept, of those that encrypt and of those that decrypt
SALTED_MAX = 1 << 30  # messages that are encrypted with one salt
LOOKED_S = 5.0  # since the last look at the keys, after which nothing is encrypted without another

LIBRARY = "this server has not the library cryptography: install nusku[encryption]"
NO_KEYS = "this server has no encryption keys: set encryption_keys or key_file"


class Undecryptable(Exception):
    """It cannot be decrypted; ``key_id`` is that in it, as hexadecimal digits."""

    def __init__(self, reason: Literal["unknown_key", "tampered"], key_id: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.key_id = key_id


def is_encrypted(body: bytes) -> bool:
    """Whether this is an encrypted body, or was one: either half of the mark tells."""
    return body[:1] == b"\x01" or body[1:2] == b"\xff"


def key_id_of(body: bytes) -> str:
    """The id of the key that an encrypted body names: 8 hexadecimal digits."""
    return body[len(MARK) : MARKED].hex()


def key_id(key: str) -> str:
    """What a key is called: 8 hexadecimal digits that say nothing of it."""
    return sha256(b"nusku encryption key id\0" + key.encode()).digest()[:_ID].hex()


class Ring:
    """The keys that are known. The first one encrypts, all of them decrypt.

    Without keys, or where the library is missing, ``refusal`` says so, and nothing can be encrypted;
    ``without`` is what it says in the first case.
    ``reread`` is asked for the keys as they are now when a body names one that is unknown, and when
    something is to be encrypted and nobody has had a look for long: who stood still might use a key
    that was taken away meanwhile. It returns None when they are what they were.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        reread: Callable[[], Sequence[str] | None] = lambda: None,
        without: str = NO_KEYS,
    ) -> None:
        self._reread = reread
        self._without = without
        self._keys: dict[str, bytes] = {}
        self._first = b""
        self._looked_s = time.monotonic()
        self.refusal = without
        # By queue: the head of what is encrypted next, its cipher, and for how many more.
        self._encrypting: dict[QueueKey, tuple[bytes, AESGCM, Iterator[int]]] = {}
        self._decrypting: dict[tuple[QueueKey, bytes], AESGCM] = {}
        self.replace(keys)

    def __repr__(self) -> str:
        """Without keys."""
        return f"Ring({', '.join(self._keys)})"

    def refresh(self) -> None:
        """Have a look whether the keys are others now."""
        self._looked_s = time.monotonic()
        if (keys := self._reread()) is not None:
            self.replace(keys)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys; that of the one that encrypts is the first."""
        return tuple(self._keys)

    def replace(self, keys: Sequence[str]) -> None:
        """From now on these are the keys."""
        if keys:
            self.refusal = "" if _available() else LIBRARY
        else:
            self.refusal = self._without
        self._keys = {key_id(key): key.encode() for key in keys}
        self._first = bytes.fromhex(next(iter(self._keys), ""))
        self._encrypting.clear()
        self._decrypting.clear()

    def encrypt(self, queue: QueueKey, body: bytes) -> bytes:
        """The body as it is stored in this queue. Raises ValueError where there is a refusal."""
        if time.monotonic() - self._looked_s > LOOKED_S:
            self.refresh()
        found = self._encrypting.get(queue)
        if found is None or next(found[2], None) is None:
            found = self._encrypting[queue] = self._new(queue)
        head, cipher, _ = found
        nonce = os.urandom(_NONCE)
        return b"".join((head, nonce, cipher.encrypt(nonce, body, head)))

    def decrypt(self, queue: QueueKey, encrypted: bytes) -> bytes:
        """What was encrypted for this queue. Raises Undecryptable."""
        head = encrypted[:_HEAD]
        cipher = self._decrypting.get((queue, head)) or self._known(queue, head)
        try:
            return cipher.decrypt(
                encrypted[_HEAD : _HEAD + _NONCE], encrypted[_HEAD + _NONCE :], head
            )
        except (self._invalid(), ValueError):
            self._decrypting.pop((queue, head), None)  # the head may be what was tampered with
            raise Undecryptable("tampered", key_id_of(encrypted)) from None

    def _new(self, queue: QueueKey) -> "tuple[bytes, AESGCM, Iterator[int]]":
        if self.refusal:
            raise ValueError(self.refusal)
        head = MARK + self._first + os.urandom(_SALT)
        cipher = self._cipher(queue, head)
        _make_room(self._encrypting)
        return head, cipher, iter(range(SALTED_MAX))

    def _known(self, queue: QueueKey, head: bytes) -> "AESGCM":
        name = key_id_of(head)
        if len(head) < _HEAD or not head.startswith(MARK):
            raise Undecryptable("tampered", name)
        if name not in self._keys:
            self.refresh()  # somebody who knew earlier may have used a new one
        if name not in self._keys or self.refusal:
            raise Undecryptable("unknown_key", name)
        return self._cipher(queue, head)

    def _cipher(self, queue: QueueKey, head: bytes) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        # With lengths in front, so that no two queues have the same text.
        names = (part.encode() for part in queue)
        info = b"nusku body" + b"".join(len(name).to_bytes(2) + name for name in names)
        salt = head[MARKED:]
        key = HKDF(SHA256(), 32, salt, info).derive(self._keys[key_id_of(head)])
        _make_room(self._decrypting)
        cipher = self._decrypting[queue, head] = AESGCM(key)
        return cipher

    @staticmethod
    def _invalid() -> type[Exception]:
        from cryptography.exceptions import InvalidTag

        return InvalidTag


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= CACHED_MAX:
        del cache[next(iter(cache))]


def _available() -> bool:
    """Whether there is the library, which those who encrypt nothing need not have."""
    return find_spec("cryptography") is not None
