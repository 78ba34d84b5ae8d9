"""F-27: a server with a wrong configuration does not start, says why in a line, and leaves nothing.

What each line says is in tests/test_config.py; here each is a real start.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forking
from tests.live import settings_environment

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SECRET = "hunter2-canary"
KEYSTONE = {"NUSKU_AUTH": "keystone", "NUSKU_KEYSTONE_URL": "https://id.example/v3"}
SOON_S = 3.0

# Settings by variables, and for those with a "=" among them a file.
BAD: list[dict[str, str] | str] = [
    # types
    'port = "8888"',
    "port = 88.5",
    "store = false",
    "auth = 1",
    'allow_open = "true"',
    "metrics_allow = [1]",
    'header_timeout = "10 s"',
    f"secret_key = ['{SECRET}']",
    f'encryption_keys = [["{SECRET}"]]',
    {"NUSKU_PORT": "x"},
    {"NUSKU_ALLOW_OPEN": "perhaps"},
    {"NUSKU_MAX_WAIT": "1e3"},
    # ranges
    "port = -1",
    "max_wait = 301",
    "min_message_ttl = 0",
    "max_json_depth = 0",
    "write_timeout = nan",
    "keep_alive_timeout = inf",
    {"NUSKU_PORT": "65536"},
    {"NUSKU_WORKERS": "0"},
    {"NUSKU_STORE_CONNECTIONS": "0"},
    {"NUSKU_STORE_TIMEOUT": "-1"},
    {"NUSKU_REDIS_REPLICAS": "99"},
    # choices and forms
    {"NUSKU_LOG_LEVEL": "loud"},
    {"NUSKU_LOG_FORMAT": "xml"},
    {"NUSKU_SQLITE_SYNCHRONOUS": "off"},
    {"NUSKU_AUTH": "magic"},
    {"NUSKU_HOST": "localhost:8888"},
    {"NUSKU_SUBSCRIBER_ALLOW": "everybody"},
    {"NUSKU_CORS_ORIGINS": "example.com/path"},
    {"NUSKU_PUBLIC_URL": f"https://me:{SECRET}@example.com"},
    # what does not fit together
    {"NUSKU_HOST": "0.0.0.0"},
    {"NUSKU_MIN_MESSAGE_TTL": "100", "NUSKU_MAX_MESSAGE_TTL": "99"},
    {"NUSKU_MIN_CLAIM_TTL": "500", "NUSKU_DEFAULT_CLAIM_TTL": "300"},
    {"NUSKU_WORKERS": "2"},
    {"NUSKU_TLS_CERTIFICATE": "server.pem"},
    {"NUSKU_TLS_CERTIFICATE": "absent.pem", "NUSKU_TLS_KEY": "absent.key"},
    # what is unknown, or is not there
    "prot = 8888",
    f"[store]\nuri = 'redis://:{SECRET}@host'",
    "port = 8888\nport = 8889",
    "this is no TOML",
    f"secret_key = '{SECRET}",
    {"NUSKU_CONFIG": "absent.toml"},
    {"NUSKU_POLICY_FILE": "absent.yaml"},
    {"NUSKU_KEYSTONE_CA_FILE": "absent.pem"} | KEYSTONE,
    # secrets that are missing or wrong
    {"NUSKU_AUTH": "keystone"},
    KEYSTONE,
    KEYSTONE | {"NUSKU_KEYSTONE_USER_NAME": "nusku"},
    {"NUSKU_AUTH": "oidc"},
    {"NUSKU_ENCRYPTION_KEYS": SECRET},
    # stores
    {"NUSKU_STORE": f"mongodb://me:{SECRET}@127.0.0.1/zaqar"},
    {"NUSKU_STORE": f"redis://me:{SECRET}@127.0.0.1:1/0"},
    {"NUSKU_STORE": f"postgresql://me:{SECRET}@127.0.0.1:1/nusku"},
    {"NUSKU_STORE": f"redis+sentinel://:{SECRET}@127.0.0.1:1/service"},
    {"NUSKU_STORE": "sqlite:///absent/folder/nusku.db"},
    {"NUSKU_STORE": "sqlite:////proc/nusku.db"},
]


def test_there_are_fifty() -> None:
    assert len(BAD) >= 50


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """So that no start is made to wait for the imports of the first one."""
    folder = tmp_path_factory.mktemp("version")
    with (folder / "stderr").open("wb") as stderr:
        forking.start(["--version"], settings_environment({}), folder, stderr).communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In which the server is started, and which stays empty."""
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_wrong_configuration_is_refused(
    bad: dict[str, str] | str, folder: Path, tmp_path: Path
) -> None:
    if isinstance(bad, str):
        file = tmp_path / "nusku.toml"
        file.write_text(bad)
        bad = {"NUSKU_CONFIG": str(file)}
    _is_refused(bad, folder, tmp_path)


def test_a_port_that_is_taken_is_refused(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        _is_refused({"NUSKU_PORT": port}, folder, tmp_path)


def _is_refused(settings: dict[str, str], folder: Path, logs: Path) -> None:
    environment = settings_environment({}) | settings
    if not settings.keys() & {"NUSKU_PORT", "NUSKU_CONFIG"}:
        environment["NUSKU_PORT"] = "0"
    said = logs / "stderr"
    with said.open("wb") as stderr:
        begin = time.monotonic()
        process = forking.start(["serve"], environment, folder, stderr)
        try:
            printed, _ = process.communicate(timeout=20)
        finally:
            process.kill()
        took = time.monotonic() - begin
    text = said.read_text()
    assert process.returncode == 2, text
    assert took < SOON_S
    assert not printed
    assert text
    for problem in text.splitlines():
        assert problem.startswith("nusku: ")
    assert SECRET not in text
