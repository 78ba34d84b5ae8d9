"""Keys in Redis: no two queues share one, and what is done in one step is in one slot."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from nusku.model import QueueKey, home
from nusku.storage.redis.keys import (
    KINDS,
    RECORDS,
    SCHEMA,
    Place,
    busy_set,
    key_of,
    lane_name,
    text,
)

pytestmark = pytest.mark.only("redis")

names = st.text(
    st.sampled_from("ab{}:/%.\x00é") | st.characters(exclude_categories=["Cs"]), max_size=6
)
keys = st.builds(QueueKey, st.sampled_from(KINDS), names, names)


@given(one=keys, other=keys)
@example(QueueKey("queue", "a:queue/b", "c"), QueueKey("queue", "a", "b:queue/c"))
@example(QueueKey("queue", "a}", "b"), QueueKey("queue", "a", "}b"))
@example(QueueKey("notice", "a", "queue/b"), QueueKey("queue", "a", "b"))
@example(QueueKey("queue", "a%7D", "b"), QueueKey("queue", "a}", "b"))
def test_no_two_queues_have_a_key_in_common(one: QueueKey, other: QueueKey) -> None:
    assert (lane_name(one) == lane_name(other)) == (one == other)
    mine = {f"{lane_name(one)}:h", f"{lane_name(one)}:z"}
    assert not mine & {
        f"{RECORDS}:h",
        f"{RECORDS}:z",
        SCHEMA,
        *(busy_set(k).decode() for k in KINDS),
    }


@given(key=keys)
def test_a_key_says_which_queue_it_belongs_to(key: QueueKey) -> None:
    assert key_of(lane_name(key)) == key


@pytest.mark.parametrize(
    "name", ["", "x", RECORDS, SCHEMA, "nusku:{p:q}:other/x", "nusku:{busy}:queue"]
)
def test_a_key_of_something_else_is_no_lane(name: str) -> None:
    assert key_of(name) is None


@given(one=keys, other=keys)
def test_queues_of_one_home_are_in_one_slot_and_others_have_tags_of_their_own(
    one: QueueKey, other: QueueKey
) -> None:
    mine, theirs = Place(lane_name(one)), Place(lane_name(other))
    together = (one.project, home(one)) == (other.project, home(other))
    assert (mine.tag == theirs.tag) == together
    if together:
        assert mine.slot == theirs.slot


@given(key=keys)
def test_slots_are_those_of_redis(key: QueueKey) -> None:
    place = Place(lane_name(key))
    assert (
        place.slot == key_slot(f"{place.name}:h".encode()) == key_slot(f"{place.name}:z".encode())
    )


def test_a_notice_is_beside_its_queue_and_the_failed_beside_the_deliveries() -> None:
    queue, notice = QueueKey("queue", "p", "a/b"), QueueKey("notice", "p", "queue/a/b")
    assert Place(lane_name(queue)).tag == Place(lane_name(notice)).tag
    some = [Place(lane_name(QueueKey(kind, "p", "s"))) for kind in ("delivery", "failed")]
    assert some[0].tag == some[1].tag != Place(lane_name(queue)).tag


@given(data=st.binary(max_size=70))
def test_bytes_are_sent_as_strings_of_messagepack(data: bytes) -> None:
    sent = bytes(text(data))
    assert sent.endswith(data)
    head = sent[: len(sent) - len(data)]
    length = head[0] - 0xA0 if len(head) == 1 else int.from_bytes(head[1:])
    assert length == len(data)
