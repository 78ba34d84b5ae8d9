"""Updating metadata (contract, 3.5)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live import PATCH_TYPE, QUEUES, Api, expect, raw_exchange

REFUSED = "Invalid request body"
CONFLICT = "Resource conflict"


def add(key: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": f"/metadata/{key}", "value": value}


def replace(key: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": f"/metadata/{key}", "value": value}


def remove(key: str) -> dict[str, Any]:
    return {"op": "remove", "path": f"/metadata/{key}"}


@pytest.fixture
def red(either: Api) -> Api:
    """A client with a queue (or topic) q whose colour is red."""
    expect(either.create("q", {"colour": "red"}), 201)
    return either


def stored(api: Api) -> dict[str, Any]:
    """What GET shows of q beyond the defaults."""
    shown = expect(api.show("q"), 200)
    return {k: v for k, v in shown.items() if (k, v) not in api.kind.defaults.items()}


# -- the three operations --------------------------------------------------------------------------


def test_the_answer_is_the_whole_new_metadata_with_defaults(red: Api) -> None:
    answer = expect(red.patch("q", [add("size", 5), add("shape", {"round": True})]), 200)
    expected = {"colour": "red", "size": 5, "shape": {"round": True}}
    assert answer == {**red.kind.defaults, **expected}
    assert expect(red.show("q"), 200) == answer


def test_add_overwrites(red: Api) -> None:
    expect(red.patch("q", [add("colour", "blue")]), 200)
    assert stored(red) == {"colour": "blue"}


def test_replace_of_a_user_key(red: Api) -> None:
    expect(red.patch("q", [replace("colour", None)]), 200)
    assert stored(red) == {"colour": None}


def test_replace_of_an_unknown_key_is_a_conflict(red: Api) -> None:
    expect(red.patch("q", [replace("size", 5)]), 409, CONFLICT)
    assert stored(red) == {"colour": "red"}


def test_remove_of_a_user_key_works_once(red: Api) -> None:
    expect(red.patch("q", [remove("colour")]), 200)
    assert stored(red) == {}
    expect(red.patch("q", [remove("colour")]), 409, CONFLICT)


def test_replace_of_a_defaulted_key_stores_it_and_remove_brings_the_default_back(red: Api) -> None:
    answer = expect(red.patch("q", [replace("_default_message_ttl", 120)]), 200)
    assert answer["_default_message_ttl"] == 120
    assert expect(red.show("q"), 200)["_default_message_ttl"] == 120
    expect(red.patch("q", [remove("_default_message_ttl"), remove("colour")]), 200)
    assert expect(red.show("q"), 200) == red.kind.defaults


def test_each_defaulted_key_may_be_replaced_or_removed_though_it_is_not_stored(red: Api) -> None:
    for key, default in red.kind.defaults.items():
        expect(red.patch("q", [remove(key)]), 200)
        expect(red.patch("q", [replace(key, default)]), 200)
        expect(red.patch("q", [remove(key)]), 200)
    assert stored(red) == {"colour": "red"}


@pytest.mark.parametrize("key", ["_flavor", "_retry_policy", "_unknown"])
def test_other_reserved_keys_get_no_such_leniency(key: str, red: Api) -> None:
    expect(red.patch("q", [replace(key, None)]), 409, CONFLICT)
    expect(red.patch("q", [remove(key)]), 409, CONFLICT)


@pytest.mark.parametrize("key", sorted(set(QUEUES.defaults) - {"_default_message_ttl"}))
def test_the_leniency_of_topics_covers_their_three_defaults_only(key: str, red: Api) -> None:
    lenient = key in red.kind.defaults
    expect(red.patch("q", [remove(key)]), 200 if lenient else 409)
    expect(red.patch("q", [replace(key, None)]), 200 if lenient else 409)


def test_an_empty_patch_changes_nothing(red: Api) -> None:
    assert expect(red.patch("q", []), 200) == {**red.kind.defaults, "colour": "red"}


def test_operations_are_applied_in_order(red: Api) -> None:
    operations = [
        add("a", 1),
        replace("a", 2),
        remove("a"),
        add("b", 1),
        remove("colour"),
        add("colour", "blue"),
    ]
    expect(red.patch("q", operations), 200)
    assert stored(red) == {"b": 1, "colour": "blue"}


def test_only_the_result_has_to_be_valid(red: Api) -> None:
    operations = [add("_default_message_ttl", 1), replace("_default_message_ttl", 99)]
    expect(red.patch("q", operations), 200)
    assert stored(red) == {"colour": "red", "_default_message_ttl": 99}


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (replace("nosuchkey", 1), 409),
        (remove("nosuchkey"), 409),
        (add("_default_message_ttl", 5), 400),
        ({"op": "brew", "path": "/metadata/a", "value": 1}, 400),
        ({"op": "add", "path": "/metadata/a"}, 400),
    ],
)
def test_a_failing_operation_undoes_all_of_them(bad: dict[str, Any], status: int, red: Api) -> None:
    expect(red.patch("q", [add("a", 1), remove("colour"), bad]), status)
    expect(red.patch("q", [bad, add("a", 1), remove("colour")]), status)
    assert stored(red) == {"colour": "red"}


def test_what_the_python_client_sends_is_accepted(api: Api) -> None:
    """Replace what it gives, remove everything else it sees: defaults, too."""
    expect(api.create("q", {"colour": "red", "size": 1}), 201)
    seen = expect(api.show("q"), 200)
    operations = [replace("size", 2), replace("_default_message_ttl", 90), add("new", 1)]
    operations += [remove(key) for key in seen if key not in {"size", "_default_message_ttl"}]
    answer = expect(api.patch("q", operations), 200)
    assert answer == {**QUEUES.defaults, "size": 2, "_default_message_ttl": 90, "new": 1}


def test_concurrent_patches_do_not_lose_each_others_changes(red: Api) -> None:
    def one(n: int) -> int:
        return red.patch("q", [add(f"key{n}", n)]).status_code

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(one, range(32))) == {200}
    assert stored(red) == {"colour": "red", **{f"key{n}": n for n in range(32)}}


def test_an_answered_change_holds_for_the_next_request(red: Api) -> None:
    for ttl in range(60, 80):
        expect(red.patch("q", [add("_default_message_ttl", ttl)]), 200)
        [message_id] = red.post_bodies("q", 1)
        assert expect(red.message("q", message_id), 200)["ttl"] == ttl


# -- a missing queue -------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", [[], [add("a", 1)], [replace("a", 1)], [remove("a")]])
def test_a_missing_queue_is_404_and_stays_missing(
    operations: list[dict[str, Any]], either: Api
) -> None:
    expect(either.patch("q", operations), 404, "Not found")
    assert either.names() == []


def test_the_body_is_judged_before_the_queue_is_looked_for(either: Api) -> None:
    expect(either.patch("q", {}), 400, REFUSED)
    expect(either.patch("q", [{"op": "brew"}]), 400, REFUSED)
    expect(either.patch("q", [], "application/json"), 415)


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/metadata/key", "key"),
        ("/METADATA/key", "key"),
        ("/MetaData/Key", "Key"),
        ("/metadata/a~1b", "a/b"),
        ("/metadata/a~0b", "a~b"),
        ("/metadata/~01", "~1"),
        ("/metadata/~10", "/0"),
        ("/ metadata / key ", "key"),
        ("/metadata/two words", "two words"),
        ("/metadata/é", "é"),
        ("/metadata/a.b", "a.b"),
        ("/metadata/0", "0"),
        ("/metadata/-", "-"),
        ('/metadata/"', '"'),
    ],
)
def test_a_path_names_a_key(path: str, key: str, red: Api) -> None:
    expect(red.patch("q", [{"op": "add", "path": path, "value": 1}]), 200)
    assert stored(red) == {"colour": "red", key: 1}
    expect(red.patch("q", [{"op": "replace", "path": path, "value": 2}]), 200)
    assert stored(red) == {"colour": "red", key: 2}
    expect(red.patch("q", [{"op": "remove", "path": path}]), 200)
    assert stored(red) == {"colour": "red"}


BAD_PATHS: list[Any] = [
    "",
    "/",
    "colour",
    "metadata/colour",
    "/metadata",
    "/metadata/",
    "/metadata/colour/",
    "/metadata//colour",
    "//metadata/colour",
    "/metadata/colour/deeper",
    "/metadata/a~",
    "/metadata/a~2",
    "/metadata/~x",
    None,
    5,
    True,
    [],
    ["metadata", "colour"],
    {},
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=str)
def test_a_bad_path_is_refused(path: Any, red: Api) -> None:
    for op in ("add", "replace", "remove"):
        expect(red.patch("q", [{"op": op, "path": path, "value": 1}]), 400, REFUSED)
    assert stored(red) == {"colour": "red"}


@pytest.mark.parametrize("path", ["/other/colour", "/colour/colour", "/metadatas/colour"])
@pytest.mark.parametrize("op", ["add", "replace"])
def test_only_metadata_can_be_written(op: str, path: str, red: Api) -> None:
    expect(red.patch("q", [{"op": op, "path": path, "value": 1}]), 400, REFUSED)
    assert stored(red) == {"colour": "red"}


# -- the document ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"op": "add", "path": "/metadata/a", "value": 1},
        {"colour": "blue"},
        [5],
        ["add"],
        [None],
        [[]],
        [{}],
        [{"path": "/metadata/a", "value": 1}],
        [{"op": "add", "value": 1}],
        [{"op": "add", "path": "/metadata/a"}],
        [{"op": "replace", "path": "/metadata/colour"}],
        [{"op": "test", "path": "/metadata/colour", "value": "red"}],
        [{"op": "move", "path": "/metadata/a", "from": "/metadata/colour"}],
        [{"op": "copy", "path": "/metadata/a", "from": "/metadata/colour"}],
        [{"op": "ADD", "path": "/metadata/a", "value": 1}],
        [{"op": None, "path": "/metadata/a", "value": 1}],
        [{"op": ["add"], "path": "/metadata/a", "value": 1}],
        [{"op": {}, "path": "/metadata/a", "value": 1}],
        [add("a", 1), 5],
    ],
    ids=str,
)
def test_a_document_that_is_no_list_of_operations_is_refused(document: Any, red: Api) -> None:
    expect(red.patch("q", document), 400, REFUSED)
    assert stored(red) == {"colour": "red"}


@pytest.mark.parametrize("document", ["", "   ", "[", "nope", '"add"'])
def test_a_document_that_is_no_json_is_refused(document: str, red: Api) -> None:
    expect(red.send("PATCH", red.path("q"), document, PATCH_TYPE), 400, REFUSED)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json-patch+json",
        f"{PATCH_TYPE}; charset=utf-8",
        "application/openstack-messaging-v2.1-json-patch",
        "text/plain",
    ],
)
def test_any_other_content_type_is_415(content_type: str, red: Api) -> None:
    error = expect(red.patch("q", [add("a", 1)], content_type), 415, "415 Unsupported Media Type")
    assert PATCH_TYPE in error["description"]
    assert stored(red) == {"colour": "red"}


def test_a_missing_content_type_is_415(red: Api) -> None:
    headers = {**red.headers, "Content-Length": "2"}
    answer = raw_exchange(red.server, "PATCH", red.path("q"), headers, b"[]")
    assert (answer.status, answer.title()) == (415, "415 Unsupported Media Type")


def test_the_content_type_is_judged_before_the_body(red: Api) -> None:
    expect(red.send("PATCH", red.path("q"), "nope", "application/json"), 415)
    expect(red.send("PATCH", red.path("q"), "", "application/json"), 415)


def test_the_size_is_limited_and_judged_first(red: Api) -> None:
    document = "[]".ljust(65536)
    expect(red.send("PATCH", red.path("q"), document, PATCH_TYPE), 200)
    expect(red.send("PATCH", red.path("q"), document + " ", PATCH_TYPE), 400)
    expect(red.send("PATCH", red.path("q"), document + " ", "application/json"), 400)
