"""Being told: a webhook receiver that believes what is signed, and agrees to its subscription.

    WEBHOOK_SECRET=whsec_… python3 examples/webhook_receiver.py [--port 8000]

The secret is that of the subscription: its option `_signing`, or what the server made for it.
Anything may come more than once, with the same webhook-id: what was handled is not handled again.
"""

import argparse
import base64
import hmac
import json
import os
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.request import Request, urlopen

from client import SERVER

WINDOW_S = 300  # older requests are refused: somebody may have recorded them
KEY = base64.b64decode(os.environ.get("WEBHOOK_SECRET", "").removeprefix("whsec_"))
handled: dict[str, float] = {}  # when which webhook-id was; for as long as it can be replayed


def is_genuine(headers: Message, body: bytes, now_s: float) -> bool:
    """Whether one of the signatures is right and the request is of these minutes."""
    sent = headers.get("webhook-timestamp", "")
    if not (sent.isascii() and sent.isdigit()) or abs(now_s - int(sent)) > WINDOW_S:
        return False
    signed = f"{headers.get('webhook-id', '')}.{sent}.".encode() + body
    mine = b"v1," + base64.b64encode(hmac.digest(KEY, signed, "sha256"))
    given = headers.get("webhook-signature", "").encode().split(b" ")
    return any(hmac.compare_digest(mine, one) for one in given)


def confirm(document: dict[str, Any]) -> None:
    """Agree to the subscription, at the server that we know and not at one we are told of."""
    names = ("X-Project-ID", "URL-Signature", "URL-Methods", "URL-Paths", "URL-Expires")
    headers = {"Client-ID": "0" * 32, "Content-Type": "application/json"}
    headers |= {name: document[name] for name in names}
    body = json.dumps(document["SubscribeBody"]).encode()
    request = Request(SERVER + document["URL-Paths"], body, headers, method="PUT")
    urlopen(request, timeout=10).close()


def handle(headers: Message, body: bytes, now_s: float) -> int:
    """The status to answer: 2xx says done, 5xx once more later, 4xx never again."""
    if not is_genuine(headers, body, now_s):
        return 401
    for old in [event_id for event_id, at in handled.items() if now_s - at > 2 * WINDOW_S]:
        del handled[old]
    if headers["webhook-id"] not in handled:
        document = json.loads(body)
        if document["Message_Type"] == "SubscriptionConfirmation":
            confirm(document)
        print(document.get("body", document.get("Message")), flush=True)
        handled[headers["webhook-id"]] = now_s
    return 204


class Receiver(BaseHTTPRequestHandler):
    """What is not handled to the end is answered by hanging up, and comes again."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(handle(self.headers, body, time.time()))
        self.end_headers()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Receive what a queue tells its subscribers.")
    options.add_argument("--port", type=int, default=8000)
    if not KEY:
        raise SystemExit("set WEBHOOK_SECRET to the secret of the subscription")
    server = HTTPServer(("127.0.0.1", options.parse_args().port), Receiver)
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()
