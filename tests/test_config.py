"""Settings: where they come from, what is refused and in which words, how they are shown."""

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from nusku.config import ConfigError, Settings, as_toml, document, load, masked
from nusku.config.settings import SECRETS
from nusku.storage import StoreOptions

ROOT = Path(__file__).parent.parent


def problems(
    toml: str = "",
    folder: Path | None = None,
    environ: dict[str, str] | None = None,
    **overrides: object,
) -> list[str]:
    path = None
    if folder is not None:
        path = folder / "nusku.toml"
        path.write_text(toml)
    with pytest.raises(ConfigError) as refused:
        load(path, environ or {}, overrides)
    return list(refused.value.problems)


# -- where they come from


def test_without_anything_the_defaults_hold() -> None:
    assert load(None, {}, {}) == Settings()


def test_the_command_line_beats_the_environment_and_that_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nusku.toml"
    path.write_text("max_wait = 1\nport = 1\nmax_headers = 51\n")
    environ = {"NUSKU_MAX_WAIT": "2", "NUSKU_PORT": "2"}
    settings = load(path, environ, {"port": "3"})
    assert (settings.max_headers, settings.max_wait, settings.port) == (51, 2, 3)


def test_other_variables_and_the_one_for_the_file_are_not_settings() -> None:
    environ = {"PATH": "/bin", "NUSKUISH": "1", "nusku_port": "9", "NUSKU_CONFIG": "x.toml"}
    assert load(None, environ, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "YES", "on", "1", " true ")),
        *((text, False) for text in ("false", "No", "off", "0")),
    ],
)
def test_switches_in_the_environment(text: str, value: bool) -> None:
    assert load(None, {"NUSKU_ENABLE_CHECKSUM": text}, {}).enable_checksum is value


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        (" 10.0.0.0/8 , ::1/128,", ("10.0.0.0/8", "::1/128")),
        ("192.0.2.7", ("192.0.2.7",)),
        ("", ()),
    ],
)
def test_lists_in_the_environment(text: str, networks: tuple[str, ...]) -> None:
    assert load(None, {"NUSKU_METRICS_ALLOW": text}, {}).metrics_allow == networks


def test_numbers_in_the_environment() -> None:
    environ = {"NUSKU_HEADER_TIMEOUT": "0.5", "NUSKU_BODY_TIMEOUT": "7", "NUSKU_PORT": "0"}
    settings = load(None, environ, {})
    assert (settings.header_timeout, settings.body_timeout, settings.port) == (0.5, 7.0, 0)


def test_a_file_may_set_everything(tmp_path: Path) -> None:
    path = tmp_path / "nusku.toml"
    path.write_text(as_toml(Settings()))
    assert load(path, {}, {}) == Settings()
    assert set(tomllib.loads(path.read_text())) == set(Settings.__struct_fields__)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost", "::ffff:127.0.0.1"]
)
def test_loopback_needs_no_permission(host: str) -> None:
    assert load(None, {}, {"host": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "queue.example.org", "fe80::1%lo"])
def test_other_hosts_need_allow_open(host: str) -> None:
    assert load(None, {}, {"host": host, "allow_open": True}).host == host
    (problem,) = problems(host=host)
    assert "allow_open" in problem
    assert host in problem


def test_an_order_may_have_one_end_only() -> None:
    settings = load(None, {"NUSKU_MIN_SUBSCRIPTION_TTL": "1"}, {})
    assert (settings.min_subscription_ttl, settings.default_subscription_ttl) == (1, 3600)
    far = {"NUSKU_DEFAULT_SUBSCRIPTION_TTL": "315360000"}
    assert load(None, far, {}).default_subscription_ttl == 315_360_000


GOOD_VALUES = [
    ("subscriber_types", "https,trust+https", ("https", "trust+https")),
    ("subscriber_types", "", ()),
    ("subscriber_allow", "127.0.0.1/32, ::1, 10.1.0.0/16", ("127.0.0.1/32", "::1", "10.1.0.0/16")),
    ("subscriber_ports", "443,1-65535,8080-8080", ("443", "1-65535", "8080-8080")),
    ("nameservers", "192.0.2.1", ("192.0.2.1",)),
    ("nameservers", "192.0.2.1:5353,[::1]:5353,::1", ("192.0.2.1:5353", "[::1]:5353", "::1")),
    *(
        ("public_url", url, url)
        for url in (
            *("", "http://queues", "https://queues.example.com:8443", "https://[::1]:8888/queues/"),
            *("http://192.0.2.1/a/b", "https://example.com/confirm"),
        )
    ),
    ("smtp_host", "mail.example.com", "mail.example.com"),
    ("smtp_host", "::1", "::1"),
    ("smtp_from", "no-reply@example.com", "no-reply@example.com"),
    ("smtp_from", "The queues <no-reply@example.com>", "The queues <no-reply@example.com>"),
    ("smtp_user_name", "jörg@example.com", "jörg@example.com"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD_VALUES)
def test_values_that_are_fine(name: str, text: str, value: object) -> None:
    assert getattr(load(None, {f"NUSKU_{name.upper()}": text}, {}), name) == value


# -- what is refused

# With user, query, fragment; without scheme, host; with what does not belong into a URL.
BAD_URLS = (
    *(
        "example.com",
        "//example.com",
        "ftp://example.com",
        "https:example.com",
        "https://",
        "HTTPS://a",
    ),
    *(
        "https://me@example.com",
        "https://me:pw@example.com/",
        "https://@example.com",
        "https:///path",
    ),
    *("https://example.com?", "https://example.com/?a=b", "https://example.com#", "https://e/#x"),
    *(
        "https://exa mple.com",
        "https://example.com/ ",
        " https://example.com",
        "https://e/\\x",
        "https://ä",
    ),
    *(
        "https://e:0",
        "https://e:99999",
        "https://e:x",
        "https://[::1",
        "https://[v1.x]/",
        "https://1.2.3",
    ),
)

# (what the file holds, what the one line must say)
BAD_FILES = [
    # types
    ('port = "8888"', ["setting port", "'8888'", "from 0 to 65535"]),
    ("port = 88.5", ["setting port", "88.5", "whole number"]),
    ("port = true", ["setting port", "True"]),
    ("port = [8888]", ["setting port", "[8888]"]),
    ("port = 1979-05-27", ["setting port", "1979"]),
    ("[port]\nhttp = 8888", ["setting port", "http"]),
    ("host = 127", ["setting host", "127", "without a port"]),
    ("store = false", ["setting store", "False", "sqlite:///"]),
    ("auth = 1", ["setting auth", "1", "allowed: none"]),
    ('allow_open = "true"', ["setting allow_open", "'true'", "true or false"]),
    ("allow_open = 1", ["setting allow_open", "1", "true or false"]),
    ('metrics_allow = "localhost"', ["setting metrics_allow", "networks such as"]),
    ("metrics_allow = [1]", ["setting metrics_allow", "[1]"]),
    ("log_level = 20", ["setting log_level", "20", "debug, info, warning or error"]),
    ('header_timeout = "10 s"', ["setting header_timeout", "'10 s'", "a number from 0.1"]),
    ("header_timeout = false", ["setting header_timeout", "False"]),
    # ranges
    ("port = -1", ["setting port", "-1", "from 0 to 65535"]),
    ("port = 65536", ["setting port", "65536", "from 0 to 65535"]),
    ("max_wait = 301", ["setting max_wait", "301", "from 0 to 300 s"]),
    ("max_wait = -1", ["setting max_wait", "-1", "from 0 to 300 s"]),
    ("min_message_ttl = 0", ["setting min_message_ttl", "is 0 ", "from 1 to"]),
    ("max_message_ttl = 99999999999", ["setting max_message_ttl", "99999999999"]),
    ("max_messages_post_size = 0", ["setting max_messages_post_size", "is 0 ", "bytes"]),
    ("max_queues_per_page = 100000", ["setting max_queues_per_page", "from 1 to 1000"]),
    ("max_json_depth = 0", ["setting max_json_depth", "from 1 to 512"]),
    ("max_connections = 0", ["setting max_connections", "from 1 to"]),
    ("max_header_size = 10", ["setting max_header_size", "from 1024 to"]),
    ("max_headers = 1", ["setting max_headers", "from 16 to"]),
    ("max_url_size = 1", ["setting max_url_size", "from 256 to"]),
    ("disk_watermark = -1", ["setting disk_watermark", "-1", "bytes"]),
    ("body_timeout = 0", ["setting body_timeout", "from 0.1 to 3600 s"]),
    ("write_timeout = nan", ["setting write_timeout", "nan"]),
    ("keep_alive_timeout = inf", ["setting keep_alive_timeout", "inf"]),
    ("shutdown_timeout = -1", ["setting shutdown_timeout", "from 0 to 600 s"]),
    # choices and forms
    ('auth = "password"', ["setting auth", "'password'", "allowed: none"]),
    ('auth = ""', ["setting auth", "allowed: none, or some of"]),
    ('auth = ["key", "key"]', ["setting auth", "allowed: none"]),
    ('auth = ["none", "key"]', ["setting auth", "allowed: none"]),
    ('sqlite_synchronous = "off"', ["setting sqlite_synchronous", "'off'", "full or normal"]),
    ('client_id_uuid_safe = "on"', ["setting client_id_uuid_safe", "strict or off"]),
    ('log_format = "xml"', ["setting log_format", "'xml'", "auto, text or json"]),
    ('host = ""', ["setting host", "''", "without a port"]),
    ('host = "127.0.0.1:8888"', ["setting host", "without a port"]),
    ('host = "http://localhost"', ["setting host", "without a port"]),
    ('host = "256.1.1.1"', ["setting host", "'256.1.1.1'", "an IP address"]),
    ('host = "0.0.0.0"', ["setting host", "'0.0.0.0'", "allow_open = true"]),
    ('store = "nusku.db"', ["setting store", "'nusku.db'", "sqlite:///"]),
    ('store = "sqlite:///a\\u0000b"', ["setting store", "\\x00", "sqlite:///"]),
    ('metrics_allow = ["10.0.0.1/8"]', ["setting metrics_allow", "10.0.0.1/8", "networks such as"]),
    ('metrics_allow = ["everybody"]', ["setting metrics_allow", "everybody"]),
    ('subscriber_types = ["http", "ftp"]', ["setting subscriber_types", "ftp", "some of http"]),
    ('subscriber_types = ["HTTP"]', ["setting subscriber_types", "HTTP"]),
    ('subscriber_types = "ftp"', ["setting subscriber_types", "'ftp'"]),
    ('subscriber_private = "maybe"', ["setting subscriber_private", "refuse or allow"]),
    ('subscriber_allow = ["10.0.0.1/8"]', ["setting subscriber_allow", "10.0.0.1/8", "networks"]),
    ('subscriber_allow = ["localhost"]', ["setting subscriber_allow", "localhost"]),
    *(
        (f"subscriber_ports = ['{port}']", ["setting subscriber_ports", port, "443 or 1024-65535"])
        for port in ("0", "65536", "http", "-1", "1-", "-", "9-8", "1-65536", "0-9", "1 - 2", "٤٤٣")
    ),
    ("subscriber_ports = [443]", ["setting subscriber_ports", "[443]"]),
    *(
        (f"nameservers = ['{server}']", ["setting nameservers", server, "192.0.2.1:5353"])
        for server in (
            *("ns.example.com", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.300"),
            *("[::1]", "[::1]:", "[::1:53", "[192.0.2.1]:53", "::1:99999", "192.0.2.0/24", "53"),
        )
    ),
    *(
        (f"{name} = '{url}'", [f"setting {name}", "empty, or a URL such as https://"])
        for name in ("public_url", "external_confirmation_url", "trustee_auth_url")
        for url in BAD_URLS
    ),
    *(
        (f'smtp_from = "{sender}"', ["setting smtp_from", "empty, or a mail address"])
        for sender in (
            *(
                "nobody",
                "@",
                "a@",
                "@b",
                "a@b@c",
                "a b@c",
                "a@b c",
                "a@b,c@d",
                "<a@b>",
                "a@b.",
                "a@-b/",
            ),
            *("a@b\\r\\nBcc: x@y", "a@b\\n", "Name <a>", "N\\r\\nX: y <a@b>", 'x\\"y <a@b>'),
            *("a@b <a@b>", "ä@b", "a@ä", "x" * 65 + "@b", "a@" + "x" * 254, "N <a@b> "),
        )
    ),
    ('smtp_host = "smtp://mail"', ["setting smtp_host", "'smtp://mail'", "a host name"]),
    ('smtp_host = "mail:25"', ["setting smtp_host", "'mail:25'"]),
    ('smtp_host = "256.1.1.1"', ["setting smtp_host", "'256.1.1.1'"]),
    ('smtp_security = "ssl"', ["setting smtp_security", "starttls, tls or none"]),
    ('smtp_user_name = "a\\r\\nb"', ["setting smtp_user_name", "a name"]),
    ('mail_templates = "a\\u0000b"', ["setting mail_templates", "the path of a file"]),
    ('trustee_user_name = "a\\nb"', ["setting trustee_user_name", "a name"]),
    ('trustee_user_domain_name = "a\\nb"', ["setting trustee_user_domain_name", "a name"]),
    ("max_signature_ttl = 59", ["setting max_signature_ttl", "from 60 to"]),
    ("delivery_timeout = 0", ["setting delivery_timeout", "from 0.1 to 300 s"]),
    ("max_deliveries = 7", ["setting max_deliveries", "from 8 to"]),
    *(
        (f"cors_origins = ['{origin}']", ["setting cors_origins", "origins such as https://"])
        for origin in (
            *("console.example.com", "https://a.example/", "https://a.example/x", "https://"),
            *(
                "HTTPS://a.example",
                "https://A.example",
                "ftp://a.example",
                "null",
                "**",
                "https://*",
            ),
            *(
                "https://u@a.example",
                "https://a.example:0",
                "https://a.example:65536",
                "https://1.2.3",
            ),
            *(
                "https://[::1",
                "https://[x]",
                "https://a.example:0443",
                "https://a.example https://b",
            ),
        )
    ),
    ('tls_min_version = "1.1"', ["setting tls_min_version", "1.2 or 1.3"]),
    ('tls_certificate = "a\\nb"', ["setting tls_certificate", "the path of a PEM file"]),
    ("max_connections_per_address = -1", ["setting max_connections_per_address", "from 0 to"]),
    # settings that do not go together
    ('tls_key = "key.pem"', ["setting tls_key", "empty without tls_certificate"]),
    ('tls_client_ca = "ca.pem"', ["setting tls_client_ca", "empty without tls_certificate"]),
    (
        "default_subscription_ttl = 59",
        ["default_subscription_ttl is 59", "from min_subscription_ttl (60) on"],
    ),
    (
        "min_subscription_ttl = 4000",
        ["default_subscription_ttl is 3600 (the default)", "(4000) on"],
    ),
    ("max_message_ttl = 3599", ["default_message_ttl", "3600 (the default)", "(3599)"]),
    ("min_message_ttl = 3601", ["default_message_ttl", "min_message_ttl (3601)"]),
    ("default_claim_ttl = 59", ["default_claim_ttl", "59", "min_claim_ttl (60)"]),
    ("default_claim_grace = 50000", ["default_claim_grace", "max_claim_grace (43200)"]),
    ("default_message_delay = 901", ["default_message_delay", "901", "max_message_delay (900)"]),
    ("min_length_client_id = 37", ["min_length_client_id", "37", "max_length_client_id (36)"]),
    # names
    ("max_wiat = 20", ["setting max_wiat is unknown", "did you mean max_wait?"]),
    ('Port = "x"', ["setting Port is unknown", "did you mean port?"]),
    ("frobnicate = 1", ["setting frobnicate is unknown"]),
    ("[server]\nport = 1", ["setting server is unknown"]),
    ('"a\\nb" = 1', ["setting 'a\\nb' is unknown"]),
    # not a settings file
    ("port: 8888", ["nusku.toml is not valid TOML", "line 1"]),
    ("port = 1\nport = 2", ["nusku.toml is not valid TOML"]),
    ("a = " + "[" * 100_000, ["nusku.toml is nested too deeply"]),
    ("#" * 1_100_000, ["nusku.toml is larger than 1048576 bytes"]),
]


@pytest.mark.parametrize(("toml", "said"), BAD_FILES, ids=[f[0][:40] for f in BAD_FILES])
def test_a_bad_file_is_refused_in_one_line(toml: str, said: list[str], tmp_path: Path) -> None:
    (problem,) = problems(toml, tmp_path)
    assert "\n" not in problem
    assert len(problem) < 400
    for words in said:
        assert words in problem


BAD_VARIABLES = [
    ("NUSKU_PORT", "", ["setting port is ''", "NUSKU_PORT"]),
    ("NUSKU_PORT", "http", ["setting port is 'http'", "NUSKU_PORT"]),
    ("NUSKU_PORT", "0x22b8", ["setting port is '0x22b8'"]),
    ("NUSKU_MAX_WAIT", "1.5", ["setting max_wait is '1.5'", "whole number"]),
    ("NUSKU_BODY_TIMEOUT", "nan", ["setting body_timeout is 'nan'"]),
    ("NUSKU_ALLOW_OPEN", "maybe", ["setting allow_open is 'maybe'", "true or false"]),
    ("NUSKU_LOG_LEVEL", "INFO", ["setting log_level is 'INFO'", "debug, info, warning or error"]),
    ("NUSKU_METRICS_ALLOW", "10.0.0.0/8;::1", ["setting metrics_allow", "networks such as"]),
    ("NUSKU_STORE", "x" * 10_000, ["setting store is 'xxx", "…"]),
    ("NUSKU_MAX_WIAT", "1", ["NUSKU_MAX_WIAT is unknown; did you mean NUSKU_MAX_WAIT?"]),
    ("NUSKU_max_wait", "1", ["NUSKU_max_wait is unknown; did you mean NUSKU_MAX_WAIT?"]),
    ("NUSKU_", "1", ["NUSKU_ is unknown"]),
]


@pytest.mark.parametrize(("name", "value", "said"), BAD_VARIABLES)
def test_a_bad_variable_is_refused_in_one_line(name: str, value: str, said: list[str]) -> None:
    (problem,) = problems(environ={name: value})
    assert "\n" not in problem
    assert len(problem) < 300
    for words in said:
        assert words in problem


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    toml = "max_wait = 999\nport = 'x'\nmax_wiat = 1\nmax_message_ttl = 100"
    found = problems(toml, tmp_path, {"NUSKU_NONSENSE": "1"}, log_format="xml")
    assert len(found) == 6


def test_a_rule_is_not_judged_on_a_value_that_was_refused(tmp_path: Path) -> None:
    (problem,) = problems("min_message_ttl = 'x'\ndefault_message_ttl = 10", tmp_path)
    assert "setting min_message_ttl" in problem


def test_an_option_is_named_as_it_was_written() -> None:
    (problem,) = problems(log_level="loud")
    assert "setting log_level is 'loud' (--log-level)" in problem


@pytest.mark.parametrize("name", ["absent.toml", "folder", "absent/nusku.toml"])
def test_a_file_that_cannot_be_read_is_a_problem(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: ") as refused:
        load(tmp_path / name, {}, {})
    assert name in str(refused.value)


def test_a_file_that_is_not_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "nusku.toml").write_bytes(b"port = 1\n# \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "nusku.toml", {}, {})


def test_a_refused_value_does_not_show_its_password() -> None:
    (problem,) = problems(store="Redis://me:hunter2@host/0")
    assert "hunter2" not in problem
    assert "***" in problem


# Keys and passwords.


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize(
    "toml", ["12345678", "1234.5678", "true", '["canary"]', '{ key = "canary" }', "1979-05-27"]
)
def test_a_refused_secret_is_not_shown(name: str, toml: str, tmp_path: Path) -> None:
    (problem,) = problems(f"{name} = {toml}", tmp_path)
    assert problem.startswith(f"setting {name} is *** (")
    for part in ("canary", "1234", "True", "1979", "key ="):
        assert part not in problem.replace("_key", "")


def test_a_secret_that_is_no_text_is_refused() -> None:
    """The environment may hold any bytes."""
    (problem,) = problems(environ={"NUSKU_SECRET_KEY": "canary\udcff"})
    assert problem == "setting secret_key is *** (NUSKU_SECRET_KEY); allowed: a text"


@pytest.mark.parametrize(
    "secret", [" blanks ", "lines\r\n", "a,b", "true", "ä", "\t", "x" * 10_000]
)
@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_secret_is_taken_as_it_is(secret: str, way: str, tmp_path: Path) -> None:
    if way == "environment":
        settings = load(None, {"NUSKU_SECRET_KEY": secret}, {})
    else:
        path = tmp_path / "nusku.toml"
        path.write_text(f"secret_key = {json.dumps(secret)}")
        settings = load(path, {}, {})
    assert settings.secret_key == secret
    assert type(settings.secret_key) is str


def test_secrets_are_not_among_what_is_shown() -> None:
    settings = Settings(secret_key="canary", smtp_user_password="canary", smtp_user_name="me")
    shown = as_toml(settings)
    assert "canary" not in shown
    assert "# secret_key is set, and not shown" in shown.splitlines()
    assert tomllib.loads(shown)["smtp_user_name"] == "me"
    assert {"secret_key", "smtp_user_password"}.isdisjoint(tomllib.loads(shown))
    assert {
        "encryption_keys",
        "keystone_user_password",
        "secret_key",
        "smtp_user_password",
        "trustee_user_password",
    } == SECRETS


# The command itself: nothing is started, nothing is created, the exit code is 2.
BAD_STARTS = [
    {"NUSKU_PORT": "x"},
    {"NUSKU_HOST": "0.0.0.0"},
    {"NUSKU_CONFIG": "absent.toml"},
    {"NUSKU_STORE": "redis://me:hunter2@127.0.0.1:1/0"},
    {"NUSKU_STORE": "sqlite:///absent/folder/nusku.db"},
]


@pytest.mark.parametrize("environ", BAD_STARTS, ids=str)
def test_a_bad_start_ends_at_once_and_creates_nothing(
    environ: dict[str, str], tmp_path: Path
) -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "nusku", "serve"],
        cwd=tmp_path,
        env={**clean_environment(), "NUSKU_PORT": "0", **environ},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert time.monotonic() - started < 10
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("nusku: ")
    assert "hunter2" not in line
    assert list(tmp_path.iterdir()) == []


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("NUSKU_")}


# -- how they are shown


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:///nusku.db", "sqlite:///nusku.db"),
        ("sqlite:////var/lib/a:b@c.db", "sqlite:////var/lib/a:b@c.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:pw@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:p/w?@@host/db", "postgresql://me:***@host/db"),
        ("redis://:pw@host/0", "redis://:***@host/0"),
        ("redis+sentinel://me:pw@h1:1,h2:2/0", "redis+sentinel://me:***@h1:1,h2:2/0"),
        ("postgresql://host/db?user=me&password=pw", "postgresql://host/db?user=me&password=***"),
        ("postgresql://host/db?SSLPassword=pw&x=1", "postgresql://host/db?SSLPassword=***&x=1"),
    ],
)
def test_passwords_in_uris_are_masked(uri: str, shown: str) -> None:
    assert masked(uri) == shown


@pytest.mark.parametrize("path", ["a b", 'a"b', "a\\b", "ä", "a'b"])
def test_shown_settings_are_toml(path: str) -> None:
    settings = load(None, {"NUSKU_STORE": f"sqlite:///{path}"}, {})
    assert tomllib.loads(as_toml(settings))["store"] == f"sqlite:///{path}"


def test_no_pool_may_let_its_store_take_longer_than_the_service() -> None:
    settings = Settings(store_timeout=5)
    for given, counts in ((2.5, 2.5), (600, 5)):
        assert StoreOptions.of(settings, {"store_timeout": given}).timeout_s == counts


def test_the_documentation_of_settings_is_true() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == document(), "run `make settings`"


def test_every_setting_is_documented_with_its_reason() -> None:
    page = document()
    for name in Settings.__struct_fields__:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(row.split("|")[5]) > 20
