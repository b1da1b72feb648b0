"""What certificates and revocation lists say: names, serial numbers, ends.

Inputs: PEM. Outputs: what stands in it; nothing is verified. Neighbours: `authority` makes them,
`certificate_expiry` reads the one thing that a device needs, without a library.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from broker.errors import EnrolmentError


def revoked_serials(revocation_list: bytes) -> set[int]:
    """The serial numbers that a revocation list names. Raises EnrolmentError."""
    try:
        loaded = x509.load_pem_x509_crl(revocation_list)
    except ValueError as error:
        raise EnrolmentError("the revocation list is not PEM") from error
    return {entry.serial_number for entry in loaded}


def serial_of(certificate: bytes) -> int:
    """The serial number of a certificate in PEM. Raises EnrolmentError."""
    return load_certificate(certificate).serial_number


def identity_of(certificate: bytes) -> str:
    """Whom a certificate in PEM names: the user name at the broker. Raises EnrolmentError."""
    names = load_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return "" if not names else str(names[0].value)


def split(certificates: bytes) -> list[bytes]:
    """Several certificates in PEM, one by one, in their order. Raises EnrolmentError."""
    try:
        found = x509.load_pem_x509_certificates(certificates)
    except ValueError as error:
        raise EnrolmentError("the certificates are not PEM") from error
    return [one.public_bytes(serialization.Encoding.PEM) for one in found]


def has_ended(certificate: bytes, now: datetime) -> bool:
    """Whether a certificate in PEM is good no longer. Raises EnrolmentError."""
    return load_certificate(certificate).not_valid_after_utc <= now


def load_certificate(certificate: bytes) -> x509.Certificate:
    """A certificate in PEM, the first where there are several. Raises EnrolmentError."""
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise EnrolmentError("the certificate is not PEM") from error
