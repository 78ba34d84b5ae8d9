"""Subscriptions to queues and topics: make, list, show, change, delete, confirm (contract, 6, 8)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.live import QUEUES, TOPICS, Api, LiveServer, expect, next_link, pages
from tests.subscribing import HOOK, Subscriptions

REFUSED = "Invalid API request"
INVALID = "Invalid request body"
ID = re.compile(r"[0-9a-f]{24}")
UNKNOWN = "57692ab13990b48c644bb7e6"
MEMBERS = {"id", "source", "subscriber", "ttl", "age", "options", "confirmed"}
SECRET = "whsec_" + "c2VjcmV0" * 4
OTHER_SECRET = "whsec_" + "b3RoZXJz" * 4


@pytest.fixture
def subscriptions(either: Api) -> Subscriptions:
    return Subscriptions(either)


# -- make ------------------------------------------------------------------------------------------


def test_a_subscription_is_made_with_its_queue(subscriptions: Subscriptions) -> None:
    answer = subscriptions.create(ttl=90, options={"subject": "news", "mine": [1]})
    created = expect(answer, 201)
    assert set(created) == {"subscription_id"}
    assert ID.fullmatch(created["subscription_id"])
    assert answer.headers["Location"] == subscriptions.path()
    assert subscriptions.api.names() == ["q"]
    shown = subscriptions.shown(created["subscription_id"])
    age = shown.pop("age")
    assert isinstance(age, int)
    assert 0 <= age < 30
    assert shown == {
        "id": created["subscription_id"],
        "source": "q",
        "subscriber": HOOK,
        "ttl": 90,
        "options": {"subject": "news", "mine": [1]},
        "confirmed": False,
    }


@pytest.mark.parametrize("fields", [{}, {"ttl": None, "options": None}, {"unknown": 1, "id": "x"}])
def test_what_is_not_given_has_defaults(
    fields: dict[str, Any], subscriptions: Subscriptions
) -> None:
    shown = subscriptions.shown(subscriptions.made(**fields))
    assert set(shown) == MEMBERS
    assert (shown["ttl"], shown["options"], shown["confirmed"]) == (3600, {}, False)


@pytest.mark.parametrize(
    "subscriber",
    [
        "http://hooks.example",
        "https://hooks.example:8443/a/b?c=d&e=%20",
        "HTTPS://Hooks.Example/CASE",
        "http://93.184.216.34/hook",
        "mailto:user@hooks.example",
        "mailto:user@hooks.example?subject=hello",
    ],
)
def test_a_subscriber_is_shown_as_it_was_given(
    subscriber: str, subscriptions: Subscriptions
) -> None:
    assert subscriptions.shown(subscriptions.made(subscriber))["subscriber"] == subscriber


def test_subscribers_are_compared_byte_by_byte(subscriptions: Subscriptions) -> None:
    spellings = ["http://hooks.example/a", "HTTP://hooks.example/a", "http://Hooks.example/a"]
    ids = [subscriptions.made(spelling) for spelling in spellings]
    assert len(set(ids)) == 3
    assert subscriptions.ids() == ids


def test_making_it_again_changes_nothing_until_it_is_confirmed(
    subscriptions: Subscriptions,
) -> None:
    id_ = subscriptions.made(ttl=90, options={"a": 1})
    for fields in ({}, {"ttl": 120}, {"options": {"b": 2}}):
        again = subscriptions.create(**fields)
        assert expect(again, 201) == {"subscription_id": id_}
        assert again.headers["Location"] == subscriptions.path()
    shown = subscriptions.shown(id_)
    assert (shown["ttl"], shown["options"]) == (90, {"a": 1})
    expect(subscriptions.confirm(id_), 204)
    again = subscriptions.create(ttl=120)
    expect(again, 409, "Resource conflict")
    assert again.headers["Location"] == subscriptions.path()
    assert subscriptions.ids() == [id_]


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ({}, "Missing parameter"),
        ({"ttl": 60, "options": {}}, "Missing parameter"),
        ({"subscriber": None}, "Missing parameter"),
        ({"subscriber": ""}, ""),
        ({"subscriber": 1}, ""),
        ({"subscriber": True}, ""),
        ({"subscriber": [HOOK]}, ""),
        ({"subscriber": {}}, ""),
        ({"subscriber": "fake"}, "must be supported in the list"),
        ({"subscriber": "ftp://hooks.example"}, "must be supported in the list"),
        ({"subscriber": "trust+ftp://hooks.example"}, "must be supported in the list"),
        ({"subscriber": "://hooks.example"}, "must be supported in the list"),
        ({"subscriber": "http"}, "must be supported in the list"),
        ({"subscriber": "http://"}, ""),
        ({"subscriber": "http:///hook"}, ""),
        ({"subscriber": "http://user:word@hooks.example/"}, ""),
        ({"subscriber": "http://hooks.example/#part"}, ""),
        ({"subscriber": "http://hooks.example/a b"}, ""),
        ({"subscriber": "http://hooks.example/\r\nHost: x"}, ""),
        ({"subscriber": "http://hooks.example/" + "a" * 2100}, ""),
        ({"subscriber": "mailto:"}, ""),
        ({"subscriber": "mailto:a@b.example,c@d.example"}, ""),
        ({"subscriber": HOOK, "options": []}, "must be a dict"),
        ({"subscriber": HOOK, "options": ""}, "must be a dict"),
        ({"subscriber": HOOK, "options": "a"}, "must be a dict"),
        ({"subscriber": HOOK, "options": 0}, "must be a dict"),
        ({"subscriber": HOOK, "options": [1]}, "must be a dict"),
        ({"subscriber": HOOK, "ttl": "60"}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": ""}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": []}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": 60.5}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": 60.0}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": True}, "60"),
        ({"subscriber": HOOK, "ttl": 0}, "60"),
        ({"subscriber": HOOK, "ttl": -1}, "60"),
        ({"subscriber": HOOK, "ttl": 59}, "60"),
        ({"subscriber": HOOK, "ttl": 9223372036854775807}, "ttl"),
        ({"subscriber": HOOK, "ttl": 253_402_300_799}, "ttl"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_but_the_queue_is_made(
    document: dict[str, Any], fragment: str, subscriptions: Subscriptions
) -> None:
    answer = subscriptions.post(document)
    description = expect(answer, 400, REFUSED)["description"]
    assert fragment in description
    assert "Location" not in answer.headers
    assert subscriptions.ids() == []
    assert subscriptions.api.names() == ["q"]


@pytest.mark.parametrize(
    "options",
    [
        {"post_headers": []},
        {"post_headers": {"X-Number": 1}},
        {"post_headers": {"X-A": "a\r\nX-B: b"}},
        {"post_headers": {"X A": "a"}},
        {"post_headers": {"": "a"}},
        {"post_headers": {"Host": "other.example"}},
        {"post_headers": {"content-length": "1"}},
        {"post_headers": {"X-Auth-Token": "t"}},
        {"post_data": {"a": 1}},
        {"post_data": 1},
        {"_retry_policy": []},
        {"_retry_policy": {"minimum_delay": "5"}},
        {"_retry_policy": {"minimum_delay": 30, "maximum_delay": 31}},
        {"_retry_policy": {"retry_backoff_function": "none"}},
        {"_dead_letter_queue": "bad@name"},
        {"_dead_letter_queue": 1},
        {"from": 1},
        {"from": "a@b.example\r\nBcc: c@d.example"},
        {"subject": ["a"]},
        {"subject": "a\nb"},
        {"trust_id": 5},
        {"_cloudevents": "batched"},
        {"_cloudevents": True},
        {"_cloudevents": "binary", "post_data": "x"},
        {"_signing": "secret"},
        {"_signing": "whsec_c2hvcnQ="},
        {"_signing": []},
        {"_signing": [SECRET, OTHER_SECRET, SECRET]},
        {"_signing": [SECRET, 1]},
        {"_signing": 1},
    ],
    ids=str,
)
def test_options_that_mean_something_are_checked(
    options: dict[str, Any], subscriptions: Subscriptions
) -> None:
    description = expect(subscriptions.create(options=options), 400, REFUSED)["description"]
    assert next(iter(options)) in description
    id_ = subscriptions.made(options={"kept": True})
    expect(subscriptions.patch(id_, {"options": options}), 400, REFUSED)
    expect(subscriptions.patch(UNKNOWN, {"options": options}), 400, REFUSED)
    assert subscriptions.shown(id_)["options"] == {"kept": True}


def test_an_options_secret_is_not_repeated_when_it_is_refused(
    subscriptions: Subscriptions,
) -> None:
    answer = subscriptions.create(options={"_signing": "whsec_hush hush"})
    assert "hush" not in expect(answer, 400, REFUSED)["description"]


@pytest.mark.parametrize(
    "document", ["", "[]", "[1]", '"text"', "1", "null", "{", "   ", '{"ttl": 9223372036854775808}']
)
def test_a_body_that_is_no_object_is_refused(document: str, subscriptions: Subscriptions) -> None:
    path = subscriptions.path()
    title = INVALID if document else REFUSED
    expect(subscriptions.api.send("POST", path, document), 400, title)
    assert subscriptions.ids() == []


def test_without_a_body_the_subscriber_is_missing(subscriptions: Subscriptions) -> None:
    answer = subscriptions.api.request("POST", subscriptions.path())
    assert "Missing parameter" in expect(answer, 400, REFUSED)["description"]


def test_malformed_json_could_not_be_parsed(subscriptions: Subscriptions) -> None:
    answer = subscriptions.api.send("POST", subscriptions.path(), "{")
    assert "body could not be parsed" in expect(answer, 400, INVALID)["description"]
    assert subscriptions.api.names() == []


def test_the_body_has_a_limit(narrow: Api) -> None:
    subscriptions = Subscriptions(narrow)
    id_ = subscriptions.made("http://a.example")
    long = {"subscriber": "http://hooks.example/" + "a" * 64}
    assert "64 bytes" in expect(subscriptions.post(long), 400, REFUSED)["description"]
    expect(subscriptions.patch(id_, long), 400, REFUSED)
    expect(subscriptions.confirm(id_, {"confirmed": True, "x": "a" * 64}), 400, REFUSED)
    expect(subscriptions.act(id_, "replay", json={"ids": ["a" * 64]}), 400, REFUSED)


def test_the_lowest_ttl_and_a_long_one_are_fine(subscriptions: Subscriptions) -> None:
    for ttl in (60, 315_360_000):
        id_ = subscriptions.made(f"http://hooks.example/{ttl}", ttl=ttl)
        assert subscriptions.shown(id_)["ttl"] == ttl


def test_kinds_of_subscribers_can_be_turned_off(shared_server: Callable[..., LiveServer]) -> None:
    subscriptions = Subscriptions(shared_server(subscriber_types=("https",)).api())
    for subscriber in ("http://hooks.example", "mailto:a@b.example", "trust+https://hooks.example"):
        answer = subscriptions.create(subscriber)
        assert "must be supported in the list" in expect(answer, 400, REFUSED)["description"]
    subscriptions.made("https://hooks.example")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
)
def test_an_address_that_is_not_to_be_told_is_refused_at_once(
    host: str, subscriptions: Subscriptions
) -> None:
    answer = subscriptions.create(f"http://{host}:8080/")
    assert "subscriber_allow" in expect(answer, 400, REFUSED)["description"]
    id_ = subscriptions.made()
    expect(subscriptions.patch(id_, {"subscriber": f"http://{host}:8080/"}), 400, REFUSED)


def test_a_private_address_is_refused_and_the_setting_named(subscriptions: Subscriptions) -> None:
    answer = subscriptions.create("http://10.1.2.3/")
    assert "subscriber_private" in expect(answer, 400, REFUSED)["description"]


# -- signing secrets -------------------------------------------------------------------------------


def test_a_secret_that_is_made_is_told_once(subscriptions: Subscriptions) -> None:
    created = expect(subscriptions.create(options={"_signing": True, "a": 1}), 201)
    assert set(created) == {"subscription_id", "signing_secret"}
    secret = created["signing_secret"]
    assert secret.startswith("whsec_")
    id_ = created["subscription_id"]
    assert subscriptions.shown(id_)["options"] == {"_signing": True, "a": 1}
    assert secret not in subscriptions.get(id_).text + subscriptions.page().text
    again = expect(subscriptions.create(options={"_signing": True}), 201)
    assert again == {"subscription_id": id_}


@pytest.mark.parametrize("given", [SECRET, [SECRET], [SECRET, OTHER_SECRET]], ids=str)
def test_secrets_that_are_given_are_never_told(given: Any, subscriptions: Subscriptions) -> None:
    answer = subscriptions.create(options={"_signing": given})
    id_ = expect(answer, 201)["subscription_id"]
    assert set(answer.json()) == {"subscription_id"}
    assert subscriptions.shown(id_)["options"] == {"_signing": True}
    told = subscriptions.get(id_).text + subscriptions.page().text
    assert SECRET not in told
    assert OTHER_SECRET not in told


@pytest.mark.parametrize("given", [False, None])
def test_signing_is_off_unless_it_is_asked_for(given: Any, subscriptions: Subscriptions) -> None:
    created = expect(subscriptions.create(options={"_signing": given}), 201)
    assert set(created) == {"subscription_id"}
    assert not subscriptions.shown(created["subscription_id"])["options"].get("_signing")


# -- list ------------------------------------------------------------------------------------------


@pytest.fixture
def fifteen(subscriptions: Subscriptions) -> list[str]:
    return [subscriptions.made(f"http://hooks.example/{n}", options={"n": n}) for n in range(15)]


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(1, [1] * 15), (5, [5, 5, 5]), (10, [10, 5]), (15, [15]), (20, [15]), (None, [10, 5])],
)
def test_all_are_listed_along_the_links(
    limit: int | None, sizes: list[int], subscriptions: Subscriptions, fifteen: list[str]
) -> None:
    query = f"?limit={limit}" if limit else ""
    seen = [
        page["subscriptions"] for page in pages(subscriptions.api, subscriptions.path() + query)
    ]
    assert [len(each) for each in seen] == [*sizes, 0]
    listed = [one for page in seen for one in page]
    assert [one["id"] for one in listed] == fifteen == sorted(fifteen)
    for one in listed:
        assert set(one) == MEMBERS
        assert {**one, "age": 0} == {**subscriptions.shown(one["id"]), "age": 0}


def test_a_link_carries_limit_and_marker(subscriptions: Subscriptions, fifteen: list[str]) -> None:
    page = expect(subscriptions.page("?limit=5&detailed=true&other=1"), 200)
    assert next_link(page) == f"{subscriptions.path()}?limit=5&marker={fifteen[4]}"
    page = expect(subscriptions.page(f"?limit=5&marker={fifteen[4]}"), 200)
    assert next_link(page) == f"{subscriptions.path()}?limit=5&marker={fifteen[9]}"
    page = expect(subscriptions.page(), 200)
    assert next_link(page) == f"{subscriptions.path()}?marker={fifteen[9]}"


def test_a_marker_points_behind_its_subscription_even_if_that_is_gone(
    subscriptions: Subscriptions, fifteen: list[str]
) -> None:
    expect(subscriptions.delete(fifteen[7]), 204)
    assert subscriptions.ids(f"?limit=20&marker={fifteen[7]}") == fifteen[8:]
    assert subscriptions.ids(f"?marker={fifteen[14]}") == []
    assert subscriptions.ids("?marker=") == [*fifteen[:7], *fifteen[8:11]]


@pytest.mark.parametrize("marker", ["0", "!", "a", "x", "0" * 23, "0" * 25, "g" * 24, "%00", "é"])
def test_a_malformed_marker_gives_an_empty_page(marker: str, subscriptions: Subscriptions) -> None:
    subscriptions.made()
    page = expect(subscriptions.page(f"?marker={marker}"), 200)
    assert page == {"subscriptions": [], "links": []}


def test_where_there_are_none_the_page_is_empty(subscriptions: Subscriptions) -> None:
    empty: dict[str, Any] = {"subscriptions": [], "links": []}
    assert expect(subscriptions.page(), 200) == empty
    assert subscriptions.api.names() == []
    expect(subscriptions.api.create("q"), 201)
    assert expect(subscriptions.page("?limit=20"), 200) == empty


@pytest.mark.parametrize("limit", [0, -1, 21, 1000])
def test_a_limit_out_of_range_is_refused(limit: int, subscriptions: Subscriptions) -> None:
    expect(subscriptions.page(f"?limit={limit}"), 400, REFUSED)


def test_a_limit_is_an_integer(subscriptions: Subscriptions) -> None:
    expect(subscriptions.page("?limit=ten"), 400, "Invalid parameter")


def test_the_limit_of_a_page_is_a_setting(shared_server: Callable[..., LiveServer]) -> None:
    subscriptions = Subscriptions(shared_server(max_subscriptions_per_page=3).api())
    expect(subscriptions.page("?limit=3"), 200)
    expect(subscriptions.page("?limit=4"), 400, REFUSED)


# -- change ----------------------------------------------------------------------------------------


def test_the_life_of_a_subscription(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made(options={"a": 1, "b": 2})
    changed = subscriptions.patch(
        id_, {"subscriber": "http://hooks.example/new", "ttl": 120, "options": {"c": 3}}
    )
    expect(changed, 204)
    assert changed.headers["Location"] == subscriptions.path(id_)
    assert changed.content == b""
    shown = subscriptions.shown(id_)
    assert shown["subscriber"] == "http://hooks.example/new"
    assert (shown["ttl"], shown["options"]) == (120, {"c": 3})
    expect(subscriptions.delete(id_), 204)
    expect(subscriptions.get(id_), 404, "Not found")
    assert subscriptions.ids() == []
    expect(subscriptions.patch(id_, {"ttl": 60}), 404, "Not found")
    expect(subscriptions.confirm(id_), 404, "Not found")
    expect(subscriptions.delete(id_), 204)
    assert subscriptions.made() != id_


@pytest.mark.parametrize(
    ("change", "member", "value"),
    [
        ({"ttl": 61}, "ttl", 61),
        ({"subscriber": "mailto:a@b.example"}, "subscriber", "mailto:a@b.example"),
        ({"options": {}}, "options", {}),
        ({"ttl": 61, "subscriber": None, "options": None}, "ttl", 61),
        ({"ttl": 61, "unknown": 1, "confirmed": True}, "ttl", 61),
    ],
    ids=str,
)
def test_only_what_is_given_is_changed(
    change: dict[str, Any], member: str, value: Any, subscriptions: Subscriptions
) -> None:
    id_ = subscriptions.made(ttl=90, options={"a": 1})
    before = subscriptions.shown(id_)
    expect(subscriptions.patch(id_, change), 204)
    assert {**subscriptions.shown(id_), "age": 0} == {**before, member: value, "age": 0}


@pytest.mark.parametrize("document", [{"confirmed": True}, {"ttl": None}, {"unknown": 1}], ids=str)
def test_where_nothing_usable_is_given_nothing_is_changed(
    document: dict[str, Any], subscriptions: Subscriptions
) -> None:
    id_ = subscriptions.made()
    expect(subscriptions.patch(id_, document), 400, "Unable to update subscription")
    assert subscriptions.shown(id_)["confirmed"] is False


@pytest.mark.parametrize("document", ["[]", "[1]", '[{"ttl": 60}]'])
def test_an_array_is_refused_in_known_words(document: str, subscriptions: Subscriptions) -> None:
    for id_ in (subscriptions.made(), UNKNOWN):
        answer = subscriptions.api.send("PATCH", subscriptions.path(id_), document)
        told = expect(answer, 400, REFUSED)
        assert told["description"] == "Subscriptions must be a dict."


def test_a_change_of_nothing_is_refused(subscriptions: Subscriptions) -> None:
    for id_ in (subscriptions.made(), UNKNOWN):
        expect(subscriptions.patch(id_, {}), 400, REFUSED)
        expect(subscriptions.api.request("PATCH", subscriptions.path(id_)), 400, REFUSED)
        expect(subscriptions.api.send("PATCH", subscriptions.path(id_), "{"), 400, INVALID)


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": 59},
        {"ttl": 0},
        {"ttl": "60"},
        {"ttl": 9223372036854775807},
        {"options": []},
        {"options": ""},
        {"options": "a"},
        {"subscriber": ""},
        {"subscriber": 1},
        {"subscriber": "fake"},
        {"ttl": 60, "subscriber": "ftp://hooks.example"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_even_for_an_unknown_id(
    change: dict[str, Any], subscriptions: Subscriptions
) -> None:
    id_ = subscriptions.made()
    before = subscriptions.shown(id_)
    expect(subscriptions.patch(id_, change), 400, REFUSED)
    expect(subscriptions.patch(UNKNOWN, change), 400, REFUSED)
    assert {**subscriptions.shown(id_), "age": 0} == {**before, "age": 0}


def test_the_subscriber_of_another_subscription_cannot_be_taken(
    subscriptions: Subscriptions,
) -> None:
    subscriptions.made("http://hooks.example/1")
    id_ = subscriptions.made("http://hooks.example/2")
    expect(subscriptions.patch(id_, {"subscriber": "http://hooks.example/1"}), 409)
    assert subscriptions.shown(id_)["subscriber"] == "http://hooks.example/2"
    expect(subscriptions.patch(id_, {"subscriber": "http://hooks.example/2"}), 204)
    Subscriptions(subscriptions.api, "other").made("http://hooks.example/3")
    expect(subscriptions.patch(id_, {"subscriber": "http://hooks.example/3"}), 204)
    subscriptions.made("http://hooks.example/2")


def test_options_are_replaced_as_a_whole_and_secrets_with_them(
    subscriptions: Subscriptions,
) -> None:
    id_ = subscriptions.made(options={"_signing": True, "a": 1})
    expect(subscriptions.patch(id_, {"options": {"_signing": True, "b": 2}}), 204)
    assert subscriptions.shown(id_)["options"] == {"_signing": True, "b": 2}
    expect(subscriptions.patch(id_, {"ttl": 90}), 204)
    assert subscriptions.shown(id_)["options"] == {"_signing": True, "b": 2}
    expect(subscriptions.patch(id_, {"options": {"_signing": SECRET}}), 204)
    assert subscriptions.shown(id_)["options"] == {"_signing": True}
    expect(subscriptions.patch(id_, {"options": {}}), 204)
    assert subscriptions.shown(id_)["options"] == {}


# -- confirm ---------------------------------------------------------------------------------------


def test_a_subscription_is_confirmed_and_unconfirmed(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    for confirmed in (True, True, False, False, True):
        answer = subscriptions.confirm(id_, {"confirmed": confirmed, "unknown": 1})
        expect(answer, 204)
        assert answer.headers["Location"] == subscriptions.path(id_, "confirm")
        assert subscriptions.shown(id_)["confirmed"] is confirmed


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        "[]",
        "[true]",
        '{"confirmed": null}',
        '{"confirmed": "true"}',
        '{"confirmed": 1}',
        '{"confirmed": []}',
    ],
)
def test_anything_but_a_boolean_is_refused_in_known_words(
    document: str, subscriptions: Subscriptions
) -> None:
    for id_ in (subscriptions.made(), UNKNOWN):
        answer = subscriptions.api.send("PUT", subscriptions.path(id_, "confirm"), document)
        told = expect(answer, 400, REFUSED)
        assert told["description"] == "The 'confirmed' should be boolean."


def test_a_malformed_confirmation_is_refused(subscriptions: Subscriptions) -> None:
    path = subscriptions.path(subscriptions.made(), "confirm")
    expect(subscriptions.api.send("PUT", path, "{"), 400, INVALID)


def test_confirming_is_a_put(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    answer = subscriptions.act(id_, "confirm", json={"confirmed": True})
    expect(answer, 405, "405 Method Not Allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"PUT", "OPTIONS"}


def test_a_message_code_changes_nothing(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    coded = subscriptions.api.but(extra={"EXTRA-SPEC": "messagecode:123456"})
    expect(Subscriptions(coded).confirm(id_), 204)
    assert subscriptions.shown(id_)["confirmed"] is True


# -- whose they are --------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", [UNKNOWN, "nosuchid", "x" * 300, "é", "\x00", "-1"])
def test_an_unknown_id_is_404_to_all_but_deletion(id_: str, subscriptions: Subscriptions) -> None:
    subscriptions.made()
    expect(subscriptions.get(id_), 404, "Not found")
    expect(subscriptions.patch(id_, {"ttl": 60}), 404, "Not found")
    expect(subscriptions.confirm(id_), 404, "Not found")
    expect(subscriptions.delete(id_), 204)


def test_nothing_of_others_is_reached(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    api = subscriptions.api
    others = [
        Subscriptions(api.stranger()),
        Subscriptions(api, "other"),
        Subscriptions(api.but(kind=TOPICS if api.kind is QUEUES else QUEUES)),
    ]
    for other in others:
        expect(other.get(id_), 404)
        expect(other.patch(id_, {"ttl": 60}), 404)
        expect(other.confirm(id_), 404)
        expect(other.delete(id_), 204)
        assert other.ids() == []
        other.made()
        assert id_ not in other.ids()
    assert subscriptions.ids() == [id_]
    assert {**subscriptions.shown(id_), "age": 0} == {
        "id": id_,
        "source": "q",
        "subscriber": HOOK,
        "ttl": 3600,
        "age": 0,
        "options": {},
        "confirmed": False,
    }


def test_another_client_of_the_project_may_do_all_this(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    other = Subscriptions(subscriptions.api.somebody_else())
    assert other.ids() == [id_]
    expect(other.patch(id_, {"ttl": 60}), 204)
    expect(other.delete(id_), 204)


@pytest.mark.parametrize(
    ("rest", "allowed"),
    [
        ((), ("GET", "POST")),
        (("s",), ("GET", "PATCH", "DELETE")),
        (("s", "confirm"), ("PUT",)),
        (("s", "status"), ("GET",)),
        (("s", "failed"), ("GET",)),
        (("s", "pause"), ("POST",)),
        (("s", "resume"), ("POST",)),
        (("s", "replay"), ("POST",)),
        (("s", "ping"), ("POST",)),
        (("s", "secret"), ("POST",)),
    ],
    ids=str,
)
def test_other_methods_are_not_allowed(
    rest: tuple[str, ...], allowed: tuple[str, ...], subscriptions: Subscriptions
) -> None:
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}.difference(allowed):
        answer = subscriptions.api.request(method, subscriptions.path(*rest))
        assert answer.status_code == 405, method
        assert set(answer.headers["Allow"].split(", ")) == {*allowed, "OPTIONS"}


def test_a_bad_name_is_refused_before_anything_else(either: Api) -> None:
    bad = Subscriptions(either, "bad@name")
    for answer in (bad.create(), bad.page(), bad.get("s"), bad.delete("s"), bad.confirm("s")):
        expect(answer, 400, either.kind.bad_name_title)


# -- how long they last ----------------------------------------------------------------------------


def test_they_outlive_their_queue(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    expect(subscriptions.api.drop("q"), 204)
    assert subscriptions.ids() == [id_]
    assert subscriptions.shown(id_)["id"] == id_
    expect(subscriptions.api.create("q"), 201)
    assert subscriptions.ids() == [id_]
    assert subscriptions.made() == id_


def test_a_purge_of_messages_keeps_them(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    expect(subscriptions.api.purge("q", "messages"), 204)
    assert subscriptions.ids() == [id_]


@pytest.mark.parametrize("types", [(), ("subscriptions",), ("messages", "subscriptions")], ids=str)
def test_a_purge_of_subscriptions_removes_them_all(
    types: tuple[str, ...], subscriptions: Subscriptions, fifteen: list[str]
) -> None:
    elsewhere = Subscriptions(subscriptions.api, "other")
    kept = elsewhere.made()
    expect(subscriptions.api.purge("q", *types), 204)
    assert subscriptions.ids() == []
    expect(subscriptions.get(fifteen[0]), 404)
    expect(subscriptions.get(fifteen[14]), 404)
    assert elsewhere.ids() == [kept]
    assert subscriptions.made("http://hooks.example/0") not in fifteen


def test_they_survive_a_restart(private_server: Callable[..., LiveServer]) -> None:
    server = private_server()
    subscriptions = Subscriptions(server.api())
    id_ = subscriptions.made(ttl=90, options={"_signing": True, "a": [1]})
    expect(subscriptions.confirm(id_), 204)
    before = subscriptions.shown(id_)
    server.stop()
    api = private_server().api(subscriptions.api.project)
    after = Subscriptions(api).shown(id_)
    assert {**after, "age": 0} == {**before, "age": 0}
    expect(Subscriptions(api).create(), 409)


# -- sharing ---------------------------------------------------------------------------------------


def test_a_shared_queue_can_be_subscribed_and_the_subscription_confirmed(
    api: Api, server: LiveServer
) -> None:
    wanted = {"paths": ["subscriptions"], "methods": ["POST", "PUT", "GET"]}
    shared = expect(api.request("POST", api.path("q", "share"), json=wanted), 200)
    assert set(shared) == {"paths", "methods", "project", "expires", "signature"}
    assert shared["paths"] == [api.path("q", "subscriptions")]
    headers = {
        "URL-Signature": shared["signature"],
        "URL-Expires": shared["expires"],
        "URL-Methods": ",".join(shared["methods"]),
        "URL-Paths": ",".join(shared["paths"]),
    }
    guest = server.api(shared["project"]).but(extra=headers)
    subscriptions = Subscriptions(guest)
    id_ = subscriptions.made()
    expect(subscriptions.confirm(id_), 204)
    assert subscriptions.shown(id_)["confirmed"] is True
    expect(subscriptions.delete(id_), 404)
    expect(guest.show("q"), 404)
    assert Subscriptions(api).ids() == [id_]
