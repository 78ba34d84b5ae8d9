"""`trust+http` subscriptions from end to end, with a real Keystone."""

from __future__ import annotations

import httpx
import pytest

from tests.cloud import Cloud
from tests.live import expect
from tests.notify.live import subscribe
from tests.notify.receivers import Farm

pytestmark = pytest.mark.slow


def test_the_service_acts_for_who_subscribed(cloud: Cloud, farm: Farm) -> None:
    ann, keystone = cloud.api("ann"), cloud.keystone
    url = f"trust+{farm.url('/ok/trusted')}"
    subscribed = subscribe(ann, "trusted", url, ttl=600)
    trust_id = subscribed.show()["options"]["trust_id"]
    ann.post_bodies("trusted", "hello")
    (request,) = farm.wait_for(1, path="/ok/trusted")
    assert request.json()["body"] == "hello"

    # The receiver shows the token to Keystone, as any service of the cloud would.
    told = httpx.get(
        f"{keystone.url}/auth/tokens",
        headers={
            "X-Auth-Token": cloud.keystone.token("admin", keystone.password, "admin"),
            "X-Subject-Token": request.headers["x-auth-token"],
        },
    )
    token = expect(told, 200)["token"]
    assert token["user"]["id"] == cloud.users["ann"]
    assert token["project"]["id"] == cloud.projects["alpha"]
    assert [role["name"] for role in token["roles"]].count("admin") == 0
    assert token["OS-TRUST:trust"]["id"] == trust_id

    # It is a token of the project, so it opens the project's queues, too.
    as_receiver = ann.but(extra={"X-Auth-Token": request.headers["x-auth-token"]})
    assert as_receiver.listed("trusted") == ["hello"]

    # Whoever learns the id of somebody's trust can do nothing with it.
    stolen = {"subscriber": f"{url}/stolen", "options": {"trust_id": trust_id}}
    bob = cloud.api("bob")
    answer = bob.request("POST", bob.path("trusted", "subscriptions"), json=stolen)
    assert answer.status_code in {400, 403}
    subscribed.api.delete(subscribed.path())
