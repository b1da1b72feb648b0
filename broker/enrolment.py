"""Enrols members at a secured broker and revokes them.

    enrolled = enrol(folder, Member("edge", "kitchen"), now=now)     certificate, key, rights
    revoke(folder, Member("edge", "kitchen"), now=now)

Inputs: the broker's folder, a member. Outputs: what goes into the member's bundle, and what a
revocation has done. Neighbours: `authority` signs, `issued` knows who has which certificates,
`control` tells the broker, `renewal` issues again; `elma.bundles` writes the bundle.

A revocation has three parts. First the member's certificates, whenever issued, go on the revocation
list, which a running mosquitto reads again on SIGHUP: from then on nobody connects with them. Then
its rights go, with which the broker disconnects it: for good, or, where the list is not read at
once, as somebody who may connect and do nothing. Last, what it has left behind (retained presence
and state) is cleared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from broker import issued
from broker.authority import CLIENT_DAYS, CertifiedKey
from broker.certificates import revoked_serials
from broker.control import open_access, tell_to_read
from broker.errors import EnrolmentError
from broker.roles import Member
from broker.secret_files import read_file, write_file
from broker.secured import OPERATOR, SecuredFolder
from protocol.topics import ModelStateTopic, PresenceTopic, WorkerReleasesTopic


@dataclass(frozen=True)
class Enrolled:
    """What a member connects with. `is_live`: the running broker knows it already."""

    member: Member
    pair: CertifiedKey
    server_authority: bytes
    is_live: bool


@dataclass(frozen=True)
class Revoked:
    """What a revocation has done.

    `had_rights`: the broker knew the member. `is_live`: a running broker was told, and the member
    is disconnected. `is_listed`: its certificates are on the revocation list. `list_is_read`: a
    running broker of this machine was told to read the list.
    """

    member: Member
    had_rights: bool
    is_live: bool
    is_listed: bool
    list_is_read: bool


def enrol(
    folder: SecuredFolder,
    member: Member,
    *,
    now: datetime,
    days: int = CLIENT_DAYS,
    broker_host: str | None = None,
) -> Enrolled:
    """A certificate for the member, and its role at the broker. Raises EnrolmentError."""
    record = issued.record_of(folder, member)
    if record.exists():
        raise EnrolmentError(
            f"{member.identity} is enrolled already ({record}); `elma revoke` it first"
        )
    pair = folder.authority().issue_client(member.identity, now, days)
    with open_access(folder, broker_host) as access:
        # Noted before it counts, so that whatever happens next, it can be revoked.
        write_file(record, pair.certificate)
        try:
            access.add(member)
        except EnrolmentError:
            record.unlink()
            raise
        return Enrolled(member, pair, folder.server_authority, access.is_running)


def revoke(
    folder: SecuredFolder, member: Member, *, now: datetime, broker_host: str | None = None
) -> Revoked:
    """Take rights and certificate away. Raises EnrolmentError for a member that nobody knows."""
    if member == OPERATOR:
        raise EnrolmentError("the operator cannot revoke itself: nobody could enrol any more")
    record = issued.record_of(folder, member)
    with open_access(folder, broker_host) as access:
        has_record, list_is_read = record.exists(), False
        failure: EnrolmentError | None = None
        if has_record:
            try:
                put_on_list(folder, issued.serials(folder, member), now)
                list_is_read = tell_to_read(folder)
            except EnrolmentError as error:
                failure = error  # its rights go all the same
        had_rights = access.remove(member)
        if not had_rights and not has_record:
            raise EnrolmentError(f"{member.identity} is not enrolled at this broker")
        access.clear(_left_behind(member))
        if failure is not None:
            raise EnrolmentError(
                f"{member.identity} has no rights any more, but its certificate is not on the "
                f"revocation list ({failure}); mend that and revoke it once more"
            ) from failure
        record.unlink(missing_ok=True)
        return Revoked(member, had_rights, access.is_running, has_record, list_is_read)


def put_on_list(folder: SecuredFolder, serials: Iterable[int], now: datetime) -> None:
    """Write the revocation list with these serial numbers more. Raises EnrolmentError."""
    known = revoked_serials(read_file(folder.revocation_file))
    content = folder.authority().revocation_list({*known, *serials}, now)
    write_file(folder.revocation_file, content)


def _left_behind(member: Member) -> tuple[str, ...]:
    """The retained messages that a member leaves when it is gone for good."""
    if member.kind == "edge":
        return str(PresenceTopic("edge", member.name)), str(ModelStateTopic(member.name))
    if member.kind == "worker":
        return str(PresenceTopic("worker", member.name)), str(WorkerReleasesTopic(member.name))
    if member.kind == "publisher":
        return (str(PresenceTopic("publisher", member.name)),)
    return ()
