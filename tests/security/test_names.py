"""Which names a queue may have, over all of Unicode and in every spelling that a path allows.

A name is accepted if and only if it is 1 to 64 of A-Z a-z 0-9 _ . - and neither `.` nor `..`.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.live import Api, LiveServer, expect
from tests.security.support import address_of, converse, head

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
LENGTH_MAX = 64

# Characters that some library takes for a letter, a digit, a dot, a blank or nothing at all.
LOOK_ALIKES = "ａ０．－＿．。․‥…‐‑‒–—−﹘⁃_‿⁀ªº²³¹¼Ⅷ①𝐀𝟎ǅßıſKÅé\u0301\u200b\u200d\u2060\ufeff\xad\u0345\u180e\x85\xa0\u2028\u3000"

relaxed = settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def legal(name: str) -> bool:
    """The rule, said in other words than the server's."""
    return (
        1 <= len(name) <= LENGTH_MAX and all(c in LETTERS for c in name) and set(name) != {"."}
    ) or (set(name) == {"."} and 3 <= len(name) <= LENGTH_MAX)


class Line:
    """One connection on which paths are sent as they are: no client library tidies them up."""

    def __init__(self, api: Api) -> None:
        self.api = api
        host, port = address_of(api.server)
        self._connection = http.client.HTTPConnection(host, port, timeout=10)

    def status(self, method: str, target: str) -> int:
        """Send a request without a body; insist on the contract's title if it answers 400."""
        self._connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in self.api.headers.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status == 400:
            assert self.api.kind.bad_name_title.encode() in body, (target, body)
        return answer.status

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def line(either: Api) -> Iterator[Line]:
    line = Line(either)
    yield line
    line.close()


def escaped(text: str) -> str:
    """Every byte of it percent-encoded, with small and capital digits in turn."""
    pairs = (f"%{b:02x}" if n % 2 else f"%{b:02X}" for n, b in enumerate(text.encode()))
    return "".join(pairs)


def judged(line: Line, name: str, spelling: str) -> None:
    """Insist that a name is accepted if and only if it is legal, and is then the one listed."""
    path = f"/v2/{line.api.kind.noun}/{spelling}"
    status = line.status("PUT", path)
    if legal(name):
        assert status in {201, 204}, (name, status)
        assert line.status("DELETE", path) == 204
    else:
        # A slash makes another path, which has no such route or no such method.
        allowed = {400, 404, 405} if "/" in name else {400}
        assert status in allowed, (name, status)


_code_points = st.characters(exclude_categories=["Cs"])
_nearly = st.text(st.sampled_from(LETTERS), min_size=1, max_size=70)


@relaxed
@given(name=st.text(_code_points, min_size=1, max_size=66))
@example(name=".")
@example(name="..")
@example(name="...")
@example(name="." * 64)
@example(name="." * 65)
@example(name="-")
@example(name="_" * 64)
@example(name="a\n")
@example(name="\na")
@example(name="a\x00")
@example(name="a" * 63 + "é")
@example(name="ä" * 32)
@example(name="a/../b")
@example(name="../../etc/passwd")
@example(name="a%2e")
@example(name="%61")
def test_any_text_is_a_name_if_and_only_if_it_is_legal(name: str, line: Line) -> None:
    judged(line, name, escaped(name))


@relaxed
@given(name=_nearly, at=st.integers(0, 70), intruder=_code_points | st.sampled_from(LOOK_ALIKES))
def test_one_character_decides(name: str, at: int, intruder: str, line: Line) -> None:
    judged(line, name, escaped(name))
    spoilt = name[:at] + intruder + name[at:]
    judged(line, spoilt, escaped(spoilt))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 66, 128, 1_000])
def test_the_length_is_limited_whatever_the_letters_are(length: int, line: Line) -> None:
    for letter in "aZ0_-":
        judged(line, letter * length, letter * length)
        judged(line, letter * length, escaped(letter * length))


def test_every_code_point_of_the_first_planes_alone(line: Line) -> None:
    for code in [*range(0x180), *map(ord, LOOK_ALIKES)]:
        judged(line, chr(code), escaped(chr(code)))
        if code <= 0x20:
            judged(line, f"a{chr(code)}", f"a{escaped(chr(code))}")


@pytest.mark.slow
def test_every_letter_and_digit_that_some_library_knows(line: Line) -> None:
    """All code points that `\\w` matches, or that a case or width folding makes a legal one."""
    import unicodedata

    for code in range(0x180, 0x110000):
        character = chr(code)
        folded = unicodedata.normalize("NFKC", character).casefold()
        if folded and all(c in LETTERS for c in folded):
            judged(line, character, escaped(character))
    for code in range(0x180, 0x30000, 37):
        if re.match(r"\w", chr(code)):
            judged(line, chr(code), escaped(chr(code)))


@pytest.mark.parametrize(
    "spelling",
    [
        "a%",
        "a%2",
        "a%zz",
        "%",
        "%%",
        "a%u0062",
        "%80",
        "%ff",
        "a%fe%ff",
        "%c0%ae",
        "%c0%ae%c0%ae",
        "%c1%81",
        "%e0%80%ae",
        "%f0%80%80%ae",
        "%ed%a0%80",
        "%f4%90%80%80",
        "%c3",
        "a%e2%82",
        "%252e",
        "%252e%252e",
        "%25",
        "a;b",
        "a;v=1",
        "a+b",
        "a,b",
        "a&b",
        "a=b",
        "a:b",
        "a@b",
        "a!b",
        "a$b",
        "a'b",
        "a(b)",
        "a*b",
        "a~b",
        "a|b",
        "[a]",
        "%20a",
        "a%20",
        "%09",
        "a%0a",
        "a%0d%0a",
        "%00",
        "a%00b",
        "a%00",
        "%3f",
        "a%3fb",
        "%23",
        "a%5cb",
        "..%5c..",
    ],
)
def test_a_spelling_that_decodes_to_nothing_legal_is_refused(spelling: str, line: Line) -> None:
    for method in ("PUT", "GET", "DELETE"):
        assert line.status(method, f"/v2/{line.api.kind.noun}/{spelling}") == 400, method
    assert line.api.names() == []


@pytest.mark.parametrize(
    "spelling", [".", "..", "%2e", "%2E", "%2e%2E", ".%2e", "%2e.", "./", "../", "%2e/x", "..%2fq"]
)
def test_dots_lead_nowhere(spelling: str, line: Line) -> None:
    line.api.post_bodies("q", 1)
    expect(line.api.create("secret"), 201)
    noun = line.api.kind.noun
    for method in ("GET", "PUT", "DELETE"):
        for path in (
            f"/v2/{noun}/{spelling}",
            f"/v2/{noun}/q/{spelling}",
            f"/v2/{noun}/q/messages/{spelling}/../../secret",
            f"/v2/{noun}/x/{spelling}/q",
            f"/{spelling}/v2/{noun}/secret",
        ):
            assert line.status(method, path) >= 400 or "/q/messages/" in path, (method, path)
    assert line.api.names() == ["q", "secret"]
    assert line.api.listed("q") == [1]


@pytest.mark.parametrize(
    "spelling", ["a%2Fb", "%2F", "a%2F", "%2Fa", "%2F..%2Fq", "q%2F..%2Fq", "a//b"]
)
def test_a_slash_in_a_name_never_reaches_another_queue(spelling: str, line: Line) -> None:
    line.api.post_bodies("q", 1)
    expect(line.api.create("a"), 201)
    for method in ("GET", "PUT", "DELETE", "PATCH", "POST"):
        path = f"/v2/{line.api.kind.noun}/{spelling}"
        assert line.status(method, path) in {400, 404, 405}, method
    assert line.api.names() == ["a", "q"]
    assert line.api.listed("q") == [1]


def test_a_legal_name_is_the_same_in_every_spelling(line: Line) -> None:
    name = "Svc.main-1_x"
    path = f"/v2/{line.api.kind.noun}/"
    assert line.status("PUT", path + escaped(name)) == 201
    for spelling in (name, escaped(name), name.replace("S", "%53"), name.replace(".", "%2e")):
        assert line.status("PUT", path + spelling) == 204
    assert line.api.names() == [name]
    assert line.status("PUT", path + name.lower()) == 201
    assert line.status("PUT", path + name + ".") == 201
    assert sorted(line.api.names()) == sorted([name, name.lower(), name + "."])


@settings(relaxed, max_examples=25)
@given(name=st.text(_code_points, min_size=1, max_size=10) | _nearly)
def test_a_dead_letter_queue_has_a_legal_name_or_none(name: str, api: Api) -> None:
    answer = api.create("q", {"_dead_letter_queue": name, "_max_claim_count": 1})
    assert (answer.status_code < 300) is legal(name), (name, answer.text)
    expect(api.drop("q"), 204)


PROJECTS = [
    "..",
    "../../x",
    "/",
    "a/b",
    "a\\b",
    "%2e%2e",
    "*",
    "' OR 1=1 --",
    "a\tb",
    "a:b",
    "é",
    "x" * 256,
]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: ascii(project[:20]))
def test_a_project_is_any_text_and_reaches_no_other(project: str, server: LiveServer) -> None:
    """Nothing is made of a project's name: no path, no pattern, no prefix of a key."""
    text = project.encode("latin-1")
    neighbours = {text[:-1] or b"x", (text + b"x")[:256], text.swapcase() + b"y", b"x" + text[1:]}

    def names(who: bytes) -> list[str]:
        fields = [(b"Client-ID", b"00000000000000000000000000000001"), (b"X-Project-ID", who)]
        [answer] = converse(server, head(b"GET", b"/v2/queues", fields), finals=1).answers
        assert answer.status == 200, answer.body
        return [queue["name"] for queue in answer.parsed()["queues"]]

    def change(method: bytes, who: bytes) -> None:
        fields = [(b"Client-ID", b"00000000000000000000000000000001"), (b"X-Project-ID", who)]
        data = head(method, b"/v2/queues/q", fields)
        [status] = converse(server, data, finals=1).statuses
        assert status in {201, 204}

    others = neighbours - {text}
    before = {other: names(other) for other in others}
    files = {path.name for path in server.folder.iterdir()}
    mine = [name for name in names(text) if name != "q"]  # other tests have such projects, too
    change(b"PUT", text)
    assert names(text) == sorted([*mine, "q"])
    assert {other: names(other) for other in others} == before
    assert {path.name for path in server.folder.iterdir()} == files
    change(b"DELETE", text)
    assert names(text) == mine


def test_names_make_no_files(api: Api) -> None:
    before = {path.name for path in api.server.folder.iterdir()}
    for name in ("a.db", "-wal", "nusku.db-wal", "...", "con", "nul.txt", "a.lock"):
        expect(api.create(name), 201)
        api.post_bodies(name, 1)
    assert {path.name for path in api.server.folder.iterdir()} == before
