"""`elma sign`: signs a prepared release, on the machine that has the key and maybe no network.

    elma sign release.unsigned --key publisher-secret.json

Input: the file of `elma publish --prepare`, the signing key, publisher-public.json. Output: what it
is that is signed, and the file for `elma publish --signature`. Neighbours: `publisher.prepared`
reads the file and checks what it shows against what is signed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.output import CommandError, JsonOption, print_json, print_status
from elma.release_options import (
    clock_time,
    days_left,
    file_error,
    files_of_the_call,
    megabytes,
)

if TYPE_CHECKING:
    from protocol.signing import PublisherTrust, SigningKey
    from publisher.prepared import Prepared
    from reader.exits import ExitSettings

_COMPARED = (
    ("exit threshold", "exit_thresholds"),
    ("no-answer threshold", "no_answer_thresholds"),
    ("temperature", "temperatures"),
)


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("sign")(sign)


def sign(
    prepared: Annotated[Path, typer.Argument(help="What `elma publish --prepare` wrote.")],
    key: Annotated[Path, typer.Option(help="publisher-secret.json.")],
    publisher_public: Annotated[
        Path, typer.Option(help="publisher-public.json, with the newest list of keys.")
    ] = Path("publisher-public.json"),
    out: Annotated[
        Path | None, typer.Option(help="The signed file. Default: beside it, ending in .signed.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; only a terminal is asked anyway.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a prepared release is, ask at a terminal, and sign it."""
    from protocol.key_files import load_publisher_public, load_publisher_secret
    from protocol.manifest import SignedManifest

    with files_of_the_call():
        signing_key, trust = load_publisher_secret(key), load_publisher_public(publisher_public)
    release = _read(prepared)
    _refuse_in_vain(release, prepared, signing_key, trust, publisher_public)
    described = describe(release, signing_key.key_id)
    is_asked = sys.stdin.isatty() and not yes
    if is_asked or not as_json:
        for line in _lines(described):
            print_status(line) if as_json else typer.echo(line)
    if is_asked and not typer.confirm(f"Sign it with {signing_key.key_id}?", err=True):
        raise CommandError(f"{prepared} was not signed")
    signature = signing_key.sign("manifest", release.payload)
    signed = SignedManifest(release.payload, signing_key.key_id, signature, trust.key_list)
    target = out or prepared.with_suffix(".signed")
    try:
        target.write_bytes(signed.encode())
    except OSError as error:
        raise file_error("write", target, error) from error
    if as_json:
        print_json({**described, "signed_file": str(target)})
        return
    typer.echo(f"signed by {signing_key.key_id} ({signing_key.fingerprint}): {target}")


def describe(release: Prepared, key_id: str) -> dict[str, Any]:
    """What is signed, as a document. `thresholds_changed` is None where either is not known."""
    from elma.publishing import describe_manifest

    manifest, settings, before = release.manifest, release.settings, release.settings_before
    return {
        **describe_manifest(manifest, key_id),
        "f1_before": release.before.f1 if release.before else None,
        "canaries": release.canaries,
        "criterion": settings.criterion if settings else None,
        "exits": len(settings.exit_thresholds) if settings else None,
        "thresholds_changed": changes(before, settings) if before and settings else None,
        "files": [
            {"name": one.name, "bytes": one.length_bytes, "sha256": one.sha256}
            for one in manifest.files
        ],
    }


def changes(before: ExitSettings, after: ExitSettings) -> list[str]:
    """What differs between two settings of exits, a line each."""
    found = []
    for name in ("criterion", "default_edge_layers"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            found.append(f"{name.replace('_', ' ')}: {old} -> {new}")
    for what, name in _COMPARED:
        olds, news = getattr(before, name), getattr(after, name)
        if len(olds) != len(news):
            found.append(f"{what}s: {len(olds)} -> {len(news)} exits")
            continue
        for layer, (old, new) in enumerate(zip(olds, news, strict=True), start=1):
            if old != new:
                found.append(f"exit {layer}, {what}: {old:.4g} -> {new:.4g}")
    scores = (before.score_slopes, before.score_intercepts)
    if scores != (after.score_slopes, after.score_intercepts):
        found.append("the maps of scores to probabilities")
    return found


def _read(path: Path) -> Prepared:
    from publisher.errors import SigningError
    from publisher.prepared import read_prepared

    try:
        return read_prepared(path.read_bytes())
    except OSError as error:
        raise file_error("read", path, error) from error
    except SigningError as error:
        raise CommandError(f"{path}: {error}", exit_status=2) from error


def _refuse_in_vain(
    release: Prepared, path: Path, key: SigningKey, trust: PublisherTrust, public: Path
) -> None:
    """Raises CommandError for a signature that no device would take."""
    from protocol.errors import ProtocolError

    if release.manifest.expires <= time.time():
        raise CommandError(f"{path} has expired; prepare the release again", exit_status=2)
    try:
        is_theirs = trust.keys().public_of(key.key_id) == key.public
    except ProtocolError as error:
        raise CommandError(
            f"{key.key_id} may not sign, by {public} ({error}); no device would take its signature",
            exit_status=2,
        ) from error
    if not is_theirs:
        raise CommandError(
            f"{public} names another key as {key.key_id}; no device would take this signature",
            exit_status=2,
        )


def _lines(described: dict[str, Any]) -> Iterator[str]:
    """What is signed, for a person."""
    for name in ("channel", "version", "release", "name", "note"):
        if described[name]:
            yield f"{name}: {described[name]}"
    expires = described["expires"]
    yield f"expires: {clock_time(expires)}, in {days_left(expires)}"
    before = described["previous_version"]
    yield f"the release before: {'none' if before is None else f'version {before}'}"
    yield f"F1: {_measured(described['f1'])}; before: {_measured(described['f1_before'])}"
    canaries = described["canaries"]
    yield f"canaries: {'unknown, they did not travel' if canaries is None else canaries}"
    yield from _threshold_lines(described)
    for url in described["urls"]:
        yield f"also at: {url}"
    for one in described["files"]:
        yield f"  {one['name']}: {megabytes(one['bytes'])}, sha256 {one['sha256'][:16]}..."


def _threshold_lines(described: dict[str, Any]) -> Iterator[str]:
    if described["criterion"] is None:
        yield "thresholds: none that travelled with it"
        return
    yield f"thresholds: {described['criterion']}, {described['exits']} exits"
    changed = described["thresholds_changed"]
    if changed is None:
        yield "  the ones before are not known here"
    elif not changed:
        yield "  the same as before"
    else:
        yield from (f"  {line}" for line in changed)


def _measured(f1: float | None) -> str:
    return "not measured" if f1 is None else f"{f1:.2f}"
