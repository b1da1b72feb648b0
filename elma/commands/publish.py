"""`elma publish`: a model folder becomes a release on every device of a channel.

    elma publish MODEL --key publisher-secret.json --stage 5%
    elma publish --rollback 3 --key publisher-secret.json
    elma publish --refresh --key publisher-secret.json
    elma publish MODEL --prepare release.unsigned      `elma sign` elsewhere, then
    elma publish --signature release.signed

Input: a model folder, or an old version; keys; the broker. Output: what was sent, as text or JSON.
Neighbours: `elma.publishing` does the steps, `elma.release_options` has what these verbs share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elma.output import CommandError, JsonOption, print_json, print_status
from elma.release_options import (
    BrokerHostOption,
    BrokerPortOption,
    ChannelOption,
    ConfigOption,
    KeyOption,
    PublicOption,
    StoreOption,
    days_left,
    megabytes,
    publisher_settings,
)

DAY_SECONDS = 86_400.0
BUSY_SECONDS = 60.0
"""How long to wait for the rollout service, when it is just filling the broker again."""


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("publish")(publish)


def publish(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, or the name of a shipped model.")
    ] = None,
    channel: ChannelOption = None,
    key: KeyOption = None,
    publisher_public: PublicOption = None,
    store: StoreOption = None,
    stage: Annotated[
        str | None, typer.Option(help="Share of the edges that take it first. Default: all.")
    ] = None,
    rollback: Annotated[
        int | None, typer.Option(min=1, help="Publish this version's content as a new version.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Publish the current release with a later expiry.")
    ] = False,
    prepare: Annotated[
        Path | None, typer.Option(help="Write what `elma sign` signs elsewhere; send nothing.")
    ] = None,
    key_id: Annotated[
        str | None, typer.Option(help="For --prepare: who will sign. Default: the newest key.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="Publish what was prepared and signed: `elma sign`'s file.")
    ] = None,
    resend: Annotated[
        bool,
        typer.Option("--resend", help="Send every chunk again, whatever the broker has."),
    ] = False,
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Send plain floats as they are. Default: packed as int8."),
    ] = False,
    canaries: Annotated[
        Path | None,
        typer.Option(help="SQuAD JSON of questions to choose canaries from. Default: ours."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="SQuAD JSON to compare F1 on with the current release.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first questions of --data.")
    ] = None,
    max_f1_drop: Annotated[float, typer.Option(help="F1 points that the release may lose.")] = 0.0,
    force: Annotated[
        bool, typer.Option("--force", help="Publish although it is worse than the current one.")
    ] = False,
    note: Annotated[str, typer.Option(help="For people; stands in the manifest.")] = "",
    expires_days: Annotated[
        float, typer.Option(min=0.001, help="After this the manifest is taken by nobody.")
    ] = 30.0,
    url: Annotated[
        list[str] | None, typer.Option(help="https://... where blobs can be had. May be repeated.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also copy the blobs into this folder, for a web server.")
    ] = None,
    wait_seconds: Annotated[
        float, typer.Option(min=0.0, help="How long to wait for workers to load it.")
    ] = 300.0,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait for the workers.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, envvar="ELMA_THREADS", help="CPU threads of the checks.")
    ] = None,
    config: ConfigOption = None,
    broker_host: BrokerHostOption = None,
    broker_port: BrokerPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model, sign it, and bring it to every edge of a channel; or go back to an old one.

    What was interrupted is finished by the same command: it goes on where it was.
    """
    from elma.publishing import Content, Publishing, Terms
    from elma.release_checks import CheckOptions
    from protocol.key_files import load_publisher_public
    from publisher.line import Line
    from publisher.packing import is_packed, pack
    from publisher.rollout import parse_share
    from publisher.store import PublisherStore
    from reader.weights import resolve_model_folder

    _check_call(model, rollback, refresh, signature, prepare)
    _check_urls(url or [])
    settings = publisher_settings(
        config, channel, store, publisher_public, key, broker_host, broker_port
    )
    share = None if stage is None else parse_share(stage)
    trust = load_publisher_public(settings.publisher_public_key_file)
    publisher_store = PublisherStore(settings.store)
    folder = resolve_model_folder(model) if model else None
    if folder is not None and not as_is and not is_packed(folder):
        print_status(f"packing {folder.name} for devices: matrices in int8, embeddings in int4")
        folder = pack(folder, settings.store / "packed")
    content = Content(folder, rollback, refresh)
    terms = Terms(expires_days * DAY_SECONDS, note, tuple(url or ()))
    checks = CheckOptions(canaries, data, limit, max_f1_drop, force, threads)
    with Line(settings.broker, settings.channel) as line:
        line.wait_ready(settings.broker.connect_timeout_seconds * 3)
        work = Publishing(publisher_store, settings.channel, trust, line, print_status)
        with publisher_store.publishing(BUSY_SECONDS):
            if prepare is not None:
                manifest, _ = work.draft(content, terms, _signer(key_id, trust), checks)
                _write_prepared(prepare, manifest)
                _print_prepared(prepare, manifest, as_json)
                return
            if signature is not None:
                record = _read_signed(signature, settings.channel, work)
            else:
                record = _sign_here(work, settings.key_file, content, terms, checks)
            with _bytes_bar() as progress:
                work.send(record, progress, resend=resend)
        work.roll_out(record, share, None if no_wait else wait_seconds, note)
        report = work.finish(record, export)
    print_json(report) if as_json else _print_report(report)


def _sign_here(work: Any, key_file: Path | None, content: Any, terms: Any, checks: Any) -> Any:
    """The record of an earlier run of the same command, or a new one. Raises CommandError."""
    from protocol.key_files import load_publisher_secret

    if key_file is None:
        raise CommandError(
            "a release needs a signature: give --key publisher-secret.json, or --prepare to have "
            "it signed on another machine",
            exit_status=2,
        )
    key = load_publisher_secret(key_file)
    begun = work.begun(content, key.key_id)
    if begun is not None:
        return begun
    work.trust.keys().public_of(key.key_id)  # refused before the work, not after it
    manifest, verdict = work.draft(content, terms, key.key_id, checks)
    return work.sign(manifest, key, verdict)


def _check_urls(urls: list[str]) -> None:
    """Raises CommandError for an address that no device would ask."""
    from releases.https_transport import httpx_url, is_allowed

    for url in urls:
        if not is_allowed(httpx_url(url)):
            raise CommandError(
                f"--url {url}: devices take https addresses only (and http of their own machine)",
                exit_status=2,
            )


def _check_call(
    model: str | None,
    rollback: int | None,
    refresh: bool,
    signature: Path | None,
    prepare: Path | None,
) -> None:
    given = [model is not None, rollback is not None, refresh, signature is not None]
    if sum(given) != 1:
        raise CommandError(
            "give one thing to publish: MODEL, --rollback VERSION, --refresh or --signature FILE",
            exit_status=2,
        )
    if prepare is not None and signature is not None:
        raise CommandError("--prepare comes before --signature, not with it", exit_status=2)


def _signer(key_id: str | None, trust: Any) -> str:
    """Who will sign what is prepared: a key that may."""
    keys = trust.keys()
    chosen = key_id or next(reversed(keys.keys), None)
    if chosen is None:
        raise CommandError("no key may sign: `elma keys publisher --rotate` makes one")
    keys.public_of(chosen)
    return str(chosen)


def _write_prepared(path: Path, manifest: Any) -> None:
    from publisher.making import signing_payload

    try:
        path.write_bytes(signing_payload(manifest))
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error


def _read_signed(path: Path, channel: str, work: Any) -> Any:
    """The record of what `elma sign` wrote. Raises CommandError, SigningError."""
    from protocol.errors import MalformedMessage
    from protocol.manifest import SignedManifest, decode_manifest
    from publisher.making import keep_signed

    try:
        signed = SignedManifest.decode(path.read_bytes())
        found = decode_manifest(signed.payload).channel
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    except MalformedMessage as error:
        raise CommandError(
            f"{path} is no signed manifest ({error}); `elma sign` writes one", exit_status=2
        ) from error
    if found != channel:
        raise CommandError(f"{path} is for channel {found}; give --channel {found}", exit_status=2)
    return keep_signed(work.store, signed, work.trust)


def _print_prepared(path: Path, manifest: Any, as_json: bool) -> None:
    from elma.publishing import describe_manifest

    if as_json:
        print_json({**describe_manifest(manifest), "prepared_file": str(path)})
        return
    typer.echo(f"prepared version {manifest.version} of channel {manifest.channel}: {path}")
    typer.echo(f"release {manifest.release}")
    typer.echo("next: elma sign (where the key is), then elma publish --signature FILE here")


def _print_report(report: dict[str, Any]) -> None:
    typer.echo(
        f"published version {report['version']} of channel {report['channel']}: "
        f"{report['name']}@{report['release'][:12]}, {megabytes(report['release_bytes'])}, "
        f"signed by {report['key_id']}, expires in {days_left(report['expires'])}"
    )
    if "engines" in report:
        f1 = "" if report["f1"] is None else f", F1 {report['f1']:.2f}"
        typer.echo(
            f"checked on {', '.join(report['engines'])}: {report['canaries']} canaries, "
            f"{report['right_answers']} of {report['questions']} questions right{f1}"
        )
    typer.echo(
        f"sent {report['chunks_sent']} chunks ({megabytes(report['bytes_sent'])}) in "
        f"{report['upload_seconds']:.1f} s; the broker had {report['chunks_there']}; "
        f"the manifest has {report['manifest_bytes']} bytes"
    )
    if report.get("workers"):
        typer.echo(f"loaded by {', '.join(report['workers'])}")
    paused = ", paused" if report["paused"] else ""
    typer.echo(f"rollout: {100 * report['share']:g} % of the edges{paused}")
    if report["chunks_cleared"]:
        typer.echo(f"cleared {report['chunks_cleared']} chunks that no kept release uses")


def _bytes_bar() -> Any:
    from elma.release_options import bytes_bar

    return bytes_bar("uploading")
