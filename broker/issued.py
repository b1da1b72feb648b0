"""Who holds which certificates: a file for each member in the authority's folder, the newest first.

Inputs: the broker's folder, a member. Outputs: its certificates, but those that had ended when it
was given another. Neighbours: `enrolment` and `renewal` note what they issue, and find here what
they revoke.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from broker.certificates import has_ended, serial_of, split
from broker.errors import EnrolmentError
from broker.roles import Member
from broker.secret_files import read_file, write_file
from broker.secured import SecuredFolder


def record_of(folder: SecuredFolder, member: Member) -> Path:
    """The member's file; it is there while the member is enrolled."""
    return folder.issued_folder / f"{member.identity}.pem"


def certificates(folder: SecuredFolder, member: Member) -> list[bytes]:
    """What the member has been given, PEM, the newest first. Raises EnrolmentError."""
    record = record_of(folder, member)
    if not record.exists():
        raise EnrolmentError(
            f"{member.identity} is not enrolled at this broker; `elma enroll` it first"
        )
    return split(read_file(record))


def serials(folder: SecuredFolder, member: Member) -> list[int]:
    """Their serial numbers, the newest first. Raises EnrolmentError."""
    return [serial_of(one) for one in certificates(folder, member)]


def add(folder: SecuredFolder, member: Member, certificate: bytes, now: datetime) -> None:
    """Note one more, and forget those that have ended. Raises EnrolmentError."""
    older = [one for one in certificates(folder, member) if not has_ended(one, now)]
    write_file(record_of(folder, member), b"".join([certificate, *older]))


def keep_newest(folder: SecuredFolder, member: Member) -> None:
    """Forget all but the last one. Raises EnrolmentError."""
    write_file(record_of(folder, member), certificates(folder, member)[0])


def members(folder: SecuredFolder) -> list[str]:
    """The identities that are enrolled now."""
    return sorted(path.stem for path in folder.issued_folder.glob("*.pem"))
