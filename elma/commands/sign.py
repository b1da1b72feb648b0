"""`elma sign`: signs a prepared release, on the machine that has the key and maybe no network.

    elma sign release.unsigned --key publisher-secret.json

Input: the file of `elma publish --prepare`, the signing key, publisher-public.json. Output: what it
is that was signed, and the file for `elma publish --signature`. Neighbour: `protocol.manifest`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from elma.output import CommandError, JsonOption, print_json
from elma.release_options import days_left, megabytes


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("sign")(sign)


def sign(
    manifest: Annotated[Path, typer.Argument(help="What `elma publish --prepare` wrote.")],
    key: Annotated[Path, typer.Option(help="publisher-secret.json.")],
    publisher_public: Annotated[
        Path, typer.Option(help="publisher-public.json, with the newest list of keys.")
    ] = Path("publisher-public.json"),
    out: Annotated[
        Path | None, typer.Option(help="The signed file. Default: beside it, ending in .signed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a prepared release is, and sign it."""
    from elma.publishing import describe_manifest
    from protocol.errors import MalformedMessage
    from protocol.key_files import load_publisher_public, load_publisher_secret
    from protocol.manifest import SignedManifest, decode_manifest

    signing_key, trust = load_publisher_secret(key), load_publisher_public(publisher_public)
    try:
        payload = manifest.read_bytes()
        content = decode_manifest(payload)
    except OSError as error:
        raise CommandError(f"cannot read {manifest}: {error.strerror}") from error
    except MalformedMessage as error:
        raise CommandError(f"{manifest} is no prepared release: {error}", exit_status=2) from error
    if content.expires <= time.time():
        raise CommandError(f"{manifest} has expired; prepare the release again")
    if trust.keys().public_of(signing_key.key_id) != signing_key.public:
        raise CommandError(
            f"{publisher_public} names another key as {signing_key.key_id}; "
            "no device would take this signature"
        )
    signature = signing_key.sign("manifest", payload)
    signed = SignedManifest(payload, signing_key.key_id, signature, trust.key_list)
    target = out or manifest.with_suffix(".signed")
    try:
        target.write_bytes(signed.encode())
    except OSError as error:
        raise CommandError(f"cannot write {target}: {error.strerror}") from error
    described = describe_manifest(content, signing_key.key_id)
    files = [
        {"name": one.name, "bytes": one.length_bytes, "sha256": one.sha256} for one in content.files
    ]
    if as_json:
        print_json({**described, "files": files, "signed_file": str(target)})
        return
    _print_signed(described, files)
    typer.echo(f"signed by {signing_key.key_id} ({signing_key.fingerprint}): {target}")


def _print_signed(described: dict[str, Any], files: list[dict[str, Any]]) -> None:
    for name in ("channel", "version", "release", "name", "f1", "note", "previous_version"):
        if described[name] not in (None, ""):
            typer.echo(f"{name.replace('_', ' ')}: {described[name]}")
    typer.echo(f"expires in {days_left(described['expires'])}")
    for one in files:
        typer.echo(f"  {one['name']}: {megabytes(one['bytes'])}, sha256 {one['sha256'][:16]}...")
