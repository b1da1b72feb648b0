"""`elma renew`: a member's certificate for longer, in place, while everything runs.

    elma renew kitchen --out bundles/kitchen
    elma renew north --kind worker --out new-files --keep-key

Inputs: the folder of `elma broker init`, and the member's bundle, where it is at hand. Outputs: a
new certificate, by default with a new key, in that bundle or alone in a new folder. Rights, and an
edge's own key, stay; the certificate before counts until it ends, or with `--revoke-old` no more.
Neighbours: `broker.renewal`, `elma.bundles`; a running agent takes the new files up by itself.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from elma.commands.enroll import (
    DEFAULT_BROKER,
    DEFAULT_DAYS,
    BrokerHostOption,
    BrokerOption,
    DaysOption,
)
from elma.commands.revoke import MemberKind
from elma.extras import require_extra
from elma.output import CommandError, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("renew")(renew)


def renew(
    name: Annotated[str, typer.Argument(help="The member's name.")],
    out: Annotated[
        Path,
        typer.Option(help="Its bundle, which is changed in place, or a folder for the new files."),
    ],
    kind: Annotated[MemberKind, typer.Option(help="What it is.")] = MemberKind.EDGE,
    broker: BrokerOption = DEFAULT_BROKER,
    days: DaysOption = DEFAULT_DAYS,
    keep_key: Annotated[
        bool, typer.Option("--keep-key", help="For the key that it has: no secret has to travel.")
    ] = False,
    revoke_old: Annotated[
        bool,
        typer.Option(
            "--revoke-old",
            help="The certificates before count no more, at once: for one that may be stolen.",
        ),
    ] = False,
    broker_host: BrokerHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a member a new certificate; its rights stay, and nobody else notices."""
    require_extra("broker", "elma renew")
    if keep_key and revoke_old:
        raise CommandError(
            "a certificate that may be stolen went with its key; leave --keep-key out",
            exit_status=2,
        )
    from broker.renewal import renew as renew_member
    from broker.renewal import retire_older
    from broker.roles import Member
    from broker.secured import SecuredFolder
    from elma.bundles import must_be_of, write_connection

    folder, member = SecuredFolder.load(broker), Member(kind.value, name)
    must_be_of(out, member.identity)
    now = datetime.now(UTC)
    enrolled = renew_member(folder, member, now=now, days=days, keeps_key=keep_key)
    files = write_connection(out, enrolled)
    is_read = revoke_old and retire_older(folder, member, now=now, broker_host=broker_host)
    if as_json:
        print_json(
            {
                "identity": member.identity,
                "files": [str(path) for path in files],
                "serial": f"{enrolled.pair.serial:x}",
                "certificate_expires": enrolled.pair.expires.isoformat(),
                "old_revoked": revoke_old,
                "list_is_read": is_read,
            }
        )
        return
    typer.echo(f"{member.identity}: certificate good until {enrolled.pair.expires:%Y-%m-%d}")
    typer.echo(f"bring to its machine: {', '.join(str(path) for path in files)}")
    if not revoke_old:
        typer.echo("the certificate before counts until it ends; a running agent takes the new one")
    elif is_read:
        typer.echo("the certificate before counts no more, and its connection was ended")
    else:
        typer.echo("the certificate before counts no more once the broker reads its list again")
