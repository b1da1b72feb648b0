"""Checks of a secured broker's certificates: its own, its authority's, its members', and the list
of those that count no more.

Inputs: a `SecuredFolder`, the time. Output: findings. Neighbours: `broker.authority` and
`broker.renewal` make them, `broker_running` sees which one a running broker shows.
"""

from __future__ import annotations

import ipaddress
import ssl
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from broker.errors import EnrolmentError
from broker.secret_files import read_file
from broker.secured import AUTHORITY_NAME, CERTIFICATE_NAME, OPERATOR, SecuredFolder
from elma.doctor.finding import Finding, State

SOON = timedelta(days=14)
"""As the alert `ElmaCertificateExpires` has it."""
AUTHORITY_SOON = timedelta(days=180)
SHOWN_NAMES = 5


def check_server_certificate(folder: SecuredFolder, now: datetime) -> Finding:
    """Whether what the broker shows is good, for every name that clients have been told."""
    name, file = "certificate", folder.broker_files / "server.pem"
    try:
        certificate = _load(file)
    except EnrolmentError as error:
        return Finding(name, State.FAILED, str(error), f"elma broker renew {folder.path}")
    unnamed = [host for host in folder.hosts if not _covers(certificate, host)]
    if unnamed:
        text = f"{file} is not for {', '.join(unnamed)}: clients that were given it turn away"
        advice = f"elma broker renew {folder.path}, or --certificate with one for these names"
        return Finding(name, State.FAILED, text, advice, {"missing_hosts": unnamed})
    with suppress(OSError):
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file, folder.broker_files / "server-key.pem")
        except ssl.SSLError:
            text = f"{folder.broker_files / 'server-key.pem'} is not the key of {file}"
            advice = f"bring both from one place, or elma broker renew {folder.path}"
            return Finding(name, State.FAILED, text, advice)
    what = f"the broker's, for {', '.join(folder.hosts)},"
    return _lasting(name, what, certificate, now, SOON, f"elma broker renew {folder.path}")


def check_authority(folder: SecuredFolder, now: datetime) -> Finding:
    """Whether the members' authority is good, and the one that mosquitto asks is the same."""
    file = folder.broker_files / "members-authority.pem"
    advice = f"elma broker renew {folder.path} --authority"
    try:
        certificate = _load(file)
        own = folder.path / "authority" / AUTHORITY_NAME
        is_other = own.exists() and _load(own).public_key() != certificate.public_key()
    except EnrolmentError as error:
        return Finding("authority", State.FAILED, str(error), "bring it from your authority/")
    if is_other:
        text = f"{file} is another authority than {own}: whom you enrol is not let in"
        return Finding("authority", State.FAILED, text, f"cp {own} {file}, and restart mosquitto")
    return _lasting("authority", "the members'", certificate, now, AUTHORITY_SOON, advice)


def check_members(folder: SecuredFolder, now: datetime) -> Finding:
    """Whether every member, the operator first, has a certificate that is good for a while."""
    issued = folder.issued_folder
    if not issued.is_dir():
        text = "the authority is kept elsewhere: who has which certificate is not known here"
        return Finding("members", State.OK, text)
    try:
        newest = {path.stem: _load(path) for path in sorted(issued.glob("*.pem"))}
        newest[OPERATOR.identity] = _load(folder.path / "operator" / CERTIFICATE_NAME)
    except EnrolmentError as error:
        return Finding("members", State.FAILED, str(error), "bring the file from a backup")
    ended = [name for name, one in newest.items() if one.not_valid_after_utc <= now]
    early = [name for name, one in newest.items() if one.not_valid_before_utc > now]
    soon = [name for name, one in newest.items() if now < one.not_valid_after_utc < now + SOON]
    figures = {"members": len(newest), "ended": ended, "ends_soon": soon, "not_yet_valid": early}
    advice = "elma renew NAME --kind KIND --out BUNDLE (the operator: elma broker renew)"
    if early:
        text = f"not valid yet by this machine's clock: {some(early)}"
        advice = "set the clock: timedatectl set-ntp true"
        return Finding("members", State.FAILED, text, advice, figures)
    if ended:
        text = f"can't connect, their certificates have ended: {some(ended)}"
        advice = f"{advice}; or elma revoke NAME, where it is gone for good"
        return Finding("members", State.FAILED, text, advice, figures)
    if soon:
        text = f"certificates end within {SOON.days} days: {some(soon)}"
        return Finding("members", State.WARNING, text, advice, figures)
    text = f"{len(newest)} certificates, all good for {SOON.days} days and more"
    return Finding("members", State.OK, text, figures=figures)


def check_revocation_list(folder: SecuredFolder, now: datetime) -> Finding:
    """Whether the list is there, of the right authority, and not over: each shuts everybody out."""
    name, file = "revocations", folder.revocation_file
    advice = f"elma broker renew {folder.path} writes it anew"
    try:
        revoked = x509.load_pem_x509_crl(read_file(file))
        authority = _load(folder.broker_files / "members-authority.pem")
        own = {path.stem: _load(path) for path in folder.issued_folder.glob("*.pem")}
    except (EnrolmentError, ValueError) as error:
        text = f"{file} cannot be used ({error}): nobody gets in"
        return Finding(name, State.FAILED, text, advice)
    ends = revoked.next_update_utc
    serials = {entry.serial_number for entry in revoked}
    shut_out = sorted(member for member, one in own.items() if one.serial_number in serials)
    figures = {"revoked": len(serials), "next_update": None if ends is None else ends.isoformat()}
    if not revoked.is_signature_valid(authority.public_key()):  # type: ignore[arg-type]  # any key that signs certificates
        text = f"{file} is another authority's: nobody gets in"
        return Finding(name, State.FAILED, text, advice, figures)
    if ends is not None and ends <= now:
        text = f"{file} is over since {ends:%Y-%m-%d}: nobody gets in"
        return Finding(name, State.FAILED, text, advice, figures)
    if shut_out:
        text = f"on the list, though enrolled: {some(shut_out)}"
        advice = "elma revoke NAME and elma enroll NAME, in this order"
        return Finding(name, State.FAILED, text, advice, figures)
    until = "" if ends is None else f", good until {ends:%Y-%m-%d}"
    return Finding(name, State.OK, f"{len(serials)} certificates{until}", figures=figures)


def some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _lasting(
    name: str,
    what: str,
    certificate: x509.Certificate,
    now: datetime,
    soon: timedelta,
    advice: str,
) -> Finding:
    """How long a certificate is good."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    figures = {"not_after": ends.isoformat(), "days_left": (ends - now).days}
    if begins > now:
        text = f"{what} is not valid before {begins:%Y-%m-%d %H:%M} UTC, by this machine's clock"
        advice = "set the clock: timedatectl set-ntp true"
        return Finding(name, State.FAILED, text, advice, figures)
    if ends <= now:
        return Finding(name, State.FAILED, f"{what} ended on {ends:%Y-%m-%d}", advice, figures)
    text = f"{what} is good until {ends:%Y-%m-%d}"
    state = State.WARNING if ends < now + soon else State.OK
    return Finding(name, state, text, advice if state is State.WARNING else "", figures)


def _covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether a client that asks for `host` takes the certificate (RFC 6125)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    with suppress(ValueError):
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    host = host.lower().rstrip(".")
    wildcard = f"*.{host.partition('.')[2]}"
    return any(one.lower() in (host, wildcard) for one in names.get_values_for_type(x509.DNSName))


def _load(path: Path) -> x509.Certificate:
    """The first, and newest, certificate of a file. Raises EnrolmentError."""
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except ValueError as error:
        raise EnrolmentError(f"{path} holds no certificate in PEM form") from error
