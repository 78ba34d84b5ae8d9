"""Markers, limits, filters and ids that are garbage, patterns or pieces of SQL.

A filter is the literal text it is, a marker of somebody else is none, and no statement is ever put
together from what a client sent.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nusku
from tests.live import Api, expect, next_link
from tests.security.support import cpu_seconds

# What is special to SQL, LIKE, GLOB, regular expressions, shells, templates or paths.
NASTY = [
    "|",
    ".",
    ".*",
    "a|.",
    "^",
    "$",
    "(a+)+$",
    "(?=a)",
    "[a-z]",
    "[",
    "(",
    "*",
    "?",
    "+",
    "%",
    "_",
    "%%",
    "a%",
    "\\",
    "\\\\",
    "'",
    "''",
    '"',
    "`",
    "' OR '1'='1",
    "' OR 1=1 --",
    "'; DROP TABLE messages; --",
    '" OR ""="',
    "x' UNION SELECT doc FROM records --",
    "1; ATTACH DATABASE '/tmp/x' AS x",
    "/*",
    "--",
    "?1",
    ":name",
    "$1",
    "@x",
    "{}",
    "{0}",
    "{name.__class__}",
    "%s",
    "%(name)s",
    "${x}",
    "$(id)",
    "../../etc/passwd",
    "/",
    "\x00",
    "a\x00b",
    "\n",
    "\r\nX-Roles: admin",
    "\x1b[2J",
    "\x7f",
    "é",
    "漢",
    "😀",
    "\u202e",
    "\ufeff",
    " ",
    "\t",
    "null",
    "None",
    "true",
    "NaN",
    "-1",
    "0",
    "1e3",
    "9" * 19,
    "9" * 100,
    "9" * 5_000,
    "x" * 7_900,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
]
# Raw query text that is not what any client library would write.
RAW = [
    "%",
    "%zz",
    "%f",
    "%ff",
    "%c0%ae",
    "%ed%a0%80",
    "%00",
    "%u0041",
    "&",
    "=",
    "a=b=c",
    ";x=y",
    "+",
]
INTEGERS = ["0", "-1", "21", "1000000", "9" * 19, "9" * 30, "-" + "9" * 30, "9" * 5_000]
NOT_INTEGERS = [
    "1.0",
    "1e1",
    "0x5",
    "1_0",
    "٣",
    "²",
    "abc",
    " ",
    "--1",
    "+-1",
    "1 0",
    "NaN",
    "true",
    "\x00",
]
CPU_MAX_S = 0.25


def names_of(api: Api, answer: httpx.Response) -> list[str]:
    return [entry["name"] for entry in expect(answer, 200)[api.kind.noun]]


@pytest.fixture
def peopled(either: Api) -> Api:
    """Three queues with metadata, and messages in the first, which carry a secret of the project."""
    for name in ("alpha", "a.b", "a_b"):
        expect(either.create(name, {"colour": "red", "number": 5, "quote": "it's"}), 201)
    either.post_bodies("alpha", 1, 2, 3)
    return either


def test_a_name_filter_is_literal_text(peopled: Api) -> None:
    for text in NASTY:
        before = cpu_seconds(peopled.server)
        found = names_of(peopled, peopled.list_queues(f"?limit=20&name={quote_plus(text)}"))
        # Commas and blanks aside, which the query syntax itself gives a meaning.
        assert found == sorted(n for n in ("alpha", "a.b", "a_b") if text in n), text
        assert cpu_seconds(peopled.server) - before < CPU_MAX_S


def test_a_metadata_filter_is_literal_text_in_name_and_value(peopled: Api) -> None:
    for text in NASTY:
        value = quote_plus(text)
        for query in (f"?colour={value}", f"?{value}=red", f"?{value}={value}", f"?number={value}"):
            if len(query) > 8_000:
                continue
            answer = peopled.list_queues(query)
            # Text that happens to be one of the listing's own parameters is judged as that.
            if answer.status_code != 400:
                assert names_of(peopled, answer) == [], query


def test_a_filter_in_the_next_link_still_filters(peopled: Api) -> None:
    # Commas and numbers have a meaning of their own in a query.
    texts = [t for t in NASTY if "," not in t and len(t) < 2_000 and not t.strip("-").isdigit()]
    for name in ("m1", "m2", "m3"):
        expect(peopled.create(name, {f"k{n}": text for n, text in enumerate(texts)}), 201)
    for n, text in enumerate(texts):
        href, seen = f"/v2/{peopled.kind.noun}?limit=2&k{n}={quote(text, safe='')}", []
        for _ in range(3):
            page = expect(peopled.get(href), 200)
            seen += [entry["name"] for entry in page[peopled.kind.noun]]
            following = next_link(page)
            if following is None:
                break
            href = following
        assert seen == ["m1", "m2", "m3"], text


def test_a_pattern_made_to_run_for_ever_does_not(either: Api) -> None:
    for n in range(20):
        expect(either.create("a" * 40 + f".{n}", {"k": "a" * 1_000}), 201)
    before = cpu_seconds(either.server)
    for pattern in ("(a+)+$", "(a|a)*b", "^(a?){60}a{60}$", "a*" * 500 + "b", "%a" * 1_000):
        assert names_of(either, either.list_queues(f"?name={quote(pattern)}")) == []
        assert names_of(either, either.list_queues(f"?k={quote(pattern)}")) == []
    assert cpu_seconds(either.server) - before < 2 * CPU_MAX_S


def test_a_marker_of_queues_is_a_position_by_name(peopled: Api) -> None:
    for text in NASTY:
        answer = peopled.list_queues(f"?marker={quote_plus(text)}")
        marker = text.rpartition(",")[2]
        assert names_of(peopled, answer) == sorted(n for n in ("alpha", "a.b", "a_b") if n > marker)


def test_a_marker_of_messages_that_is_none_gives_an_empty_page(peopled: Api) -> None:
    for text in NASTY:
        page = expect(peopled.list_messages("alpha", f"?echo=true&marker={quote_plus(text)}"), 200)
        assert page == {"messages": [], "links": []}


def test_a_query_that_is_badly_encoded_never_breaks_it(peopled: Api) -> None:
    for text, name in itertools.product(
        RAW, ("marker", "name", "ids", "claim_id", "colour", "pop", "limit")
    ):
        for path in ("", "/alpha/messages"):
            answer = peopled.get(f"/v2/{peopled.kind.noun}{path}?{name}={text}")
            assert answer.status_code in {200, 400, 404}, answer.text
        answer = peopled.delete(peopled.path("alpha", "messages") + f"?ids=x&{name}={text}")
        assert answer.status_code in {204, 400}, answer.text
        assert peopled.listed("alpha") == [1, 2, 3]


def test_a_limit_out_of_range_is_refused_wherever_it_is_given(peopled: Api) -> None:
    for text in INTEGERS:
        refused = [
            peopled.list_queues(f"?limit={text}"),
            peopled.list_messages("alpha", f"?limit={text}"),
            peopled.pop("alpha", text),
            peopled.list_messages("alpha", f"?wait={text}") if text != "0" else None,
        ]
        if peopled.kind.noun == "queues":
            refused.append(peopled.claim("alpha", f"?limit={text}"))
        for answer in refused:
            assert answer is None or answer.status_code == 400, answer.request.url
        assert peopled.listed("alpha") == [1, 2, 3]


def test_a_limit_that_is_no_number_is_refused_wherever_it_is_given(peopled: Api) -> None:
    for text in NOT_INTEGERS:
        value = quote(text)
        refused = [
            peopled.list_queues(f"?limit={value}"),
            peopled.list_messages("alpha", f"?limit={value}"),
            peopled.list_messages("alpha", f"?wait={value}"),
            peopled.pop("alpha", value),
        ]
        if peopled.kind.noun == "queues":
            refused.append(peopled.claim("alpha", f"?limit={value}"))
        for answer in refused:
            expect(answer, 400, "Invalid parameter")
        assert peopled.listed("alpha") == [1, 2, 3]


def test_ids_that_are_none_find_and_delete_nothing(peopled: Api) -> None:
    for text in NASTY:
        value = quote(text, safe="")
        if text == ".":
            continue  # the client library would leave it out of the path
        if "/" in text:
            value = value.replace("%2F", "%252F")  # a slash would make another path
        [real, *_] = [
            message["id"]
            for message in expect(peopled.list_messages("alpha", "?echo=true"), 200)["messages"]
        ]
        expect(peopled.get(f"{peopled.path('alpha', 'messages')}/{value}"), 404)
        expect(peopled.delete(f"{peopled.path('alpha', 'messages')}/{value}"), 204)
        expect(peopled.delete(f"{peopled.path('alpha', 'messages', real)}?claim_id={value}x"), 400)
        if text.strip(","):
            expect(peopled.get(f"{peopled.path('alpha', 'messages')}?ids={value}"), 404)
            expect(peopled.delete(f"{peopled.path('alpha', 'messages')}?ids={value}"), 204)
        if peopled.kind.noun == "queues":
            claim = f"{peopled.path('alpha', 'claims')}/{value}"
            expect(peopled.get(claim), 404)
            expect(peopled.request("PATCH", claim, json={"ttl": 100}), 404)
            expect(peopled.delete(claim), 204)
        assert peopled.listed("alpha") == [1, 2, 3]


def altered(id_: str) -> Iterator[str]:
    """What somebody might try who knows an id: other spellings of it, and its neighbours."""
    yield id_.upper()
    yield id_ + "0"
    yield "0" + id_
    yield id_[:-1]
    yield id_[1:]
    yield " " + id_
    yield id_ + " "
    yield id_ + "\x00"
    yield id_ + "\n"
    yield id_[:-2] + "_" + id_[-1]
    yield id_[:-2] + "+" + id_[-1]
    yield id_[:-3] + "0x" + id_[-1]
    yield id_[:-1] + "١"
    yield id_[:-1] + "１"
    yield "-" + id_[1:]
    for n in range(0, len(id_) - 1, 3):
        yield id_[:n] + ("0" if id_[n] != "0" else "f") + id_[n + 1 :]


def test_an_id_in_another_spelling_is_unknown(either: Api) -> None:
    ids = either.post_bodies("q", *range(40))
    spelt = [other for other in altered(ids[20]) if other not in ids]
    for other in spelt:
        path = either.path("q", "messages") + "/" + quote(other, safe="")
        assert either.get(path).status_code == 404, other
        expect(either.delete(path), 204)
        page = expect(either.list_messages("q", f"?echo=true&marker={quote(other)}"), 200)
        # A position that no message had yet, or has no more, is a legal marker, if it is one.
        assert [message["body"] for message in page["messages"]] in (
            [],
            *([*range(n, n + 10)][: 40 - n] for n in range(40)),
        )
    assert either.stats("q")["total"] == 40


def test_a_claim_id_in_another_spelling_is_unknown(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q", "?limit=1")
    for other in altered(claim.claim_id):
        if other == claim.claim_id:
            continue
        path = api.path("q", "claims") + "/" + quote(other, safe="")
        assert api.get(path).status_code == 404, other
        assert api.request("PATCH", path, json={"ttl": 100}).status_code == 404, other
        expect(api.delete(path), 204)
        answer = api.delete_message("q", claim.ids[0], other)
        assert answer.status_code in {400, 403}, other
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert [message["id"] for message in shown["messages"]] == claim.ids


@pytest.mark.parametrize("where", ["queue", "project", "generation", "kind"])
def test_ids_and_markers_of_another_place_are_unknown(where: str, either: Api) -> None:
    mine, theirs = either, either
    ids = theirs.post_bodies("q", "theirs 1", "theirs 2", "theirs 3")
    name = "q"
    if where == "queue":
        name = "other"
    elif where == "project":
        mine = either.stranger()
    elif where == "kind":
        other = "topics" if either.kind.noun == "queues" else "queues"
        mine = either.but()
        path = f"/v2/{other}/q/messages"
        expect(mine.request("POST", path, json={"messages": [{"body": "mine"}]}), 201)
        for id_ in ids:
            expect(mine.get(f"{path}/{id_}"), 404)
            expect(mine.delete(f"{path}/{id_}"), 204)
            page = expect(mine.get(f"{path}?echo=true&marker={id_}"), 200)
            assert page["messages"] == []
        assert theirs.listed("q") == ["theirs 1", "theirs 2", "theirs 3"]
        return
    else:
        expect(theirs.drop("q"), 204)
    mine.post_bodies(name, "mine 1", "mine 2")
    for id_ in ids:
        expect(mine.message(name, id_), 404)
        expect(mine.delete_message(name, id_), 204)
        expect(mine.delete_messages(name, [id_]), 204)
        assert mine.listed(name, f"?echo=true&marker={id_}") == []
    expect(mine.messages(name, ids), 404)
    assert mine.listed(name) == ["mine 1", "mine 2"]
    if where != "generation":
        assert theirs.listed("q") == ["theirs 1", "theirs 2", "theirs 3"]


@pytest.mark.parametrize("where", ["queue", "project"])
def test_claims_of_another_place_are_unknown(where: str, api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q", ttl=1000, grace=1000)
    mine, name = (api, "other") if where == "queue" else (api.stranger(), "q")
    [id_] = mine.post_bodies(name, "mine")
    expect(mine.show_claim(name, claim.claim_id), 404)
    expect(mine.renew(name, claim.claim_id, ttl=60), 404)
    expect(mine.release(name, claim.claim_id), 204)
    expect(mine.delete_message(name, id_, claim.claim_id), 400)
    assert expect(api.show_claim("q", claim.claim_id), 200)["ttl"] == 1000
    assert api.listed("q", "?echo=true") == []
    assert mine.listed(name) == ["mine"]


def test_more_ids_than_allowed_are_refused_before_any_is_looked_at(either: Api) -> None:
    ids = either.post_bodies("q", *range(21))
    expect(either.messages("q", ids), 400)
    expect(either.delete_messages("q", ids), 400)
    expect(either.delete_messages("q", ids[:1] * 21), 400)
    repeated = "&".join(f"ids={id_}" for id_ in ids)
    expect(either.delete(f"{either.path('q', 'messages')}?{repeated}"), 400)
    assert either.stats("q")["total"] == 21


def test_many_parameters_do_no_harm(either: Api) -> None:
    expect(either.create("q"), 201)
    before = cpu_seconds(either.server)
    for query in ("&".join(f"k{n}=v" for n in range(1_000)), "limit=1&" * 800, "k=,,,,&" * 900):
        answer = either.list_queues("?" + query[:8_000])
        assert answer.status_code in {200, 400}, answer.text
    assert cpu_seconds(either.server) - before < 2 * CPU_MAX_S


_characters = st.characters(exclude_categories=["Cs"])


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    query=st.lists(
        st.tuples(
            st.sampled_from(
                ["marker", "limit", "name", "detailed", "with_count", "echo", "include_claimed",
                 "include_delayed", "ids", "claim_id", "claim_ids", "wait", "colour"]
            )
            | st.text(_characters, min_size=1, max_size=5),
            st.sampled_from(["0", "1", "true", "", ",", ",,1"]) | st.text(_characters, max_size=20),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_no_query_ever_breaks_it(query: list[tuple[str, str]], api: Api) -> None:
    text = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in query if k != "wait")
    for path in ("/v2/queues", "/v2/topics", "/v2/queues/q/messages", "/v2/queues/q/stats"):
        answer = api.get(f"{path}?{text}")
        assert answer.status_code in {200, 400, 404}, (answer.status_code, answer.text)
    for method, path in (
        ("DELETE", "/v2/queues/q/messages"),
        ("DELETE", "/v2/queues/q/messages/x"),
        ("POST", "/v2/queues/q/claims"),
    ):
        answer = api.request(method, f"{path}?{text}")
        assert answer.status_code in {200, 204, 400}, (answer.status_code, answer.text)


# -- no statement from what was sent ---------------------------------------------------------------

SOURCES = Path(nusku.__file__).parent
VERBS = {
    "PRAGMA",
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "WITH",
    "CREATE",
    "DROP",
    "ALTER",
    "BEGIN",
}
EXECUTING = {"execute", "executemany", "executescript"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCES.rglob("*.py")):
        yield path, ast.parse(path.read_text(), str(path))


def constant_name(node: ast.expr) -> bool:
    """Whether this is a name in capitals, a member of one, or one plus a number."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").isupper()
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").isupper()
    if isinstance(node, ast.Subscript):
        return constant_name(node.value)
    if isinstance(node, ast.BinOp):
        return all(
            isinstance(side, ast.Constant) or constant_name(side) or isinstance(side, ast.Name)
            for side in (node.left, node.right)
        )
    return False


def is_statement(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return is_statement(node.body) and is_statement(node.orelse)
    first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
    return (
        isinstance(first, ast.Constant)
        and isinstance(first.value, str)
        and first.value.lstrip(" (").split(" ")[0].rstrip(";") in VERBS
    )


def test_statements_are_put_together_from_constants_only() -> None:
    seen = 0
    for path, tree in trees():
        if path.parent.name == "postgres":
            continue  # names of schemas are no parameters; tests/test_house.py says which there are
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr) and is_statement(node):
                seen += 1
                for value in node.values:
                    if isinstance(value, ast.FormattedValue):
                        assert constant_name(value.value), f"{where}: {ast.unparse(value)}"
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
                assert not is_statement(node.left), where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "format":
                    assert not is_statement(node.func.value), where
                if node.func.attr in EXECUTING:
                    assert is_statement(node.args[0]) or isinstance(
                        node.args[0], ast.Constant | ast.Name | ast.Attribute
                    ), f"{where}: {ast.unparse(node.args[0])}"
    assert seen, "nothing was looked at"


def test_what_is_executed_is_a_constant_where_it_is_named_in_small_letters() -> None:
    """A local name that is executed is only ever given constants, or comes in as a parameter."""
    for path, tree in trees():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            executed = {
                node.args[0].id
                for node in ast.walk(function)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in EXECUTING
                and isinstance(node.args[0], ast.Name)
                and not constant_name(node.args[0])
            }
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id in executed
                    for target in node.targets
                ):
                    values = (
                        [node.value.body, node.value.orelse]
                        if isinstance(node.value, ast.IfExp)
                        else [node.value]
                    )
                    where = f"{path.name}:{node.lineno}: {ast.unparse(node)}"
                    assert all(constant_name(v) or is_statement(v) for v in values), where


def test_a_thousand_odd_requests_left_the_store_whole(peopled: Api) -> None:
    """Tables that were dropped or rows that were changed by a statement would show here."""
    for text, name in itertools.product(NASTY[:35], ("marker", "name", "ids", "claim_ids")):
        peopled.get(f"{peopled.path('alpha', 'messages')}?{name}={quote(text, safe='')}")
    assert peopled.listed("alpha") == [1, 2, 3]
    assert peopled.names() == ["a.b", "a_b", "alpha"]
