"""The certificate authority of a secured broker: who may connect, and as whom.

    authority = Authority.make("ELMA authority", now)
    pair = authority.issue_client("edge-kitchen", days=730, now=now)
    authority.revocation_list({pair.serial}, now)

Inputs: names, days, the time. Outputs: PEM. Keys are ECDSA on P-256; the common name of a client's
certificate is its user name at the broker. Neighbours: `secured` keeps the files, `enrolment` says
for whom a certificate is made. `cryptography` does the work; it is an extra, so this file is
imported only by what makes or revokes certificates.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.errors import EnrolmentError

AUTHORITY_DAYS = 3_650
SERVER_DAYS = 825
CLIENT_DAYS = 730
CLOCK_ALLOWANCE = timedelta(minutes=10)
"""A device whose clock is a little slow must not find its certificate not yet valid."""
MAX_COMMON_NAME = 64
_ORGANISATION = "ELMA"
AuthorityKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class CertifiedKey:
    """A certificate and its secret key, both PEM, and what is noted about them."""

    certificate: bytes
    key: bytes = field(repr=False)
    serial: int
    expires: datetime


class Authority:
    """An authority: its certificate, and the key that signs. Thread-safe."""

    def __init__(self, certificate: x509.Certificate, key: AuthorityKey) -> None:
        self._certificate = certificate
        self._key = key

    @staticmethod
    def make(name: str, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
        """A new authority with a fresh key; `now` is aware of its time zone."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        usage = _key_usage(signs_certificates=True)
        built = _builder(subject, subject, key.public_key(), now, days)
        built = built.add_extension(x509.BasicConstraints(True, 0), critical=True)
        built = built.add_extension(usage, critical=True)
        return Authority(built.sign(key, hashes.SHA256()), key)

    @staticmethod
    def load(certificate: bytes, key: bytes) -> Authority:
        """From PEM. Raises EnrolmentError when the two are no authority and its key."""
        try:
            loaded = x509.load_pem_x509_certificate(certificate)
            secret = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise EnrolmentError(
                "the authority's certificate or key is not PEM, or the key is encrypted"
            ) from error
        if secret.public_key() != loaded.public_key():
            raise EnrolmentError("the authority's key does not belong to its certificate")
        constraints = None
        with suppress(x509.ExtensionNotFound):
            constraints = loaded.extensions.get_extension_for_class(x509.BasicConstraints).value
        if constraints is None or not constraints.ca:
            raise EnrolmentError("the authority's certificate may sign no others (no CA:TRUE)")
        if not isinstance(secret, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise EnrolmentError("the authority's key must be of an elliptic curve, or RSA")
        return Authority(loaded, secret)

    @property
    def certificate(self) -> bytes:
        """The authority's certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        """The authority's secret key, PEM."""
        return _key_to_pem(self._key)

    def issue_server(
        self, hosts: Sequence[str], now: datetime, days: int = SERVER_DAYS
    ) -> CertifiedKey:
        """For a broker that is reached by these names and addresses. Raises EnrolmentError."""
        if not hosts:
            raise EnrolmentError("a broker's certificate needs at least one name or address")
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(_name(hosts[0][:MAX_COMMON_NAME]), names, now, days)

    def issue_client(self, identity: str, now: datetime, days: int = CLIENT_DAYS) -> CertifiedKey:
        """For a client whose user name at the broker is `identity`."""
        return self._issue(_name(identity), None, now, days)

    def revocation_list(self, serials: Iterable[int], now: datetime) -> bytes:
        """The signed list (PEM) of certificates that count no more.

        It is good for as long as the authority is: a list that runs out would shut everybody out.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(max(self._certificate.not_valid_after_utc, now + timedelta(days=1)))
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(self._key_identifier, critical=False)
        )
        for serial in sorted(set(serials)):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    @property
    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._certificate.public_key())  # type: ignore[arg-type]  # any key that signs certificates will do

    def _issue(
        self,
        subject: x509.Name,
        names: x509.SubjectAlternativeName | None,
        now: datetime,
        days: int,
    ) -> CertifiedKey:
        """A fresh key and its certificate: of a server when it has alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = (
            ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
        )
        built = _builder(subject, self._certificate.subject, key.public_key(), now, days)
        built = built.add_extension(x509.BasicConstraints(False, None), critical=True)
        built = built.add_extension(_key_usage(signs_certificates=False), critical=True)
        built = built.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        built = built.add_extension(self._key_identifier, critical=False)
        if names is not None:
            built = built.add_extension(names, critical=False)
        certificate = built.sign(self._key, hashes.SHA256())
        return CertifiedKey(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=_key_to_pem(key),
            serial=certificate.serial_number,
            expires=certificate.not_valid_after_utc,
        )


def revoked_serials(revocation_list: bytes) -> set[int]:
    """The serial numbers that a revocation list names. Raises EnrolmentError."""
    try:
        loaded = x509.load_pem_x509_crl(revocation_list)
    except ValueError as error:
        raise EnrolmentError("the revocation list is not PEM") from error
    return {entry.serial_number for entry in loaded}


def serial_of(certificate: bytes) -> int:
    """The serial number of a certificate in PEM. Raises EnrolmentError."""
    try:
        return x509.load_pem_x509_certificate(certificate).serial_number
    except ValueError as error:
        raise EnrolmentError("the certificate is not PEM") from error


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    """An address or a name; a name that no certificate can hold is an EnrolmentError."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise EnrolmentError(f"host {host!r} is neither an address nor an ASCII name") from error


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists; everyone else proves who they are."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_ALLOWANCE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_to_pem(key: AuthorityKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
