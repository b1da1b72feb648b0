"""The certificate authority of a secured broker: who may connect, and as whom.

    authority = Authority.make("ELMA authority", now)
    pair = authority.issue_client("edge-kitchen", days=730, now=now)
    authority.revocation_list({pair.serial}, now)

Inputs: names, days, the time. Outputs: PEM. Keys are ECDSA on P-256; the common name of a client's
certificate is its user name at the broker. Neighbours: `secured` keeps the files, `enrolment` says
for whom a certificate is made, `certificates` reads them. `cryptography` does the work; it is an
extra, so this file is imported only by what makes or revokes certificates.
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

from broker.certificates import load_certificate
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
    """A certificate and its secret key, both PEM, and what is noted about them.

    `key` is empty where the certificate is for a key that its owner has already.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    serial: int
    expires: datetime

    @staticmethod
    def of_files(certificate: bytes, key: bytes) -> CertifiedKey:
        """A pair that somebody else made. Raises EnrolmentError where they are none."""
        loaded = load_certificate(certificate)
        try:
            secret = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise EnrolmentError("the key is not PEM, or encrypted") from error
        if secret.public_key() != loaded.public_key():
            raise EnrolmentError("the key does not belong to the certificate")
        return CertifiedKey(certificate, key, loaded.serial_number, loaded.not_valid_after_utc)


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

    def renewed(self, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
        """The same key and name for longer, so that what it has signed still counts.

        Raises EnrolmentError for one that another authority has certified.
        """
        old = self._certificate
        if old.issuer != old.subject:
            raise EnrolmentError(
                "the authority's certificate comes from another authority; renew it there"
            )
        built = _builder(old.subject, old.subject, self._key.public_key(), now, days)
        for extension in (x509.BasicConstraints, x509.KeyUsage):
            with suppress(x509.ExtensionNotFound):
                found = old.extensions.get_extension_for_class(extension)
                built = built.add_extension(found.value, critical=found.critical)
        return Authority(built.sign(self._key, hashes.SHA256()), self._key)

    @property
    def expires(self) -> datetime:
        """When it ends, and with it everything that it has signed."""
        return self._certificate.not_valid_after_utc

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

    def issue_client(
        self,
        identity: str,
        now: datetime,
        days: int = CLIENT_DAYS,
        *,
        key_of: bytes | None = None,
    ) -> CertifiedKey:
        """For a client whose user name at the broker is `identity`.

        `key_of`: an earlier certificate, whose key it keeps; else it gets a fresh one.
        """
        return self._issue(_name(identity), None, now, days, key_of)

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
        key_of: bytes | None = None,
    ) -> CertifiedKey:
        """A certificate: of a server when it has alternative names. It ends with the authority."""
        if self.expires <= now:
            raise EnrolmentError(
                f"the authority ended on {self.expires:%Y-%m-%d} and can sign nothing any more; "
                "`elma broker renew --authority` makes it good for longer"
            )
        if key_of is None:
            key = ec.generate_private_key(ec.SECP256R1())
            public_key, secret = key.public_key(), _key_to_pem(key)
        else:
            public_key, secret = _public_key(key_of), b""
        purpose = (
            ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
        )
        issuer = self._certificate.subject
        built = _builder(subject, issuer, public_key, now, days, not_after=self.expires)
        built = built.add_extension(x509.BasicConstraints(False, None), critical=True)
        built = built.add_extension(_key_usage(signs_certificates=False), critical=True)
        built = built.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        built = built.add_extension(self._key_identifier, critical=False)
        if names is not None:
            built = built.add_extension(names, critical=False)
        certificate = built.sign(self._key, hashes.SHA256())
        return CertifiedKey(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=secret,
            serial=certificate.serial_number,
            expires=certificate.not_valid_after_utc,
        )


def _public_key(certificate: bytes) -> ec.EllipticCurvePublicKey:
    key = load_certificate(certificate).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EnrolmentError("the certificate's key is not one that we made; let it have a new one")
    return key


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
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    now: datetime,
    days: int,
    not_after: datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_ALLOWANCE)
        .not_valid_after(end if not_after is None else min(end, not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_to_pem(key: AuthorityKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
