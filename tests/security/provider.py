"""An OpenID Connect provider for tests: its configuration, its keys, and tokens that it signs."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "queues"
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One for all, since making one takes long."""
    return rsa.generate_private_key(65537, bits)


class Signer:
    """A private key of the provider, and how it is told to others."""

    def __init__(self, id_: str | None, algorithm: str = "ES256", key: Any = None) -> None:
        self.id = id_
        self.algorithm = algorithm
        public: Any
        if algorithm in CURVES:
            self.key = key or ec.generate_private_key(CURVES[algorithm])
            public = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        elif algorithm == "EdDSA":
            self.key = key or ed25519.Ed25519PrivateKey.generate()
            public = OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        else:
            self.key = key or rsa_key()
            public = RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
            public.pop("key_ops", None)
        self.jwk: dict[str, Any] = {**public, "use": "sig"}
        if id_ is not None:
            self.jwk["kid"] = id_

    def sign(self, claims: Mapping[str, Any], **head: Any) -> str:
        named = {} if self.id is None else {"kid": self.id}
        algorithm = head.pop("alg", self.algorithm)
        return jwt.encode(dict(claims), self.key, algorithm, headers={**named, **head})


class Provider:
    """Serves on loopback. ``asked`` lists the paths; ``status`` is what it answers, 0 for nothing
    before ``answering`` is set again; ``documents`` may be changed.
    """

    def __init__(self, *signers: Signer) -> None:
        self.signers = list(signers) or [Signer("first")]
        self.asked: list[str] = []
        self._asked = threading.Condition()
        self.status = 200
        self.answering = threading.Event()
        self.answering.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.issuer = f"http://127.0.0.1:{self.server.server_port}/realms/main"
        self.configuration: Any = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/certs"}
        self.certs: Any = None  # what is told instead of the signers' keys

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.answering.set()
        self.server.shutdown()
        self.server.server_close()

    def token(self, signer: Signer | None = None, /, **claims: Any) -> str:
        """One that is accepted, unless claims are given that are not. None leaves a claim out."""
        return (signer or self.signers[0]).sign(self.claims(**claims))

    def claims(self, **claims: Any) -> dict[str, Any]:
        now_s = int(time.time())
        usual = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "user-1",
            "iat": now_s,
            "exp": now_s + 600,
            "project": "p1",
            "roles": ["member"],
        }
        return {name: value for name, value in {**usual, **claims}.items() if value is not None}

    def wait_until_asked(self, times: int) -> None:
        """Return when it was asked so often."""
        with self._asked:
            assert self._asked.wait_for(lambda: len(self.asked) >= times, 10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with provider._asked:
                    provider.asked.append(self.path)
                    provider._asked.notify_all()
                provider.answering.wait(30)
                if self.path == "/realms/main/.well-known/openid-configuration":
                    document = provider.configuration
                elif self.path == "/realms/main/certs":
                    document = provider.certs
                    if document is None:
                        document = {"keys": [one.jwk for one in provider.signers]}
                else:
                    document = None
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(404 if document is None else provider.status)
                if provider.status in {301, 302, 307}:
                    self.send_header("Location", f"{provider.issuer}/certs")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - theirs
                pass

        return Handler


def forged(head: Mapping[str, Any], claims: Mapping[str, Any], signature: bytes = b"x") -> str:
    """A token put together by hand."""
    parts = (json.dumps(head).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(one).rstrip(b"=").decode() for one in parts)
