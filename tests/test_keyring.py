"""Encrypted bodies: what decrypts them, and that nothing else does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nusku.keyring import MARK, OVERHEAD, Ring, Undecryptable, is_encrypted, key_id, key_id_of
from nusku.model import Kind, QueueKey

OLD, NEW = "old key " * 4, "new key " * 4
Q = QueueKey("queue", "p", "q")
BODY = b'{"event": "x"}'

kinds: st.SearchStrategy[Kind] = st.sampled_from(["queue", "topic", "notice", "delivery", "failed"])
queues = st.builds(QueueKey, kinds, st.text(max_size=8), st.text("aq./-", max_size=8))


def refused(ring: Ring, queue: QueueKey, encrypted: bytes) -> Undecryptable:
    with pytest.raises(Undecryptable) as refusal:
        ring.decrypt(queue, encrypted)
    return refusal.value


@given(queues, st.binary(max_size=300))
def test_what_was_encrypted_can_be_decrypted_also_by_another_process(
    queue: QueueKey, body: bytes
) -> None:
    encrypted = Ring([OLD]).encrypt(queue, body)
    assert is_encrypted(encrypted)
    assert len(encrypted) == len(body) + OVERHEAD
    assert body not in encrypted[2:] or len(body) < 4
    assert Ring([OLD]).decrypt(queue, encrypted) == body


def test_nothing_is_encrypted_twice_in_the_same_way() -> None:
    ring = Ring([OLD])
    encrypted = {ring.encrypt(Q, BODY) for _ in range(100)} | {Ring([OLD]).encrypt(Q, BODY)}
    assert len(encrypted) == 101
    nonces = {one[22:34] for one in encrypted}
    assert len(nonces) == 101
    assert len({one[:22] for one in encrypted}) == 2  # a salt for each process


@given(queues, queues)
def test_it_is_for_one_queue(one: QueueKey, other: QueueKey) -> None:
    ring = Ring([OLD])
    encrypted = ring.encrypt(one, BODY)
    if one == other:
        assert ring.decrypt(other, encrypted) == BODY
    else:
        assert refused(ring, other, encrypted).reason == "tampered"


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF, 0x7A])
def test_no_byte_of_it_can_be_another_one(change: int) -> None:
    ring = Ring([OLD])
    encrypted = ring.encrypt(Q, BODY)
    for at in range(len(encrypted)):
        altered = bytearray(encrypted)
        altered[at] ^= change
        # It is not taken for clear either, whatever the first byte is now.
        assert is_encrypted(bytes(altered))
        refused(ring, Q, bytes(altered))
    assert ring.decrypt(Q, encrypted) == BODY


def test_no_part_of_it_can_be_missing_or_added() -> None:
    ring = Ring([OLD])
    encrypted = ring.encrypt(Q, BODY)
    for end in range(1, len(encrypted)):
        assert is_encrypted(encrypted[:end])
        refused(ring, Q, encrypted[:end])
    refused(ring, Q, encrypted + b"\0")
    refused(ring, Q, MARK)


@given(st.text(min_size=1) | st.integers() | st.none() | st.booleans() | st.lists(st.text()))
def test_no_json_looks_like_it(value: object) -> None:
    from msgspec import json

    assert not is_encrypted(json.encode(value))
    assert not is_encrypted(b" " + json.encode(value))
    assert not is_encrypted(b"\t\n" + json.encode(value))


def test_another_key_opens_nothing() -> None:
    encrypted = Ring([OLD]).encrypt(Q, BODY)
    refusal = refused(Ring([NEW]), Q, encrypted)
    assert (refusal.reason, refusal.key_id) == ("unknown_key", key_id(OLD))
    assert key_id_of(encrypted) == key_id(OLD)


def test_the_first_key_encrypts_and_all_of_them_decrypt() -> None:
    ring = Ring([OLD])
    before = ring.encrypt(Q, BODY)
    ring.replace([NEW, OLD])
    after = ring.encrypt(Q, BODY)
    assert ring.ids == (key_id(NEW), key_id(OLD))
    assert (key_id_of(before), key_id_of(after)) == (key_id(OLD), key_id(NEW))
    assert [ring.decrypt(Q, one) for one in (before, after)] == [BODY, BODY]
    ring.replace([NEW])
    assert ring.decrypt(Q, after) == BODY
    assert refused(ring, Q, before).reason == "unknown_key"


def test_a_key_that_is_unknown_may_be_a_new_one() -> None:
    """Somebody else uses it already, and it is asked for where keys come from."""
    encrypted = Ring([NEW, OLD]).encrypt(Q, BODY)
    asked = 0

    def reread() -> Sequence[str] | None:
        nonlocal asked
        asked += 1
        return [NEW, OLD] if asked == 2 else None

    ring = Ring([OLD], reread)
    assert refused(ring, Q, encrypted).reason == "unknown_key"
    assert ring.decrypt(Q, encrypted) == BODY
    assert ring.decrypt(Q, encrypted) == BODY
    assert asked == 2


def test_a_salt_is_for_so_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nusku.keyring.SALTED_MAX", 3)
    ring = Ring([OLD])
    encrypted = [ring.encrypt(Q, BODY) for _ in range(10)]
    assert len({one[6:22] for one in encrypted}) == 3
    assert [ring.decrypt(Q, one) for one in encrypted] == [BODY] * 10


def test_many_queues_and_ciphers_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nusku.keyring.CACHED_MAX", 3)
    ring = Ring([OLD])
    queues = [Q._replace(name=f"{n}") for n in range(9)]
    encrypted = [(q, ring.encrypt(q, BODY)) for q in queues]
    assert [ring.decrypt(q, one) for q, one in encrypted] == [BODY] * 9
    assert len(ring._encrypting) == len(ring._decrypting) == 3


def test_without_keys_it_says_what_to_set() -> None:
    ring = Ring()
    assert "set encryption_keys or key_file" in ring.refusal
    with pytest.raises(ValueError, match="no encryption keys"):
        ring.encrypt(Q, BODY)
    assert refused(ring, Q, Ring([OLD]).encrypt(Q, BODY)).reason == "unknown_key"


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    encrypted = Ring([OLD]).encrypt(Q, BODY)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    ring = Ring([OLD])
    assert "install nusku[encryption]" in ring.refusal
    assert refused(ring, Q, encrypted).reason == "unknown_key"


def test_keys_are_not_shown() -> None:
    ring = Ring([OLD, NEW])
    ring.encrypt(Q, BODY)
    assert repr(ring) == f"Ring({key_id(OLD)}, {key_id(NEW)})"
    assert OLD not in str(vars(refused(ring, Q, b"\x01\xff")))
