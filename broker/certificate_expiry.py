"""When a certificate expires, read from its file without a library for certificates.

Input: a PEM file, as `BrokerSettings` names one, or what a peer showed. Output: unix seconds.
Neighbours: the metrics of edge, worker, publisher and monitor tell it to Prometheus. A device has
no `cryptography`; what is read here is the third and the fifth line of RFC 5280's TBSCertificate,
nothing is verified.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
_END = "-----END CERTIFICATE-----"


def certificate_expiry(path: Path) -> float:
    """The end of the first certificate's validity. Raises OSError or ValueError."""
    first, end, _ = path.read_text(encoding="ascii").partition(_END)
    start = first.find("-----BEGIN CERTIFICATE-----")
    if start < 0 or not end:
        raise ValueError(f"{path} holds no certificate in PEM form")
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(first[start:] + end))
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} holds a certificate that is damaged") from error


def shown_certificate_expiry(connection: object) -> float:
    """The end of the certificate that the peer of a TLS socket showed; 0 for any other one."""
    content = connection.getpeercert(True) if isinstance(connection, ssl.SSLSocket) else None
    if not content:
        return 0.0
    try:
        return _not_after(content)
    except (IndexError, ValueError):
        return 0.0


def _not_after(content: bytes) -> float:
    _, certificate, _ = _element(content)
    _, rest, _ = _element(certificate)
    tag, _, after = _element(rest)
    if tag == _VERSION:
        rest = after
    for _ in range(3):  # serial number, signature algorithm, issuer
        _, _, rest = _element(rest)
    tag, validity, _ = _element(rest)
    if tag != _SEQUENCE:
        raise ValueError("no validity")
    _, _, rest = _element(validity)  # not before
    tag, text, _ = _element(rest)
    # UTCTime has two digits of the year, and goes to 2049; GeneralizedTime has four.
    year = "%y" if tag == _UTC_TIME else "%Y"
    moment = datetime.strptime(text.decode("ascii"), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC)
    return moment.timestamp()


def _element(content: bytes) -> tuple[int, bytes, bytes]:
    """Tag and value of the first DER element, and what follows it."""
    tag, length, start = content[0], content[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(content[2:start], "big")
    if start + length > len(content):
        raise ValueError("cut off")
    return tag, content[start : start + length], content[start + length :]
