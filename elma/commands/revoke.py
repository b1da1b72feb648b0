"""`elma revoke`: a member of a secured broker is one no more, at once.

    elma revoke kitchen --broker broker --keys elma-keys
    elma revoke north --kind worker --broker broker

Its key leaves the workers' folder, its rights leave the broker, which disconnects it, and its
certificate goes on the revocation list. Neighbour: `broker.enrolment`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.commands.enroll import (
    DEFAULT_BROKER,
    DEFAULT_KEYS,
    BrokerHostOption,
    BrokerOption,
    KeysOption,
)
from elma.extras import require_extra
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from broker.enrolment import Revoked


class MemberKind(StrEnum):
    """Whom to revoke."""

    EDGE = "edge"
    WORKER = "worker"
    PUBLISHER = "publisher"
    MONITOR = "monitor"


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("revoke")(revoke)


def revoke(
    name: Annotated[str, typer.Argument(help="The member's name.")],
    kind: Annotated[MemberKind, typer.Option(help="What it is.")] = MemberKind.EDGE,
    broker: BrokerOption = DEFAULT_BROKER,
    keys: KeysOption = DEFAULT_KEYS,
    broker_host: BrokerHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a member's rights and certificate away; nobody else notices."""
    require_extra("broker", "elma revoke")
    from broker.enrolment import revoke as revoke_member
    from broker.roles import Member
    from broker.secured import SecuredFolder

    folder = SecuredFolder.load(broker)
    member = Member(kind.value, name)
    # First of all: from here on no worker takes a request of this edge, whatever the broker does.
    key_removed = kind is MemberKind.EDGE and _remove_key(keys, name)
    revoked = revoke_member(folder, member, now=datetime.now(UTC), broker_host=broker_host)
    if as_json:
        print_json(
            {
                "identity": member.identity,
                "key_removed": key_removed,
                "had_rights": revoked.had_rights,
                "is_live": revoked.is_live,
                "certificate_listed": revoked.is_listed,
                "list_is_read": revoked.list_is_read,
            }
        )
        return
    _print(revoked, kind, key_removed, keys)


def _remove_key(keys: Path, name: str) -> bool:
    """Whether the edge's public key was in the workers' folder; it is not any more."""
    from protocol.key_files import EDGES_FOLDER_NAME

    path = keys / EDGES_FOLDER_NAME / f"{name}.json"
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CommandError(f"cannot remove {path}: {error.strerror}") from error
    return True


def _print(revoked: Revoked, kind: MemberKind, key_removed: bool, keys: Path) -> None:
    typer.echo(f"{revoked.member.identity} is revoked")
    if revoked.is_live:
        typer.echo("broker: disconnected, and has no rights any more")
    else:
        typer.echo("broker: does not run; no rights from its next start on")
    if revoked.list_is_read:
        typer.echo("certificate: on the revocation list, and the broker has been told to read it")
    elif revoked.is_live and revoked.is_listed:
        typer.echo(
            "certificate: on the revocation list, which the broker reads at its next start or "
            "SIGHUP; until then it can connect, and do nothing"
        )
    elif revoked.is_listed:
        typer.echo("certificate: on the revocation list")
    if kind is MemberKind.EDGE:
        was = "removed from" if key_removed else "not in"
        typer.echo(f"public key: {was} {keys / 'edges'}; workers elsewhere need their copy changed")
    if kind is MemberKind.WORKER:
        typer.echo("it knew the pool's secret key: rotate it twice (`elma keys rotate`)")
