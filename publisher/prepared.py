"""What is carried to the machine that has the signing key: a manifest, and what shows its meaning.

In: a draft and the store. Out: one small file, and from it, far from any store, what an operator
signs: thresholds before and after, how many canaries. Neighbours: `elma publish --prepare` writes
it, `elma sign` reads it.

Only the manifest is signed. What lies beside it was put there by whoever prepared it, so each piece
counts only where its sha256 is in that manifest: thresholds and canaries are files of the release,
and the release before is named by the hash of its manifest, which has the hash of its thresholds.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from protocol.errors import ProtocolError
from protocol.manifest import Manifest, SignedManifest, decode_manifest, encode_manifest
from publisher.errors import PublisherStoreError, SigningError
from publisher.store import PublisherStore
from reader.canaries import CANARIES_FILE, decode_canaries
from reader.errors import ReaderError
from reader.exits import SETTINGS_FILE, ExitSettings

FORMAT_VERSION = 1
MAX_PREPARED_BYTES = 4 * 1024 * 1024
SHOWN_FILES = (SETTINGS_FILE, CANARIES_FILE)
_KIND = "elma prepared release"


@dataclass(frozen=True)
class Prepared:
    """`payload` is what is signed, `manifest` what it says. `files` are contents of the release,
    `before` is the manifest before it and `before_settings` its thresholds; None and absent where
    they did not travel. All of them are what the manifest's hashes say."""

    payload: bytes
    manifest: Manifest
    files: dict[str, bytes]
    before: Manifest | None = None
    before_payload: bytes | None = None
    before_settings: bytes | None = None

    def encode(self) -> bytes:
        """The file's content."""
        document = {
            "kind": _KIND,
            "format": FORMAT_VERSION,
            "manifest": _text(self.payload),
            "files": {name: _text(content) for name, content in self.files.items()},
            "before": _text(self.before_payload),
            "before_settings": _text(self.before_settings),
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    @property
    def canaries(self) -> int | None:
        """How many canaries the release has; None where that did not travel."""
        content = self.files.get(CANARIES_FILE)
        with suppress(ReaderError):
            return None if content is None else len(decode_canaries(content))
        return None

    @property
    def settings(self) -> ExitSettings | None:
        """The release's thresholds."""
        return _settings(self.files.get(SETTINGS_FILE))

    @property
    def settings_before(self) -> ExitSettings | None:
        """Those of the release before."""
        return _settings(self.before_settings)


def prepare(store: PublisherStore, manifest: Manifest) -> Prepared:
    """A draft with what shows its meaning, as far as the store has it."""
    files = _files(store, manifest, SHOWN_FILES)
    payload = encode_manifest(manifest)
    previous = manifest.previous
    if previous is None:
        return Prepared(payload, manifest, files)
    with suppress(PublisherStoreError, ProtocolError):
        state = store.channel(manifest.channel)
        before_payload = store.signed(manifest.channel, state.record_of(previous.version)).encode()
        if hashlib.sha256(before_payload).hexdigest() == previous.manifest.sha256:
            before = decode_manifest(SignedManifest.decode(before_payload).payload)
            settings = _files(store, before, (SETTINGS_FILE,)).get(SETTINGS_FILE)
            return Prepared(payload, manifest, files, before, before_payload, settings)
    return Prepared(payload, manifest, files)


def read_prepared(content: bytes) -> Prepared:
    """A prepared release, everything in it checked against its manifest. Raises SigningError."""
    try:
        if len(content) > MAX_PREPARED_BYTES:
            raise ValueError(f"it has {len(content)} bytes")
        document = json.loads(content)
        if (document["kind"], document["format"]) != (_KIND, FORMAT_VERSION):
            raise ValueError("another kind of file")
        payload = base64.b64decode(document["manifest"], validate=True)
        manifest = decode_manifest(payload)
        files = {str(name): _bytes(text) or b"" for name, text in document["files"].items()}
        before_payload = _bytes(document["before"])
        before_settings = _bytes(document["before_settings"])
        before = None
        if before_payload is not None:
            before = decode_manifest(SignedManifest.decode(before_payload).payload)
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        ProtocolError,
    ) as error:
        raise SigningError(
            f"it is no prepared release ({error}); `elma publish --prepare` writes one"
        ) from error
    for name, found in files.items():
        _check(name, found, _sha256_of(manifest, name))
    if before is not None and before_payload is not None:
        expected = manifest.previous.manifest.sha256 if manifest.previous else None
        _check("the manifest before", before_payload, expected)
        if before_settings is not None:
            _check("its thresholds", before_settings, _sha256_of(before, SETTINGS_FILE))
    elif before_settings is not None:
        raise SigningError("thresholds of a release before came without its manifest")
    return Prepared(payload, manifest, files, before, before_payload, before_settings)


def _files(store: PublisherStore, manifest: Manifest, names: tuple[str, ...]) -> dict[str, bytes]:
    folder = store.model_folder(manifest.release)
    found = {}
    for name in names:
        expected = _sha256_of(manifest, name)
        with suppress(OSError):
            content = b"" if folder is None else (folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() == expected:
                found[name] = content
    return found


def _sha256_of(manifest: Manifest, name: str) -> str | None:
    return next((one.sha256 for one in manifest.files if one.name == name), None)


def _check(what: str, content: bytes, expected: str | None) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise SigningError(
            f"{what} beside the manifest is not what the manifest names: the prepared file was "
            "changed; prepare the release again, and see who could write to it"
        )


def _settings(content: bytes | None) -> ExitSettings | None:
    if content is None:
        return None
    with suppress(ReaderError, KeyError, TypeError, ValueError):
        return ExitSettings.decode(content)
    return None


def _text(content: bytes | None) -> Any:
    return None if content is None else base64.b64encode(content).decode("ascii")


def _bytes(text: Any) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
