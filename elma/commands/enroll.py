"""`elma enroll`, `elma enroll-worker`, `-publisher`, `-monitor`: a certificate, rights, a bundle.

    elma enroll kitchen --out bundles/kitchen --broker broker --keys elma-keys
    elma enroll-worker north --out bundles/north --broker broker --keys elma-keys

Inputs: the folder of `elma broker init`, the pool's key folder. Outputs: a folder for the member,
its rights at the broker (at once where that runs), and for an edge its public key in the workers'
folder. Nothing secret is printed. Neighbours: `broker.enrolment`, `elma.bundles`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.extras import require_extra
from elma.output import CommandError, JsonOption, print_json

if TYPE_CHECKING:
    from broker.enrolment import Enrolled
    from broker.roles import Kind
    from broker.secured import SecuredFolder

DEFAULT_BROKER = Path("elma-broker")
DEFAULT_KEYS = Path("elma-keys")
DEFAULT_DAYS = 730

NameArgument = Annotated[str, typer.Argument(help="1 to 48 letters, digits, '_' and '-'.")]
OutOption = Annotated[Path, typer.Option(help="Folder for the bundle; made, or empty.")]
BrokerOption = Annotated[Path, typer.Option("--broker", help="Folder of `elma broker init`.")]
KeysOption = Annotated[Path, typer.Option(help="Folder of `elma keys pool`, with edges/ in it.")]
PublisherOption = Annotated[
    Path | None,
    typer.Option(
        "--publisher",
        help="publisher-public.json; by default the one in --keys, if there is one.",
    ),
]
ModelOption = Annotated[str, typer.Option(help="What its settings name as the model.")]
DaysOption = Annotated[
    int, typer.Option(min=1, max=3650, help="For how long its certificate is good.")
]
BrokerHostOption = Annotated[
    str | None,
    typer.Option(help="Where the running broker is reached, if not as its folder says."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the program."""
    app.command("enroll")(enroll)
    app.command("enroll-worker")(enroll_worker)
    app.command("enroll-publisher")(enroll_publisher)
    app.command("enroll-monitor")(enroll_monitor)


def enroll(
    name: NameArgument,
    out: OutOption,
    broker: BrokerOption = DEFAULT_BROKER,
    keys: KeysOption = DEFAULT_KEYS,
    publisher: PublisherOption = None,
    model: ModelOption = "elma-small",
    days: DaysOption = DEFAULT_DAYS,
    broker_host: BrokerHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol an edge: its bundle, its rights at the broker, its key for the workers."""
    require_extra("broker", "elma enroll")
    from elma.bundles import must_be_new, write_edge_bundle
    from protocol.key_files import (
        EDGES_FOLDER_NAME,
        POOL_PUBLIC_NAME,
        load_pool_public,
        save_edge_public,
    )
    from protocol.keys import EdgeKeys

    must_be_new(out)
    trust = _publisher_file(publisher, keys)
    pool = load_pool_public(keys / POOL_PUBLIC_NAME)
    edges = keys / EDGES_FOLDER_NAME
    if (edges / f"{name}.json").exists():
        raise CommandError(
            f"edge {name!r} has a public key in {edges} already; `elma revoke {name}` it first"
        )
    folder, enrolled = _enrol("edge", name, broker, days, broker_host)
    edge_keys = EdgeKeys.make(name)

    def finish() -> Path:
        settings = write_edge_bundle(out, folder, enrolled, edge_keys, pool, trust, model)
        save_edge_public(edges, name, edge_keys.public)
        return settings

    settings = _or_take_back(folder, enrolled, broker_host, finish)
    described = {"fingerprint": edge_keys.fingerprint, "pool_key_id": pool.key_id}
    _print(enrolled, out, settings, as_json, **described)


def enroll_worker(
    name: NameArgument,
    out: OutOption,
    broker: BrokerOption = DEFAULT_BROKER,
    keys: KeysOption = DEFAULT_KEYS,
    publisher: PublisherOption = None,
    model: ModelOption = "elma-small",
    here: Annotated[
        bool,
        typer.Option(
            "--here",
            help="The worker runs on this machine and uses the key folder itself, no copy: it "
            "hears of enrolments, revocations and rotations at once.",
        ),
    ] = False,
    days: DaysOption = DEFAULT_DAYS,
    broker_host: BrokerHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a worker: its bundle, with the pool's secret key, and its rights at the broker."""
    require_extra("broker", "elma enroll-worker")
    from elma.bundles import must_be_new, write_worker_bundle
    from protocol.key_files import POOL_SECRET_NAME, load_pool_keys

    must_be_new(out)
    trust = _publisher_file(publisher, keys)
    load_pool_keys(keys / POOL_SECRET_NAME)
    folder, enrolled = _enrol("worker", name, broker, days, broker_host)
    settings = _or_take_back(
        folder,
        enrolled,
        broker_host,
        lambda: write_worker_bundle(out, folder, enrolled, keys, trust, model, is_here=here),
    )
    _print(enrolled, out, settings, as_json)


def enroll_publisher(
    name: NameArgument,
    out: OutOption,
    broker: BrokerOption = DEFAULT_BROKER,
    keys: KeysOption = DEFAULT_KEYS,
    publisher: PublisherOption = None,
    days: DaysOption = DEFAULT_DAYS,
    broker_host: BrokerHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a publisher, who brings releases out: its bundle, and its rights at the broker.

    `elma rollout run` and `elma publish` need one each: whoever connects second under the same name
    takes the connection over.
    """
    trust = _publisher_file(publisher, keys)
    _enroll_plain("publisher", name, out, broker, days, broker_host, as_json, trust)


def enroll_monitor(
    name: NameArgument,
    out: OutOption,
    broker: BrokerOption = DEFAULT_BROKER,
    days: DaysOption = DEFAULT_DAYS,
    broker_host: BrokerHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a monitor, which hears of the fleet's health and may say nothing."""
    _enroll_plain("monitor", name, out, broker, days, broker_host, as_json)


def _enroll_plain(
    kind: Kind,
    name: str,
    out: Path,
    broker: Path,
    days: int,
    broker_host: str | None,
    as_json: bool,
    publisher: Path | None = None,
) -> None:
    """One whose settings are little more than the connection."""
    require_extra("broker", f"elma enroll-{kind}")
    from elma.bundles import must_be_new, write_plain_bundle

    must_be_new(out)
    folder, enrolled = _enrol(kind, name, broker, days, broker_host)
    settings = _or_take_back(
        folder, enrolled, broker_host, lambda: write_plain_bundle(out, folder, enrolled, publisher)
    )
    _print(enrolled, out, settings, as_json)


def _enrol(
    kind: Kind, name: str, broker: Path, days: int, broker_host: str | None
) -> tuple[SecuredFolder, Enrolled]:
    from broker.enrolment import enrol
    from broker.roles import Member
    from broker.secured import SecuredFolder

    folder = SecuredFolder.load(broker)
    now = datetime.now(UTC)
    return folder, enrol(folder, Member(kind, name), now=now, days=days, broker_host=broker_host)


def _or_take_back(
    folder: SecuredFolder,
    enrolled: Enrolled,
    broker_host: str | None,
    finish: Callable[[], Path],
) -> Path:
    """The bundle; when it cannot be written, nobody has the key, so the rights go again."""
    from broker.enrolment import revoke

    try:
        return finish()
    except BaseException:
        revoke(folder, enrolled.member, now=datetime.now(UTC), broker_host=broker_host)
        raise


def _publisher_file(given: Path | None, keys: Path) -> Path | None:
    """The publisher's public file, if there is one; read once, so that a bad one is found early."""
    from protocol.key_files import PUBLISHER_PUBLIC_NAME, load_publisher_public

    beside = keys / PUBLISHER_PUBLIC_NAME
    chosen = given or (beside if beside.exists() else None)
    if chosen is not None:
        load_publisher_public(chosen)
    return chosen


def _print(enrolled: Enrolled, out: Path, settings: Path, as_json: bool, **described: Any) -> None:
    result = {
        "identity": enrolled.member.identity,
        "bundle": str(out),
        "settings_file": str(settings),
        "certificate_expires": enrolled.pair.expires.isoformat(),
        "is_live": enrolled.is_live,
        **described,
    }
    if as_json:
        print_json(result)
        return
    when = "the running broker knows it" if enrolled.is_live else "known when the broker starts"
    typer.echo(f"{enrolled.member.identity} is enrolled ({when})")
    typer.echo(f"bundle: {out}  (secret: keep it on its way to the machine)")
    typer.echo(f"certificate good until {enrolled.pair.expires:%Y-%m-%d}")
    for label, value in described.items():
        typer.echo(f"{label.replace('_', ' ')}: {value}")
