"""A small CA, and good and bad certificates of it."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE: list[x509.GeneralName] = [
    x509.DNSName("localhost"),
    x509.DNSName("*.example.test"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.IPAddress(ip_address("::1")),
]
ELSEWHERE: list[x509.GeneralName] = [x509.DNSName("elsewhere.test")]


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Certificates:
    """Written to a folder that goes with the object."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nusku-certificates-")
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self.ca_file = Path(self._folder.name, "ca.pem")
        authority = self._build("nusku test CA", self._ca_key, [], 365, is_ca=True)
        self.ca_file.write_bytes(pem(authority))
        self._kinds: dict[str, tuple[list[x509.GeneralName], int, bool]] = {
            "tls": (HERE, 365, True),
            "wrong-host": (ELSEWHERE, 365, True),
            "expired": (HERE, -1, True),
            "self-signed": (HERE, 365, False),
        }

    def close(self) -> None:
        self._folder.cleanup()

    def context(self, kind: str) -> ssl.SSLContext:
        """For a server: `tls`, `wrong-host`, `expired` or `self-signed`."""
        names, days, by_ca = self._kinds[kind]
        file = Path(self._folder.name, f"{kind}.pem")
        file.write_bytes(b"".join(self.issue(kind, names, days, by_ca=by_ca)))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context

    def issue(
        self,
        subject: str,
        names: list[x509.GeneralName] = HERE,
        days: int = 365,
        *,
        by_ca: bool = True,
    ) -> tuple[bytes, bytes]:
        """A new certificate and its key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return pem(self._build(subject, key, names, days, by_ca=by_ca)), private(key)

    def _build(
        self,
        subject: str,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        days: int,
        *,
        by_ca: bool = True,
        is_ca: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("nusku test CA" if by_ca else subject))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._ca_key if by_ca else key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
