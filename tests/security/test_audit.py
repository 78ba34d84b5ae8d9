"""The audit log: who changed what, and who was refused, and no secrets."""

from __future__ import annotations

import io
import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nusku.audit import MANAGEMENT, Audit, opened
from nusku.broker import OPERATIONS
from nusku.config import ConfigError, Settings
from nusku.logs import Sink
from nusku.model import Caller, Context, Granted, QueueKey
from tests.governed import Governed, key_for
from tests.live import Api, LiveServer, eventually, expect


def noted(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# -- what is noted ---------------------------------------------------------------------------------


def test_all_that_changes_what_there_is_counts_as_management() -> None:
    traffic = {"messages", "claims", "ping", "health"}
    looks = ("get", "get_all", "stats")
    assert set(OPERATIONS) - MANAGEMENT == {
        name for name in OPERATIONS if name.split(":")[0] in traffic or name.split(":")[1] in looks
    }


def test_a_change_is_noted_with_who_made_it(governed: Governed) -> None:
    api = governed.api("staff", "member", user="ann")
    answer = api.create("orders")
    (line,) = governed.noted(api.project)
    assert line.pop("time") <= "9999"
    assert line == {
        "event": "audit",
        "operation": "queues:create",
        "target": "/v2/queues/orders",
        "outcome": "done",
        "method": "PUT",
        "status": 201,
        "scheme": "none",
        "project": api.project,
        "user": "ann",
        "roles": ["member", "staff"],
        "address": "127.0.0.1",
        "request_id": answer.headers["X-Openstack-Request-Id"],
    }


def test_every_change_is_noted_and_the_traffic_is_not(governed: Governed) -> None:
    api = governed.api("writer", "sharer", "admin")
    expect(api.create("q"), 201)
    expect(api.show("q"), 200)
    ids = api.post_bodies("q", 1)
    expect(api.list_messages("q"), 200)
    expect(api.delete_message("q", ids[0]), 204)
    expect(api.patch("q", []), 200)
    expect(api.patch("q", [{"op": "remove", "path": "/metadata/x"}]), 409)
    expect(api.request("POST", api.path("q", "share"), json={}), 200)
    expect(api.purge("q"), 204)
    expect(api.drop("q"), 204)
    path = api.path("q", "subscriptions")
    expect(api.request("POST", path, json={"subscriber": "ftp://x"}), 400)
    expect(api.put("/v2/flavors/f", json={"pool_list": ["none"]}), 400)
    expect(api.delete("/v2/pools/none"), 204)
    assert [
        (line["operation"], line["outcome"], line["status"]) for line in governed.noted(api.project)
    ] == [
        ("queues:create", "done", 201),
        ("queues:update", "done", 200),
        ("queues:update", "failed", 409),
        ("queues:share", "done", 200),
        ("queues:purge", "done", 204),
        ("queues:delete", "done", 204),
        ("subscription:create", "failed", 400),
        ("flavors:create", "failed", 400),
        ("pools:delete", "done", 204),
    ]


def test_what_is_refused_is_noted_whatever_it_is(governed: Governed) -> None:
    api = governed.api("guest")
    expect(api.post("q", {"body": 1}), 403)
    expect(api.get("/v2/pools?limit=3"), 403)
    expect(api.but(extra={"Queue-Project-ID": "other"}).list_messages("q"), 403)
    lines = governed.noted(api.project)
    assert [(line["operation"], line["target"], line["status"]) for line in lines] == [
        ("messages:create", "/v2/queues/q/messages", 403),
        ("pools:get_all", "/v2/pools", 403),
        ("messages:get_all", "/v2/queues/q/messages", 403),
    ]
    assert all(line["outcome"] == "refused" and line["reason"] for line in lines)


def test_a_claimed_message_is_nobody_who_was_refused(governed: Governed, api: Api) -> None:
    """That 403 is about what is done, not about who does it."""
    writer = governed.api("writer", "sharer", user="w")
    expect(writer.create("q", {"_grants": [{"project": "x", "may": ["post"]}]}), 201)
    before = len(governed.noted(writer.project))
    expect(writer.delete_message("q", "0" * 20), 204)
    assert len(governed.noted(writer.project)) == before


def test_a_grant_that_is_used_names_both_projects(governed: Governed) -> None:
    """A change cannot be granted, so that this is never more than a refusal over HTTP."""
    ctx = Context(
        "owner",
        "c",
        frozenset(),
        "ann",
        grant=Granted("messages:create", QueueKey("queue", "owner", "q"), "guest"),
    )
    out = io.StringIO()
    Audit(Sink(out), lambda: 0.25).request("messages:create", "/q", 403, refusal="no", ctx=ctx)
    assert json.loads(out.getvalue()) == {
        "time": "1970-01-01T00:00:00.250Z",
        "event": "audit",
        "operation": "messages:create",
        "target": "/q",
        "outcome": "refused",
        "status": 403,
        "reason": "no",
        "scheme": "none",
        "project": "guest",
        "owner": "owner",
        "user": "ann",
    }


def test_a_signature_that_is_wrong_is_noted(governed: Governed) -> None:
    api = governed.api()
    mark = uuid.uuid4().hex
    answer = api.but(extra={"URL-Signature": "canary-signature"}).list_messages(mark)
    expect(answer, 404)
    (line,) = [line for line in noted(governed.audit) if mark in line["target"]]
    assert (line["outcome"], line["status"]) == ("refused", 404)
    assert line["request_id"] == answer.headers["X-Openstack-Request-Id"]
    assert "project" not in line, "nobody has proved to be of one"


def test_who_brings_no_credentials_is_noted(keyed: LiveServer) -> None:
    api, file = keyed.api(), Path(str(keyed.settings["audit_log"]))
    mark = uuid.uuid4().hex
    expect(api.show(mark), 401)
    expect(api.but(extra={"X-Auth-Token": "nsk_canary", "X-Roles": "admin"}).show(mark), 401)
    expect(api.request("OPTIONS", api.path(mark)), 200)
    lines = [line for line in noted(file) if mark in line["target"]]
    assert [(line["outcome"], line["status"], line["method"]) for line in lines] == [
        ("refused", 401, "GET"),
        ("refused", 401, "GET"),
    ]
    assert not any({"project", "user", "roles"} & line.keys() for line in lines)
    assert "canary" not in file.read_text()


def test_a_key_is_noted_as_who_has_it(keyed: LiveServer) -> None:
    file, mark = Path(str(keyed.settings["audit_log"])), uuid.uuid4().hex
    key = key_for(keyed, "shop", "member", user="till-7")
    expect(keyed.api("other").but(extra={"X-Auth-Token": key}).create(mark), 201)
    (line,) = [line for line in noted(file) if mark in line["target"]]
    assert (line["scheme"], line["project"], line["user"]) == ("key", "shop", "till-7")
    assert key not in file.read_text()


def test_a_caller_is_noted_as_proved() -> None:
    out = io.StringIO()
    caller = Caller("p", frozenset({"b", "a"}), "keystone", "u1", "Ann")
    Audit(Sink(out), lambda: 0).request("pools:create", "/v2/pools/x", 201, caller=caller)
    line = json.loads(out.getvalue())
    assert (line["scheme"], line["project"], line["user"], line["user_name"], line["roles"]) == (
        "keystone",
        "p",
        "u1",
        "Ann",
        ["a", "b"],
    )


def test_secrets_are_not_noted(governed: Governed) -> None:
    api = governed.api("admin", "sharer", "writer")
    secret = {
        "X-Auth-Token": "canary-token",
        "Authorization": "Bearer canary-bearer",
        "Cookie": "canary-cookie",
    }
    api = api.but(extra={**api.extra, **secret})
    api.create("q", {"note": "canary-metadata"})
    api.put("/v2/pools/p", json={"uri": "redis://u:canary-password@127.0.0.1:1", "weight": 1})
    api.request(
        "POST",
        api.path("q", "subscriptions") + "?x=canary-query",
        json={"subscriber": "http://u:canary-password@example.com/", "options": {"a": "canary"}},
    )
    signed = expect(api.request("POST", api.path("q", "share"), json={}), 200)
    text = governed.audit.read_text()
    assert api.project in text
    assert "canary" not in text
    assert signed["signature"] not in text


def test_nothing_that_is_sent_can_make_a_line_of_its_own(governed: Governed) -> None:
    api = governed.api("guest")
    before = len(noted(governed.audit))
    api.get("/v2/queues/a%0A%7B%22event%22%3A%22audit%22%7D%00%E2%80%A8%FF/stats")
    api.put("/v2/queues/" + "x" * 2000)
    lines = noted(governed.audit)[before:]
    assert all(len(line["target"]) <= 512 for line in lines)
    assert {line["event"] for line in lines} <= {"audit"}
    out = io.StringIO()
    Audit(Sink(out)).request("a", "\ud800", 403, refusal="\udfff")
    assert json.loads(out.getvalue())["target"] == "\\ud800"


# -- where it is written ---------------------------------------------------------------------------


def test_the_file_is_for_its_owner_and_is_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    for name in ("a", "b"):
        with opened(Settings(audit_log=str(file))) as audit:
            assert audit is not None
            audit.command("keys:revoke", name)
    lines = noted(file)
    assert [line["target"] for line in lines] == ["a", "b"]
    assert {line["scheme"] for line in lines} == {"command"}
    assert lines[0]["user"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for others")
def test_a_file_that_root_makes_is_for_the_service(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    os.chown(folder, 12_345, 54_321)
    for _ in range(2):
        with opened(Settings(audit_log=str(folder / "audit.log"))):
            found = (folder / "audit.log").stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (
                12_345,
                54_321,
                0o600,
            )


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    with opened(Settings(audit_log=str(file))) as audit:
        assert audit is not None
        audit.command("a", "first")
        file.rename(old)
        audit.command("a", "second")
        file.unlink()
        audit.command("a", "third")
    assert [line["target"] for line in noted(old)] == ["first"]
    assert [line["target"] for line in noted(file)] == ["third"]


def test_lines_go_to_where_the_file_was_if_no_new_one_can_be_made(tmp_path: Path) -> None:
    folder, away = tmp_path / "logs", tmp_path / "away"
    folder.mkdir()
    with opened(Settings(audit_log=str(folder / "audit.log"))) as audit:
        assert audit is not None
        audit.command("a", "first")
        folder.rename(away)
        audit.command("a", "second")
    assert [line["target"] for line in noted(away / "audit.log")] == ["first", "second"]


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="cannot be written: No such file"),
        opened(Settings(audit_log=str(tmp_path / "missing" / "audit.log"))),
    ):
        pass


def test_lines_can_be_among_those_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    with opened(Settings(audit_log="stderr"), Sink(out)) as audit:
        assert audit is not None
        audit.request("pools:delete", "/v2/pools/x", 204)
    assert json.loads(out.getvalue())["event"] == "audit"
    with opened(Settings(audit_log="stderr")) as audit:
        assert audit is None, "a command would write them between its answers"
    with opened(Settings(), Sink(out)) as audit:
        assert audit is None


def test_a_full_disk_stops_nobody_and_is_told(private_server: Callable[..., LiveServer]) -> None:
    server = private_server(audit_log="/dev/full")
    expect(server.api().create("q"), 201)
    eventually(lambda: "a line of the audit log could not be written" in server.log())
