"""Ping and health (contract, 11, 12; README, choice 1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live import Api, expect

OPERATIONS = {
    "create_queue",
    "post_messages",
    "list_messages",
    "claim_messages",
    "delete_messages",
    "delete_claim",
    "bulk_delete_messages",
    "delete_queue",
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping_is_204_without_a_body(method: str, api: Api) -> None:
    answer = api.request(method, "/v2/ping")
    assert answer.status_code == 204
    assert answer.content == b""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping_needs_client_id_and_project(method: str, api: Api) -> None:
    assert api.request(method, "/v2/ping", headers={"X-Project-ID": "p"}).status_code == 400
    headers = {"Client-ID": api.client_id}
    assert api.request(method, "/v2/ping", headers=headers).status_code == 400


@pytest.fixture
def admin(api: Api) -> Api:
    """A client with the role that health asks for."""
    return api.but(extra={"X-Roles": "admin"})


def stores_of(health: dict[str, Any]) -> list[dict[str, Any]]:
    """The reports on the single stores."""
    return [report for report in health.values() if isinstance(report, dict)]


def volume(admin: Api) -> dict[str, int]:
    [report] = stores_of(expect(admin.get("/v2/health"), 200))
    counts: dict[str, int] = report["message_volume"]
    return counts


def test_health_is_for_admins(api: Api) -> None:
    expect(api.get("/v2/health"), 403, "Not authorized")


def test_health_reports_the_catalogue_and_each_store(admin: Api) -> None:
    health = expect(admin.get("/v2/health"), 200)
    assert health["catalog_reachable"] is True
    stores = stores_of(health)
    assert len(stores) == 1
    for report in stores:
        assert set(report) == {"storage_reachable", "operation_status", "message_volume"}
        assert report["storage_reachable"] is True
        assert set(report["operation_status"]) == OPERATIONS
        for outcome in report["operation_status"].values():
            assert set(outcome) == {"seconds", "ref", "succeeded"}
            assert outcome["succeeded"] is True
            assert outcome["ref"] is None
            assert isinstance(outcome["seconds"], (int, float))
            assert 0 <= outcome["seconds"] < 30
        assert set(report["message_volume"]) == {"free", "claimed", "total"}
        assert all(isinstance(number, int) for number in report["message_volume"].values())


def test_the_volume_counts_all_queues_of_all_projects(admin: Api) -> None:
    before = volume(admin)
    admin.post_bodies("q", 1, 2, 3)
    admin.stranger().post_bodies("p", 4)
    admin.claimed("q", "?limit=2")
    after = volume(admin)
    assert after["total"] - before["total"] == 4
    assert after["claimed"] - before["claimed"] == 2
    assert after["free"] - before["free"] == 2
    assert after["total"] == after["free"] + after["claimed"]
    expect(admin.drop("q"), 204)
    assert volume(admin)["total"] - before["total"] == 1


def test_the_probe_leaves_nothing_behind(admin: Api) -> None:
    before = volume(admin)
    for _ in range(3):
        expect(admin.get("/v2/health"), 200)
    assert volume(admin) == before
    assert admin.names() == []
