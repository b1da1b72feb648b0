"""`elma broker`: a broker for this machine, or one for a public address.

    elma broker run                             for this machine: no accounts, loopback only
    elma broker init elma-broker --host NAME    the folder of one that others may reach
    elma broker run elma-broker                 runs that one
    elma broker renew elma-broker               its certificate and the operator's, for longer

`run` prints one line when its broker answers (with `--json` an object of host, port and kind), then
nothing but logs, and stops it on SIGTERM and SIGINT. Neighbours: `broker.run`, `broker.secured`,
`broker.secured_run` and `broker.renewal` do the work; `elma.commands.enroll` lets members in.
"""

from __future__ import annotations

import json
import signal
import threading
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from elma.extras import require_extra
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from broker.run import RunningBroker

DEFAULT_FOLDER = Path("~/.local/state/elma/broker")
DEFAULT_PORT = 1883
DEFAULT_SECURED_PORT = 8883
WATCH_SECONDS = 0.2
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

app = typer.Typer(help="Set up and run a broker.", no_args_is_help=True)


class BrokerKind(StrEnum):
    """Which broker to run."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"


class MosquittoForm(StrEnum):
    """Which mosquitto the configuration is for."""

    AUTO = "auto"
    V2_0 = "2.0"
    V2_1 = "2.1"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[
        list[str],
        typer.Option(
            help="Name or address by which clients reach it; again for more, first first."
        ),
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = DEFAULT_SECURED_PORT,
    listen: Annotated[
        str | None, typer.Option(help="Address to bind. Default: all of the machine's.")
    ] = None,
    mosquitto: Annotated[
        MosquittoForm, typer.Option(help="Form of its configuration; auto: as installed.")
    ] = MosquittoForm.AUTO,
    user: Annotated[
        str | None,
        typer.Option(help="Whom mosquitto runs as. Default: you; for root, `mosquitto` if it is."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The broker's own certificate with its chain, PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    certificate_authority: Annotated[
        Path | None, typer.Option(help="The authority that clients verify that certificate by.")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option(help="Your authority for members, PEM. Default: a new one.")
    ] = None,
    authority_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the folder of a broker for a public address: TLS, certificates, rights, limits."""
    require_extra("broker", "elma broker init")
    from broker.mosquitto_files import VERSIONS, installed_version
    from broker.secured import OwnCertificates, make_secured

    version = {MosquittoForm.V2_0: VERSIONS[0], MosquittoForm.V2_1: VERSIONS[1]}.get(mosquitto)
    made = make_secured(
        folder,
        host,
        now=datetime.now(UTC),
        port=port,
        listen=listen,
        mosquitto=version or installed_version(),
        user=user,
        own=OwnCertificates(certificate, key, certificate_authority, authority, authority_key),
    )
    if as_json:
        print_json(
            {
                "folder": str(made.path),
                "configuration_file": str(made.configuration_file),
                "hosts": list(made.hosts),
                "port": made.port,
                "mosquitto": made.mosquitto,
                "user": made.user,
            }
        )
        return
    typer.echo(f"{made.path}: a broker for {', '.join(made.hosts)}, port {made.port}")
    typer.echo(f"run it: elma broker run {folder}  (or: mosquitto -c {made.configuration_file})")
    typer.echo(f"let members in: elma enroll NAME --broker {folder} --out BUNDLE")
    typer.echo(f"keep {made.path / 'authority'} secret and safe: it decides who may connect")


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `elma broker init`.")],
    authority: Annotated[
        bool,
        typer.Option(
            "--authority",
            help="The authority as well, with the key it has: what it has signed still counts.",
        ),
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="The next certificate of another authority's, PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Give the broker and its operator new certificates; a running broker takes them up."""
    require_extra("broker", "elma broker renew")
    from broker.renewal import renew_broker
    from broker.secured import SecuredFolder

    if (certificate is None) != (key is None):
        raise CommandError("--certificate and --key need each other", exit_status=2)
    own = None if certificate is None or key is None else (certificate, key)
    renewed = renew_broker(
        SecuredFolder.load(folder), now=datetime.now(UTC), with_authority=authority, own=own
    )
    ends = {
        "server_certificate_expires": renewed.server_expires,
        "operator_certificate_expires": renewed.operator_expires,
        "authority_expires": renewed.authority_expires,
    }
    moments = {name: datetime.fromtimestamp(end, UTC) for name, end in ends.items()}
    if as_json:
        told = {"server_is_new": renewed.server_is_new, "is_read": renewed.is_read}
        print_json({name: moment.isoformat() for name, moment in moments.items()} | told)
        return
    for name, moment in moments.items():
        typer.echo(f"{name.replace('_', ' ')}: {moment:%Y-%m-%d}")
    if not renewed.server_is_new:
        typer.echo("the broker's own comes from elsewhere: renew it by --certificate and --key")
    if not renewed.is_read:
        typer.echo(
            "a broker that is down reads them when it starts; to one elsewhere bring server.pem, "
            f"server-key.pem, members-authority.pem, revoked.pem of {folder / 'mosquitto'} and "
            "send it SIGHUP"
        )
    if authority:
        typer.echo("members get the authority's new certificate with `elma renew`")


@app.command()
def run(
    secured: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A folder of `elma broker init`, to run that broker."),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder of its configuration, data and log.")
    ] = DEFAULT_FOLDER,
    kind: Annotated[
        BrokerKind,
        typer.Option(help="auto: mosquitto where it is installed, else the embedded broker."),
    ] = BrokerKind.AUTO,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0 takes a free one.")
    ] = DEFAULT_PORT,
    as_json: JsonOption = False,
) -> None:
    """Run a broker until SIGTERM or Ctrl-C: one that only this machine can reach, or DIR's."""
    stop = threading.Event()

    def stop_soon(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, stop_soon) for number in _STOP_SIGNALS}
    try:
        with _start(secured, kind, folder, port) as broker:
            ready = {"host": broker.host, "port": broker.port, "kind": broker.kind}
            if as_json:
                typer.echo(json.dumps(ready))  # one line: whoever started us reads a line
            else:
                typer.echo(f"{broker.kind} answers on {broker.host}:{broker.port}")
            while not stop.wait(WATCH_SECONDS):
                if not broker.is_running:
                    raise CommandError(
                        f"{broker.kind} ended by itself; its log: {broker.log_tail() or 'empty'}"
                    )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(secured: Path | None, kind: BrokerKind, folder: Path, port: int) -> RunningBroker:
    """The broker of a secured folder, whose settings are in it, or one for this machine."""
    if secured is None:
        from broker.run import run_broker

        return run_broker(kind.value, folder.expanduser(), port)
    require_extra("broker", "elma broker run DIR")
    from broker.secured import SecuredFolder
    from broker.secured_run import run_secured

    return run_secured(SecuredFolder.load(secured))
