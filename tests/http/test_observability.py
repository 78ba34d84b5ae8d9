"""What is there for operators: health for machines, metrics, documents, logs."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.http.test_headers import ROUTES
from tests.live import Api, LiveServer, eventually, expect, raw_exchange

OURS = ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs"]


@pytest.mark.parametrize("path", OURS)
def test_ours_need_no_header(path: str, server: LiveServer) -> None:
    assert raw_exchange(server, "GET", path).status == 200


@pytest.mark.parametrize("path", OURS)
def test_ours_cannot_be_posted_to(path: str, api: Api) -> None:
    expect(api.request("POST", path, headers={}), 405)


@pytest.mark.parametrize("path", ["/docs", "/livez", "/readyz", "/metrics"])
def test_ours_answer_a_browser(path: str, api: Api) -> None:
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = api.get(path, headers={"Accept": accept})
    assert answer.status_code == 200


# -- metrics ---------------------------------------------------------------------------------------


def test_metrics_are_prometheus_text(api: Api) -> None:
    api.post_bodies("q", 1)
    answer = api.get("/metrics", headers={})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(("text/plain", "application/openmetrics-text"))
    samples = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
    assert samples
    sample = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]\w*="[^"]*",?)*\})? \S+( \S+)?')
    for line in samples:
        assert sample.fullmatch(line), line
    assert any(line.startswith("nusku_") for line in samples)


def test_metrics_do_not_grow_with_queues_projects_or_paths(api: Api) -> None:
    def series() -> set[str]:
        lines = api.get("/metrics", headers={}).text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if line and not line.startswith("#")}

    def use(client: Api, queue: str) -> None:
        [message_id] = client.post_bodies(queue, 1)
        client.listed(queue)
        expect(client.message(queue, message_id), 200)
        client.claimed(queue)
        expect(client.drop(queue), 204)
        expect(client.get(f"/v2/{queue}"), 404)
        expect(client.show(f"{queue}@"), 400)

    use(api, "warm-up")
    before = series()
    secret = f"canary-{uuid.uuid4().hex}"
    for n in range(30):
        use(api.stranger(), f"{secret}-{n}")
    after = series()
    assert after == before
    assert not any(secret in line for line in after)


def test_metrics_count_operations(api: Api) -> None:
    def total() -> float:
        lines = api.get("/metrics", headers={}).text.splitlines()
        counted = [line for line in lines if "messages:create" in line and "_bucket" not in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counted)

    before = total()
    for _ in range(5):
        api.post_bodies("q", 1)
    assert total() > before


def test_metrics_are_refused_to_those_not_allowed(shared_server: Callable[..., LiveServer]) -> None:
    api = shared_server(client_id_uuid_safe="off", metrics_allow="10.0.0.0/8").api()
    answer = api.get("/metrics", headers={})
    assert answer.status_code in {403, 404}
    assert "nusku_" not in answer.text
    forwarded = api.get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"})
    assert forwarded.status_code in {403, 404}


# -- documents -------------------------------------------------------------------------------------


def test_the_openapi_document_covers_every_route(api: Api) -> None:
    document = expect(api.get("/openapi.json", headers={}), 200)
    assert document["openapi"].startswith("3.1")

    def shape(path: str) -> str:
        return re.sub(r"\{[^}]*\}", "{}", path)

    described = {
        shape(path): {
            m.upper() for m in item if m in {"get", "put", "post", "patch", "delete", "head"}
        }
        for path, item in document["paths"].items()
    }
    routed = {"/": {"GET"}, **{path: {"GET"} for path in OURS}}
    for path, methods in ROUTES:
        routed[re.sub(r"/(q|t|m|c|s|p|f)(?=/|$)", "/{}", path)] = methods
    assert described == routed


def test_the_human_page_works_offline(api: Api) -> None:
    answer = api.get("/docs", headers={})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", answer.text)
    fetched += re.findall(r"url\(\s*[\"']?([^\"')]+)", answer.text)
    fetched += re.findall(r"@import\s+[\"']([^\"']+)", answer.text)
    resources = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", answer.text)
    assert not any(re.search(r"(https?:)?//", tag) for tag in resources)
    for target in fetched:
        if target.startswith(("#", "data:", "http://", "https://", "mailto:")):
            continue
        assert api.get(target, headers={}).status_code in {200, 300}, target


# -- logs ------------------------------------------------------------------------------------------


@pytest.fixture
def logging(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server that tells everything, in JSON."""
    return shared_server(log_format="json", log_level="debug").api()


def line_of(server: LiveServer, request_id: str) -> dict[str, Any]:
    """The one line of the log that reports a request."""

    def find() -> dict[str, Any] | None:
        lines = [line for line in server.log().splitlines() if request_id in line]
        parsed = [json.loads(line) for line in lines]
        reports: list[dict[str, Any]] = [line for line in parsed if "status" in line]
        assert len(reports) <= 1, reports
        return reports[0] if reports else None

    found: dict[str, Any] = eventually(find)
    return found


def test_a_request_is_logged_with_id_project_operation_status_and_duration(logging: Api) -> None:
    answer = logging.post("q", {"body": 1})
    report = line_of(logging.server, answer.headers["x-openstack-request-id"])
    assert answer.headers["x-openstack-request-id"] in report.values()
    assert logging.project in report.values()
    assert report["operation"] == "messages:create"
    assert report["status"] == 201
    durations = [value for key, value in report.items() if key.startswith("duration")]
    assert len(durations) == 1
    assert float(durations[0]) >= 0


def test_a_refused_request_is_logged_too(logging: Api) -> None:
    for answer, status in (
        (logging.post("q", {"no": "body"}), 400),
        (logging.message("q", "nosuchmessage"), 404),
        (logging.get("/v2/health"), 403),
    ):
        report = line_of(logging.server, answer.headers["x-openstack-request-id"])
        assert report["status"] == status


def test_every_line_of_the_log_is_json_where_json_is_asked_for(logging: Api) -> None:
    expect(logging.create("q"), 201)
    lines = logging.server.log().splitlines()
    assert lines
    for line in lines:
        assert isinstance(json.loads(line), dict)


def test_neither_bodies_nor_tokens_nor_metadata_are_logged(logging: Api) -> None:
    canary = f"canary{uuid.uuid4().hex}"
    secretive = logging.but(extra={"X-Auth-Token": canary, "URL-Signature": ""})
    expect(secretive.create("q", {"note": canary}), 201)
    secretive.post_bodies("q", {"secret": canary}, canary)
    expect(secretive.send("POST", secretive.path("q", "messages"), f'{{"{canary}'), 400)
    expect(secretive.post("q", {"body": 1, "ttl": canary}), 400)
    expect(secretive.create("p", {"_default_message_ttl": canary}), 400)
    secretive.claimed("q")
    signed = logging.but(extra={"URL-Signature": canary})
    expect(signed.list_messages("q"), 404)
    last = logging.get("/v2/ping")
    line_of(logging.server, last.headers["x-openstack-request-id"])
    assert canary not in logging.server.log()
    assert canary not in logging.get("/metrics", headers={}).text


def test_the_log_for_humans_tells_the_same(server: LiveServer) -> None:
    api = server.api()
    answer = api.create("q")
    request_id = answer.headers["x-openstack-request-id"]

    def find() -> str:
        return "\n".join(line for line in server.log().splitlines() if request_id in line)

    line = eventually(find)
    assert api.project in line
    assert "queues:create" in line
    assert "201" in line


def test_a_line_feed_in_a_header_or_path_forges_no_line_of_the_log(server: LiveServer) -> None:
    api = server.api()
    forged = f"forged-{uuid.uuid4().hex}"
    expect(api.get(f"/v2/queues/x%0A{forged}"), 400)
    expect(api.get(f"/v2/x%0A{forged}"), 404)
    last = api.get("/v2/ping")
    eventually(lambda: last.headers["x-openstack-request-id"] in server.log())
    assert not any(line.startswith(forged) for line in server.log().splitlines())
