"""The OpenAPI document and the page made of it: valid, complete, and true of a running server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema_rs  # comes with schemathesis
import pytest
import schemathesis

import nusku
from nusku.config import Settings
from nusku.http import document, page
from nusku.http.app import routes
from tests.conftest import SharedServers
from tests.live import LiveServer
from tests.subscribing import LOCAL

ROOT = Path(__file__).parents[1]
METHODS = ("get", "head", "post", "put", "patch", "delete")

SETTINGS = {
    "default": Settings(),
    "low limits": Settings(
        max_message_ttl=120,
        max_message_delay=0,
        max_claim_ttl=90,
        max_claim_grace=61,
        max_wait=0,
        max_queues_per_page=1,
        max_messages_per_page=2,
        max_messages_per_claim_or_pop=1,
        max_subscriptions_per_page=1,
        min_subscription_ttl=1,
    ),
    "other choices": Settings(
        client_id_uuid_safe="off",
        message_delete_with_claim_id=True,
        enable_checksum=True,
        require_confirmation=True,
        subscriber_types=("https",),
    ),
    "authentication": Settings(
        auth=("key", "oidc", "keystone"), keystone_url="https://keystone.example.com/v3"
    ),
}


def described(settings: Settings) -> dict[str, Any]:
    """The document as a client gets it."""
    return cast("dict[str, Any]", json.loads(json.dumps(document(settings, nusku.__version__))))


@pytest.fixture(params=SETTINGS)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    return described(SETTINGS[request.param])


def operations(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and node of each, with the parameters of its path."""
    for path, item in spec["paths"].items():
        for method in METHODS:
            if method in item:
                parameters = item.get("parameters", []) + item[method].get("parameters", [])
                yield path, method, {**item[method], "parameters": parameters}


def resolve(spec: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for step in node.get("$ref", "#").split("/")[1:]:
        spec = spec[step]
    return spec if "$ref" in node else node


# The document


def test_it_is_valid_openapi(spec: dict[str, Any]) -> None:
    assert spec["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(spec).validate()


def test_the_server_serves_it(server: LiveServer) -> None:
    answer = httpx.get(f"{server.url}/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == described(Settings())


class Handlers:
    """Stands in for whatever serves a route: the table is all that is looked at."""

    def __getattr__(self, name: str) -> str:
        return name


def test_it_describes_what_is_routed_and_nothing_else() -> None:
    handlers = cast("Any", Handlers())
    of_a_kind = (handlers, handlers, handlers)
    kinds = {"queues": of_a_kind, "topics": of_a_kind}
    table = routes(kinds, handlers, handlers, handlers, handlers, handlers)
    routed = {
        (re.sub(r"\{\w+\}", "{}", route.template), method.lower(), operation)
        for route in table
        for method, (operation, _) in route.methods.items()
    }
    told = {
        (re.sub(r"\{\w+\}", "{}", path), method, ":".join(node["operationId"].split(":")[:2]))
        for path, method, node in operations(described(Settings()))
    }
    assert told == routed


def test_it_says_which_credentials_are_taken() -> None:
    spec = described(SETTINGS["authentication"])
    assert set(spec["components"]["securitySchemes"]) == {"token", "bearer", "signature"}
    everywhere = spec["security"]
    for path, _, node in operations(spec):
        closed = path.startswith("/v2/")
        assert bool(node.get("security", everywhere)) is closed, path
        assert ("401" in node["responses"]) is closed, path
    text = page(spec)
    assert "export TOKEN=" in text
    assert "X-Auth-Token: $TOKEN" in text
    assert "TOKEN" not in page(described(Settings()))


def test_names_of_operations_differ(spec: dict[str, Any]) -> None:
    names = [node["operationId"] for _, _, node in operations(spec)]
    assert len(names) == len(set(names))


def test_links_lead_to_operations_and_parameters_that_exist(spec: dict[str, Any]) -> None:
    by_name = {node["operationId"]: node for _, _, node in operations(spec)}
    links = [
        link
        for node in by_name.values()
        for answer in node["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert links
    for link in links:
        parameters = by_name[link["operationId"]]["parameters"]
        known = {resolve(spec, each)["name"] for each in parameters}
        assert {name.rpartition(".")[2] for name in link["parameters"]} <= known


def examples(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Where it is, its schema, and the example."""
    for _, _, node in operations(spec):
        name = node["operationId"]
        for each in node["parameters"]:
            parameter = resolve(spec, each)
            if "example" in parameter:
                yield f"{name} {parameter['name']}", parameter["schema"], parameter["example"]
        bodies = [("body", node["requestBody"])] if "requestBody" in node else []
        for part, body in [*bodies, *node["responses"].items()]:
            for content in body.get("content", {}).values():
                if "example" in content:
                    yield f"{name} {part}", content["schema"], content["example"]


def test_examples_are_what_their_schemas_say(spec: dict[str, Any]) -> None:
    wrong = []
    for where, schema, example in examples(spec):
        validator = jsonschema_rs.Draft202012Validator(
            {**schema, "components": spec["components"]}, validate_formats=True
        )
        wrong += [f"{where}: {error.message}" for error in validator.iter_errors(example)]
    assert wrong == []


def test_every_body_has_an_example(spec: dict[str, Any]) -> None:
    """Needed for the commands on the page."""
    for _, _, node in operations(spec):
        for content in node.get("requestBody", {}).get("content", {}).values():
            assert "example" in content, node["operationId"]


def test_limits_are_those_of_the_settings() -> None:
    spec = described(Settings(max_wait=7, max_messages_per_claim_or_pop=3, min_claim_ttl=5))
    claim = spec["paths"]["/v2/queues/{queue_name}/claims"]["post"]
    limits = {each["name"]: each["schema"]["maximum"] for each in claim["parameters"]}
    assert limits == {"limit": 3, "wait": 7}
    terms = spec["components"]["schemas"]["ClaimRequest"]["properties"]
    assert (terms["ttl"]["minimum"], terms["ttl"]["maximum"]) == (5, 43_200)


# The page


def test_the_server_serves_the_page(server: LiveServer) -> None:
    answer = httpx.get(f"{server.url}/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.text == page(described(Settings()))


def test_the_page_shows_every_operation_and_schema(spec: dict[str, Any]) -> None:
    html = page(spec)
    for _, _, node in operations(spec):
        assert html.count(f'<article id="{node["operationId"]}">') == 1
    for name in spec["components"]["schemas"]:
        assert html.count(f'<article id="schema-{name}">') == 1


def test_the_page_leads_nowhere_but_to_itself(spec: dict[str, Any]) -> None:
    html = page(spec)
    places = set(re.findall(r'\bid="([^"]*)"', html))
    assert places.issuperset(re.findall(r'href="#([^"]*)"', html))
    assert not re.search(r'href="(?!#)|\bsrc=|<script|@import|url\(', html)


def test_the_page_shows_text_as_text() -> None:
    kept = {"$ref", "in", "type", "tags", "name"}  # what the page looks things up by

    def soil(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: each if key in kept else soil(each) for key, each in node.items()}
        if isinstance(node, list):
            return [soil(each) for each in node]
        return f"{node}<script>\"'&amp;" if isinstance(node, str) else node

    html = page(soil(described(Settings())))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


COMMANDS = [
    unescape(command)
    for command in re.findall(r"<pre>(curl .*?)</pre>", page(described(Settings())), re.DOTALL)
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_on_the_page_work(server: LiveServer) -> None:
    """What they name need not be there."""
    told = []
    for command in COMMANDS:
        ran = subprocess.run(
            ["sh", "-c", f"{command} --silent --show-error"],
            env={**os.environ, "NUSKU": server.url},
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        status = int(ran.stdout.split()[1])
        missing = status == 404 or "does not exist" in ran.stdout
        if status not in {200, 201, 204, 300} and not missing:
            told.append((command, ran.stdout))
    assert len(COMMANDS) == len(list(operations(described(Settings()))))
    assert told == []


# The server, held against the document

# The seed makes a run repeatable; the numbers are what half a minute allows.
COMMON = """
hooks = "tests.schemathesis_hooks"
seed = 20260102
continue-on-failure = true
request-timeout = 10.0
warnings = false  # that random ids are unknown, and random bodies refused
generation.database = "none"
"""

# Each request by itself: the examples, every limit from both sides, and random data.
ALONE = f"""
{COMMON}
generation.max-examples = 3
phases.stateful.enabled = false
"""

# Requests that follow links, all on one queue and one topic of one project, so that they meet.
IN_SEQUENCE = f"""
{COMMON}
phases.examples.enabled = false
phases.coverage.enabled = false
phases.fuzzing.enabled = false
generation.mode = "positive"
generation.max-examples = 8
phases.stateful.max-steps = 15

[parameters]
"path.queue_name" = "orders"
"path.topic_name" = "news"
"header.X-Project-ID" = "demo"
"header.Client-ID" = "3381af92-2b9e-11e3-b191-71861300734c"
"query.echo" = "true"
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("config", [ALONE, IN_SEQUENCE], ids=["alone", "in sequence"])
def test_answers_are_what_the_document_says(
    shared_server: SharedServers, tmp_path: Path, config: str
) -> None:
    """All checks of schemathesis; what is excused, and why, is said in schemathesis_hooks.py."""
    server = shared_server(max_wait=1, subscriber_allow=LOCAL, delivery_timeout=1)
    (tmp_path / "schemathesis.toml").write_text(config)
    ran = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            *("--config-file", "schemathesis.toml"),
            *("run", f"{server.url}/openapi.json", "--no-color"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "No issues found" in ran.stdout
