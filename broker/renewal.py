"""Certificates for longer: of members, of the broker itself, of the authority.

    renewed = renew(folder, Member("edge", "kitchen"), now=now)     rights stay as they are
    retire_older(folder, Member("edge", "kitchen"), now=now)        only the newest one counts
    renew_broker(folder, now=now)                                   what the broker shows, operator

Inputs: the broker's folder, a member. Outputs: certificates; the folder's files. Neighbours:
`enrolment` lets members in and puts them out; `authority` signs; `elma.bundles` writes bundles.

An older certificate counts until it ends, so nothing has to happen at one moment. A running
mosquitto of this machine is told to read its files again (SIGHUP): connections that stand stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from broker import issued
from broker.authority import CLIENT_DAYS, Authority, CertifiedKey
from broker.certificate_expiry import certificate_expiry
from broker.control import one_at_a_time, open_access, tell_to_read
from broker.enrolment import Enrolled, put_on_list
from broker.errors import EnrolmentError
from broker.roles import Member
from broker.secret_files import read_file, read_secret, write_file, write_secret
from broker.secured import (
    AUTHORITY_NAME,
    CERTIFICATE_NAME,
    KEY_NAME,
    LOCAL_HOSTS,
    OPERATOR,
    SecuredFolder,
)


@dataclass(frozen=True)
class RenewedBroker:
    """When what there is now ends. `is_read`: a running broker of this machine was told.

    `server_is_new`: it shows a new certificate; not where that is somebody else's to renew.
    """

    server_expires: float
    operator_expires: float
    authority_expires: float
    server_is_new: bool
    is_read: bool


def renew(
    folder: SecuredFolder,
    member: Member,
    *,
    now: datetime,
    days: int = CLIENT_DAYS,
    keeps_key: bool = False,
) -> Enrolled:
    """A new certificate of a member, for a new key unless it `keeps_key`. Raises EnrolmentError."""
    if member == OPERATOR:
        raise EnrolmentError("the operator's certificate is renewed by `elma broker renew`")
    with one_at_a_time(folder):
        key_of = issued.certificates(folder, member)[0]
        pair = folder.authority().issue_client(
            member.identity, now, days, key_of=key_of if keeps_key else None
        )
        issued.add(folder, member, pair.certificate, now)
        return Enrolled(member, pair, folder.server_authority, is_live=True)


def retire_older(
    folder: SecuredFolder, member: Member, *, now: datetime, broker_host: str | None = None
) -> bool:
    """Revoke all of a member's certificates but the newest, and end its connection.

    Returns whether a running broker of this machine reads the list. Raises EnrolmentError.
    """
    with open_access(folder, broker_host) as access:
        put_on_list(folder, issued.serials(folder, member)[1:], now)
        issued.keep_newest(folder, member)
        is_read = tell_to_read(folder)
        access.disconnect(member)
        return is_read


def renew_broker(
    folder: SecuredFolder,
    *,
    now: datetime,
    with_authority: bool = False,
    own: tuple[Path, Path] | None = None,
) -> RenewedBroker:
    """New certificates of the broker and its operator, and a new revocation list.

    `own` is a certificate and its key from elsewhere, for a broker whose clients verify it by an
    authority that is not ours. `with_authority` makes the authority itself good for longer: the
    same key, so that all it has signed still counts. Raises EnrolmentError.
    """
    with one_at_a_time(folder):
        is_ours = folder.server_authority == read_file(folder.path / "authority" / AUTHORITY_NAME)
        if own is not None and is_ours:
            raise EnrolmentError(
                "clients verify this broker by our own authority; leave --certificate and --key out"
            )
        authority = folder.authority()
        if with_authority:
            authority = authority.renewed(now)
            _write_authority(folder, authority, is_ours=is_ours)
        server = _new_server(folder, authority, now) if is_ours else _own_server(own)
        if server is not None:
            write_secret(folder.broker_files / "server-key.pem", server.key)
            write_file(folder.broker_files / "server.pem", server.certificate)
        pair = authority.issue_client(OPERATOR.identity, now)
        issued.add(folder, OPERATOR, pair.certificate, now)
        write_secret(folder.path / "operator" / KEY_NAME, pair.key)
        write_file(folder.path / "operator" / CERTIFICATE_NAME, pair.certificate)
        put_on_list(folder, (), now)
        return RenewedBroker(
            server_expires=certificate_expiry(folder.broker_files / "server.pem"),
            operator_expires=pair.expires.timestamp(),
            authority_expires=authority.expires.timestamp(),
            server_is_new=server is not None,
            is_read=tell_to_read(folder),
        )


def _new_server(folder: SecuredFolder, authority: Authority, now: datetime) -> CertifiedKey:
    names = [*folder.hosts, *(host for host in LOCAL_HOSTS if host not in folder.hosts)]
    return authority.issue_server(names, now)


def _own_server(own: tuple[Path, Path] | None) -> CertifiedKey | None:
    if own is None:
        return None
    certificate, key = read_file(own[0]), read_secret(own[1])
    return CertifiedKey.of_files(certificate, key)


def _write_authority(folder: SecuredFolder, authority: Authority, *, is_ours: bool) -> None:
    """Where the authority's certificate lies; members get theirs with their next bundle."""
    write_file(folder.path / "authority" / AUTHORITY_NAME, authority.certificate)
    write_file(folder.broker_files / "members-authority.pem", authority.certificate)
    if is_ours:
        write_file(folder.path / "operator" / AUTHORITY_NAME, authority.certificate)
