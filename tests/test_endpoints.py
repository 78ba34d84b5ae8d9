"""Where shared stores are: nobody may subscribe one of these."""

import pytest

from nusku.storage import endpoints


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("sqlite:///nusku.db", []),
        ("postgresql://me:s3@cret@db/nusku", [("db", 5432)]),
        ("postgresql://me@10.0.0.1:5433,10.0.0.2/nusku", [("10.0.0.1", 5433), ("10.0.0.2", 5432)]),
        ("redis://127.0.0.1:6380/3", [("127.0.0.1", 6380)]),
        ("rediss://[::1]:6380", [("::1", 6380)]),
        ("redis://[::1]", [("::1", 6379)]),
        ("redis+sentinel://one,two:26380/nusku", [("one", 26379), ("two", 26380)]),
        ("redis+cluster://me:pass@a:7000,b:7001", [("a", 7000), ("b", 7001)]),
    ],
)
def test_hosts_and_ports(uri: str, found: list[tuple[str, int]]) -> None:
    assert endpoints(uri) == found
