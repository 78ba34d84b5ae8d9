"""Web pages of other origins: what browsers are told (contract http-v2.md section 1.2)."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.live import Api, LiveServer

pytestmark = pytest.mark.embedded  # about no store at all

CONSOLE = "https://console.example.com"
OTHER = "http://[2001:db8::1]:8080"


@pytest.fixture
def console(shared_server: Callable[..., LiveServer]) -> Api:
    return shared_server(cors_origins=(CONSOLE, OTHER)).api()


@pytest.fixture
def for_all(shared_server: Callable[..., LiveServer]) -> Api:
    return shared_server(cors_origins="*").api()


def cors(answer: httpx.Response) -> dict[str, str]:
    """What it says to a browser, without the prefix that all of it has."""
    prefix = "access-control-"
    return {
        name.removeprefix(prefix): value
        for name, value in answer.headers.items()
        if name.startswith(prefix)
    }


def preflight(
    api: Api, origin: str, method: str, *names: str, path: str = "/v2/queues"
) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    if names:
        headers["Access-Control-Request-Headers"] = ", ".join(names)
    answer = api.request("OPTIONS", path, headers=headers)
    assert answer.status_code == 200
    assert answer.content == b""
    return answer


def test_without_the_setting_nothing_is_said(api: Api) -> None:
    headers = {**api.headers, "Origin": CONSOLE}
    answers = [
        api.get("/v2/queues", headers=headers),
        preflight(api, CONSOLE, "GET"),
    ]
    for answer in answers:
        assert not cors(answer)
        assert "Origin" not in answer.headers.get("vary", "")


@pytest.mark.parametrize(
    "of_browsers", [{"Accept-Language": "en"}, {"Origin": "{}"}, {"Sec-Fetch-Site": "same-origin"}]
)
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8888", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        ("LOCALHOST:8888", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8888", 200),
    ],
)
def test_a_page_that_leads_its_own_name_here_is_turned_away(
    api: Api, of_browsers: dict[str, str], host: str, status: int
) -> None:
    headers = {name: value.format(f"http://{host}") for name, value in of_browsers.items()}
    for path in ("/v2/queues", "/openapi.json"):
        answer = api.get(path, headers={**api.headers, **headers, "Host": host})
        assert answer.status_code == status
        assert ("public_url" in answer.text) == (status == 403)
        assert api.get(path, headers={**api.headers, "Host": host}).status_code == 200


def test_a_name_may_be_made_known(console: Api, shared_server: Callable[..., LiveServer]) -> None:
    named = shared_server(public_url="https://queues.example.com/").api()
    fields = {"Accept-Language": "en", "Host": "queues.example.com"}
    assert named.get("/v2/queues", headers={**named.headers, **fields}).status_code == 200
    fields |= {"Origin": CONSOLE}
    assert console.get("/v2/queues", headers={**console.headers, **fields}).status_code == 200
    fields |= {"Origin": "https://queues.example.com"}
    assert console.get("/v2/queues", headers={**console.headers, **fields}).status_code == 403


@pytest.mark.parametrize("origin", [CONSOLE, OTHER])
def test_a_page_of_an_allowed_origin_may_read_answers(origin: str, console: Api) -> None:
    for path, headers in (
        ("/v2/queues", console.headers),
        ("/v2/queues/q", console.headers),  # 200: it is created, or 404
        ("/v2/queues", {}),  # an error before anybody looked at who asks
        ("/nothing", {}),
        ("/v2/queues/@", console.headers),
        ("/livez", {}),
    ):
        answer = console.get(path, headers={**headers, "Origin": origin})
        assert cors(answer) == {
            "allow-origin": origin,
            "allow-credentials": "true",
            "expose-headers": (
                "X-Auth-Token,X-Subject-Token,X-Service-Token,X-OpenStack-Request-ID"
                ",Location,Retry-After"
            ),
        }
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://console.example.com.evil.test",
        "https://console.example.com:8443",
        "http://console.example.com",
        "https://CONSOLE.example.com",
        "https://console.example.com, https://evil.test",
        "https://console.example.com/",
        "null",
        "*",
        "",
    ],
)
def test_a_page_of_another_origin_may_not(origin: str, console: Api) -> None:
    answer = console.get("/v2/queues", headers={**console.headers, "Origin": origin})
    assert answer.status_code == 200, "the request itself is nobody's but the caller's"
    assert not cors(answer)
    assert "Origin" in answer.headers["vary"]
    assert not cors(preflight(console, origin, "GET"))


def test_a_request_without_an_origin_is_told_nothing(console: Api) -> None:
    answer = console.get("/v2/queues")
    assert not cors(answer)
    assert "Origin" in answer.headers["vary"], "what is kept of it is not for all"


@pytest.mark.parametrize("path", ["/v2/queues", "/v2/queues/q/messages", "/nothing", "/v2/ping"])
def test_a_browser_may_ask_before_it_sends(path: str, console: Api) -> None:
    asked = ["X-Auth-Token", "client-ID", "Content-Type", "x-project-id", "URL-Signature"]
    answer = preflight(console, CONSOLE, "PATCH", *asked, path=path)
    assert cors(answer) == {
        "allow-origin": CONSOLE,
        "allow-credentials": "true",
        "allow-methods": "PATCH",
        "allow-headers": ",".join(asked),
        "max-age": "3600",
    }


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"])
def test_these_methods_may_be_asked_for(method: str, console: Api) -> None:
    told = cors(preflight(console, CONSOLE, method))
    assert told["allow-methods"] == method
    assert "allow-headers" not in told


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "get", "OPTIONS", "", "GET, PUT", "*"])
def test_others_may_not(method: str, console: Api) -> None:
    assert not cors(preflight(console, CONSOLE, method))


@pytest.mark.parametrize(
    "name", ["X-Service-Token", "Cookie", "X-Is-Admin-Project", "*", "X-Auth-Token;", "X_Roles"]
)
def test_headers_that_no_page_needs_may_not(name: str, console: Api) -> None:
    assert not cors(preflight(console, CONSOLE, "GET", "Client-ID", name))


def test_options_that_ask_for_nothing_are_told_nothing(console: Api) -> None:
    answer = console.request("OPTIONS", "/v2/queues", headers={"Origin": CONSOLE})
    assert answer.status_code == 200
    assert not cors(answer)


def test_all_origins_can_be_allowed_but_without_what_browsers_know(for_all: Api) -> None:
    answer = for_all.get("/v2/queues", headers={**for_all.headers, "Origin": "https://any.test"})
    told = cors(answer)
    assert told["allow-origin"] == "*"
    assert "allow-credentials" not in told
    assert cors(preflight(for_all, "null", "POST", "Client-ID"))["allow-origin"] == "*"


def test_what_an_origin_holds_comes_into_no_other_header(console: Api) -> None:
    hostile = ["X-Auth-Token", "Client-ID\tSet-Cookie: a=b", "Accept"]
    assert not cors(preflight(console, CONSOLE, "GET", *hostile))
