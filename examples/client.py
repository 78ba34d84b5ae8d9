"""What the other examples share: a client of nusku, JSON over HTTP with the standard library."""

import json
import os
import sys
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

    def send(
        self, method: str, path: str, body: Any = None, accept: tuple[int, ...] = ()
    ) -> tuple[int, Any]:
        """Send a request; return the status and the answer (None where there is none).

        Errors end the program, but for those in `accept`, which the caller knows how to take. A
        write that got a 503 or no answer at all may have happened: nothing is sent again here.
        """
        data = None if body is None else json.dumps(body).encode()
        request = Request(SERVER + path, data, self._headers, method=method)
        try:
            with urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except HTTPError as error:
            problem = json.load(error)
            if error.code not in accept:
                sys.exit(f"{method} {path}: {problem['title']}. {problem.get('description', '')}")
            return error.code, problem
