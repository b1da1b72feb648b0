"""`elma publish`: a model folder becomes a release on every device of a channel.

    elma publish MODEL --key publisher-secret.json --stage 5%
    elma publish --rollback 3 --key publisher-secret.json
    elma publish --refresh --key publisher-secret.json
    elma publish MODEL --prepare release.unsigned      `elma sign` elsewhere, then
    elma publish --signature release.signed

Input: a model folder, or an old version; keys; the broker. Output: what was sent, as text or JSON.
Neighbours: `elma.publish_options` has the options, `elma.publishing` does the steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from elma.option_groups import spread
from elma.output import CommandError, JsonOption, print_json, print_status
from elma.publish_options import CheckOptionGroup, Delivery, Signing, TermOptions, What
from elma.release_options import (
    Place,
    bytes_bar,
    days_left,
    file_error,
    files_of_the_call,
    megabytes,
    percent,
)

if TYPE_CHECKING:
    from elma.publishing import Content, Publishing, Terms
    from elma.release_checks import CheckOptions
    from publisher.settings import PublisherSettings
    from publisher.store import Record

BUSY_SECONDS = 60.0
"""How long to wait for the rollout service, when it is just filling the broker again."""


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("publish")(publish)


@spread
def publish(
    what: What,
    place: Place,
    signing: Signing,
    checks: CheckOptionGroup,
    terms: TermOptions,
    delivery: Delivery,
    as_json: JsonOption = False,
) -> None:
    """Check a model, sign it, and bring it to every edge of a channel; or go back to an old one.

    What was interrupted is finished by the same command: it goes on where it was.
    """
    from elma.publishing import Publishing, Terms
    from elma.release_checks import CheckOptions
    from protocol.key_files import load_publisher_public
    from publisher.line import Line
    from publisher.rollout import parse_share
    from publisher.store import PublisherStore

    what.check()
    if signing.prepare is not None and what.signature is not None:
        raise CommandError("--prepare comes before --signature, not with it", exit_status=2)
    chosen = Terms(terms.expires_seconds, terms.note, terms.urls())
    share = None if delivery.stage is None else parse_share(delivery.stage)
    settings = place.settings(signing.key)
    with files_of_the_call():
        trust = load_publisher_public(settings.publisher_public_key_file)
    _refuse_the_services_account(settings)
    store = PublisherStore(settings.store)
    content, options = _content_of(what, settings), CheckOptions(**vars(checks))
    with Line(settings.broker, settings.channel) as line:
        line.wait_ready(settings.broker.connect_timeout_seconds * 3)
        work = Publishing(store, settings.channel, trust, line, print_status)
        if signing.prepare is not None:
            with store.publishing(BUSY_SECONDS):
                _prepare(work, signing, content, chosen, options, as_json)
            return
        with store.publishing(BUSY_SECONDS):
            if what.signature is not None:
                record = _read_signed(what.signature, settings.channel, work)
            else:
                record = _sign_here(work, settings.key_file, content, chosen, options)
            with bytes_bar("uploading") as progress:
                work.send(record, progress, resend=delivery.resend)
        wait_seconds = None if delivery.no_wait else delivery.wait_seconds
        work.roll_out(record, share, wait_seconds, chosen.note or "")
        report = work.finish(record, delivery.export)
    print_json(report) if as_json else _print_report(report)


def _refuse_the_services_account(settings: PublisherSettings) -> None:
    """Two with one account at the broker throw each other out; raises CommandError before that."""
    from publisher.beside import account_of, hear_service

    account = account_of(settings)
    heard = None if account is None else hear_service(settings.store, settings.channel)
    if heard is not None and heard.account == account:
        raise CommandError(
            f"the rollout service of this machine (process {heard.pid}) is connected as {account}, "
            "and this command would throw it out: give it an account of its own (`elma "
            "enroll-publisher NAME`, then --config of that bundle, with the same --store)",
            exit_status=2,
        )


def _content_of(what: What, settings: PublisherSettings) -> Content:
    """What is to be published; a folder of plain floats is packed. Raises CommandError for a model
    that is not there, PublisherStoreError."""
    from elma.publishing import Content
    from publisher.packing import PACKED_FOLDER, is_packed, pack
    from reader.errors import ReaderError
    from reader.weights import resolve_model_folder

    if what.model is None:
        return Content(None, what.rollback, what.refresh)
    try:
        folder = resolve_model_folder(what.model)
    except ReaderError as error:
        raise CommandError(str(error), exit_status=2) from error
    if not what.as_is and not is_packed(folder):
        print_status(f"packing {folder.name} for devices: matrices in int8, embeddings in int4")
        folder = pack(folder, settings.store / PACKED_FOLDER)
    return Content(folder)


def _prepare(
    work: Publishing,
    signing: Signing,
    content: Content,
    terms: Terms,
    checks: CheckOptions,
    as_json: bool,
) -> None:
    """Write what `elma sign` signs, and say so."""
    from elma.publishing import describe_manifest
    from publisher.prepared import prepare

    assert signing.prepare is not None  # noqa: S101 - or we would not be here
    path = signing.prepare
    manifest, _ = work.draft(content, terms, _signer(signing.key_id, work.trust), checks)
    try:
        path.write_bytes(prepare(work.store, manifest).encode())
    except OSError as error:
        raise file_error("write", path, error) from error
    if as_json:
        print_json({**describe_manifest(manifest), "prepared_file": str(path)})
        return
    typer.echo(f"prepared version {manifest.version} of channel {manifest.channel}: {path}")
    typer.echo(f"release {manifest.release}")
    typer.echo("next: elma sign (where the key is), then elma publish --signature FILE here")


def _sign_here(
    work: Publishing, key_file: Path | None, content: Content, terms: Terms, checks: CheckOptions
) -> Record:
    """The record of an earlier run of the same command, or a new one. Raises CommandError."""
    from protocol.key_files import load_publisher_secret

    if key_file is None:
        raise CommandError(
            "a release needs a signature: give --key publisher-secret.json, or --prepare to have "
            "it signed on another machine",
            exit_status=2,
        )
    with files_of_the_call():
        key = load_publisher_secret(key_file)
    begun = work.begun(content, terms, checks, key.key_id)
    if begun is not None:
        return begun
    work.may_sign(key.key_id)  # refused before the work, not after it
    manifest, verdict = work.draft(content, terms, key.key_id, checks)
    return work.sign(manifest, key, verdict)


def _signer(key_id: str | None, trust: Any) -> str:
    """Who will sign what is prepared: a key that may."""
    keys = trust.keys()
    chosen = key_id or next(reversed(keys.keys), None)
    if chosen is None:
        raise CommandError("no key may sign: `elma keys publisher --rotate` makes one")
    if chosen not in keys.keys:
        raise CommandError(
            f"key {chosen} may not sign releases; these may: {', '.join(keys.keys) or 'none'}",
            exit_status=2,
        )
    return str(chosen)


def _read_signed(path: Path, channel: str, work: Publishing) -> Record:
    """The record of what `elma sign` wrote. Raises CommandError, SigningError."""
    from protocol.errors import MalformedMessage
    from protocol.manifest import SignedManifest, decode_manifest
    from publisher.making import keep_signed

    try:
        signed = SignedManifest.decode(path.read_bytes())
        found = decode_manifest(signed.payload).channel
    except OSError as error:
        raise file_error("read", path, error) from error
    except MalformedMessage as error:
        raise CommandError(
            f"{path} is no signed manifest ({error}); `elma sign` writes one", exit_status=2
        ) from error
    if found != channel:
        raise CommandError(f"{path} is for channel {found}; give --channel {found}", exit_status=2)
    return keep_signed(work.store, signed, work.trust)


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
    typer.echo(f"rollout: {percent(report['share'])} of the edges{paused}")
    if report["chunks_cleared"]:
        typer.echo(f"cleared {report['chunks_cleared']} chunks that no kept release uses")
