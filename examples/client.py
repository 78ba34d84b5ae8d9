"""What the other examples share: a client of nusku, JSON over HTTP with the standard library."""

import json
import os
import uuid
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

SERVER = os.environ.get("NUSKU", "http://127.0.0.1:8888")


class Client:
    """One client of the project `examples`."""

    def __init__(self) -> None:
        self._headers = {
            "Client-ID": str(uuid.uuid4()),
            "X-Project-ID": "examples",
            "Content-Type": "application/json",
        }

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; return the status and the answer (None where there is none).

        404 is returned like a success: it says that something is over, which is for the caller to
        judge. Other errors are raised as HTTPError. A write that got a 503 or no answer at all may
        have happened, so nothing is sent a second time here.
        """
        data = None if body is None else json.dumps(body).encode()
        request = Request(SERVER + path, data, self._headers, method=method)
        try:
            with urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except HTTPError as error:
            if error.code != 404:
                raise
            return error.code, json.load(error)
