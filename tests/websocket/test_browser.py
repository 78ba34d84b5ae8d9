"""The example page in a real browser: it posts over a WebSocket and watches the event stream."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SharedServers
from tests.live import LiveServer, eventually, ids_of

PAGE = Path(__file__).parents[2] / "examples" / "live.html"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PATIENCE_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="there is no Chromium here"),
]

# What a person would do with the page, and a word about what they see.
PERSON = """
<script>
const tell = what => fetch("/seen", {method: "POST", body: JSON.stringify(what)})
new MutationObserver(() => tell([...document.querySelectorAll("li")].map(li => li.textContent)))
  .observe(document.querySelector("ol"), {childList: true})
new MutationObserver(() => tell(document.querySelector("output").value))
  .observe(document.querySelector("output"), {childList: true})
const say = text => {
  document.querySelector("input").value = text
  document.querySelector("form").requestSubmit()
}
socket.addEventListener("open", () => { say("hello"); say("world") })
</script>
"""


class Site:
    """Where the page comes from, and what it has told of itself."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = PAGE.read_text() + PERSON
                self._answer(text.encode() if self.path.startswith("/?") else b"")

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                site.seen.append(json.loads(self.rfile.read(length)))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    one = Site()
    yield one
    one.close()


@contextmanager
def browser(folder: Path, url: str) -> Iterator[None]:
    process = subprocess.Popen(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={folder}", url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_page_posts_and_watches(shared_server: SharedServers, site: Site, tmp_path: Path) -> None:
    server = shared_server(cors_origins=(site.origin,))
    api = server.api()
    url = f"{site.origin}/?server={server.url}&project={api.project}&queue=live"
    site.seen.clear()
    with browser(tmp_path, url):
        eventually(lambda: ["hello", "world"] in site.seen, within_s=PATIENCE_S)
        ids_of(api.post("live", {"body": "from elsewhere"}))
        everything = ["hello", "world", "from elsewhere"]
        eventually(lambda: everything in site.seen, within_s=PATIENCE_S)
    assert sorted(api.listed("live")) == sorted(everything)


def test_a_page_of_another_origin_gets_nowhere(
    server: LiveServer, site: Site, tmp_path: Path
) -> None:
    api = server.api()
    api.post_bodies("live", "secret")
    url = f"{site.origin}/?server={server.url}&project={api.project}&queue=live"
    site.seen.clear()
    with browser(tmp_path, url):
        eventually(lambda: site.seen, within_s=PATIENCE_S)
        assert site.seen[0].startswith("closed: 1006")
    assert not any("secret" in str(seen) for seen in site.seen)
    assert api.listed("live") == ["secret"]
