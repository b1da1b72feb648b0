"""The end of a certificate, read without a library, is the one that was written into it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from broker.certificate_expiry import certificate_expiry
from broker.settings import BrokerSettings

KEYS = {
    "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


def make_certificate(kind: str, end: datetime) -> str:
    """A self-signed certificate in PEM form."""
    key = KEYS[kind]()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kitchen")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2024, 1, 1, tzinfo=UTC))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("year", [2027, 2049, 2050, 2061])
def test_the_end_is_read(tmp_path: Path, kind: str, year: int) -> None:
    end = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    other = make_certificate("ec", datetime(2031, 1, 1, tzinfo=UTC))
    path = tmp_path / "kitchen.pem"
    path.write_text(f"a comment\n{make_certificate(kind, end)}{other}", encoding="ascii")
    assert certificate_expiry(path) == end.timestamp()
    settings = BrokerSettings(tls_ca_file=path, tls_certificate_file=path, tls_key_file=path)
    assert settings.certificate_expires() == end.timestamp()


@pytest.mark.parametrize("content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nMAA=\n"])
def test_what_is_no_certificate_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kitchen.pem"
    path.write_text(content, encoding="ascii")
    with pytest.raises(ValueError, match="no certificate"):
        certificate_expiry(path)


def test_a_certificate_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    lines = make_certificate("ec", datetime(2030, 1, 1, tzinfo=UTC)).splitlines()
    path = tmp_path / "kitchen.pem"
    path.write_text("\n".join([*lines[:2], lines[-1]]), encoding="ascii")
    with pytest.raises(ValueError, match="damaged"):
        certificate_expiry(path)


def test_without_a_certificate_nothing_expires(tmp_path: Path) -> None:
    assert BrokerSettings().certificate_expires() == 0
    gone = tmp_path / "gone.pem"
    settings = BrokerSettings(tls_ca_file=gone, tls_certificate_file=gone, tls_key_file=gone)
    assert settings.certificate_expires() == 0
