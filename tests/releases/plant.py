"""What the tests of the receiving end need of a publisher: keys, releases, and a way to the broker.

The model folders are real files with a real header and random tensors, large enough for several
chunks; nothing here computes answers, so nothing needs torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from broker.exchange import Outcome, Publication
from broker.session import Session
from protocol.blobs import CHUNK_BYTES, BlobRef
from protocol.key_files import save_publisher_public
from protocol.manifest import (
    Manifest,
    PreviousRelease,
    SignedManifest,
    sign_manifest,
)
from protocol.release_messages import RolloutOrder
from protocol.signing import KeyList, PublisherTrust, SigningKey
from protocol.topics import BlobTopic, ManifestTopic, RolloutTopic
from reader.config import ReaderConfig
from reader.weights import folder_digest
from releases.architecture import architecture_of
from releases.blob_folder import BlobFolder, blob_reference
from releases.building import build_contents

NOW = 1_800_000_000.0
CHANNEL = "stable"
CONFIG = ReaderConfig(
    vocab_size=1000,
    embedding_size=64,
    hidden_size=64,
    layers=4,
    groups=4,
    heads=4,
    intermediate_size=256,
)
WAIT_SECONDS = 20.0


def make_folder(path: Path, *, seed: int = 0, tensors: int = 6, threshold: float = 0.5) -> Path:
    """A model folder of some 1.5 MB; another seed changes the last tensor only."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG.to_hugging_face()))
    (path / "tokenizer.json").write_text(json.dumps({"words": ["a", "b"] * 200}))
    (path / "exits.json").write_text(json.dumps({"threshold": threshold}))
    common = np.random.default_rng(99)
    arrays = {
        f"layer.{number}": common.standard_normal((64, 1024)).astype(np.float32)
        for number in range(tensors - 1)
    }
    last = np.random.default_rng(seed)
    arrays["layer.last"] = last.standard_normal((64, 1024)).astype(np.float32)
    save_file(arrays, path / "model.safetensors")
    return path


@dataclass
class Plant:
    """A publisher in a few lines."""

    folder: Path
    root: SigningKey = field(default_factory=lambda: SigningKey.make("root"))
    key: SigningKey = field(default_factory=lambda: SigningKey.make("key1"))
    rollout: SigningKey = field(default_factory=lambda: SigningKey.make("rollout"))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.blobs = BlobFolder(self.folder / "blobs")
        self.key_list = KeyList(1, {self.key.key_id: self.key.public})
        self.public_file = self.folder / "publisher-public.json"
        self.trust = PublisherTrust(self.root.public, self.key_list.sign(self.root))
        save_publisher_public(self.public_file, self.trust)
        self.references: dict[str, BlobRef] = {}

    def manifest(
        self,
        model: Path,
        version: int,
        *,
        bases: Sequence[Path] = (),
        canaries: bytes = b"",
        created: float = NOW,
        previous: SignedManifest | None = None,
        urls: tuple[str, ...] = (),
        **changes: Any,
    ) -> Manifest:
        """A manifest of the folder; its blobs are in `blobs`."""
        with mock.patch("releases.frames.LEVEL", 1):  # noise does not get smaller, only slower
            contents = build_contents(model, canaries, blobs=self.blobs, bases=bases)
        self.references |= {blob.sha256: blob for blob in contents.blobs}
        before = None
        if previous is not None:
            encoded = previous.encode()
            self.blobs.put(encoded)
            blob = blob_reference(encoded)
            self.references[blob.sha256] = blob
            opened = previous.manifest(self.key_list)
            before = PreviousRelease(opened.release, opened.version, blob)
        made = Manifest(
            channel=CHANNEL,
            version=version,
            release=folder_digest(model),
            name="test",
            created=created,
            expires=created + 86_400,
            architecture=architecture_of(CONFIG),
            files=contents.files,
            rollout_public=self.rollout.public,
            previous=before,
            urls=urls,
        )
        return replace(made, **changes)

    def sign(self, manifest: Manifest) -> SignedManifest:
        """Signed by the current key, with the current list."""
        return sign_manifest(manifest, self.key, self.key_list.sign(self.root))

    def rotate(self, key_id: str, *, revoke: bool = True) -> SigningKey:
        """A new signing key; the one before is revoked. Returns the old one."""
        old, self.key = self.key, SigningKey.make(key_id)
        self.key_list = self.key_list.with_key(key_id, self.key.public)
        if revoke:
            self.key_list = self.key_list.without_key(old.key_id)
        return old

    def order(
        self, manifest: Manifest, *, sequence: int = 1, share: float = 1.0, **changes: Any
    ) -> bytes:
        """A rollout order for everybody."""
        order = RolloutOrder(
            channel=CHANNEL,
            release=manifest.release,
            version=manifest.version,
            sequence=sequence,
            share=share,
            paused=False,
            reason="",
            created=NOW,
            expires=NOW + 86_400,
        )
        return replace(order, **changes).sign(self.rollout).encode()


def chunks_of(plant: Plant) -> list[tuple[str, int, bytes]]:
    """Every chunk of every blob."""
    found = []
    for sha256, blob in plant.references.items():
        for chunk in range(blob.chunk_count):
            content = plant.blobs.read_range(sha256, chunk * CHUNK_BYTES, blob.chunk_length(chunk))
            found.append((sha256, chunk, content))
    return found


def retain(session: Session, topic: object, payload: bytes) -> None:
    """Publish a retained message and wait until the broker has it."""
    receipt = session.publish(Publication(str(topic), payload, retain=True))
    outcome = receipt.wait(WAIT_SECONDS)
    assert outcome in (Outcome.ACKNOWLEDGED, Outcome.NO_SUBSCRIBER), (outcome, receipt.reason)


def upload(session: Session, plant: Plant, *, without: Sequence[tuple[str, int]] = ()) -> None:
    """All chunks but some."""
    for sha256, chunk, content in chunks_of(plant):
        if (sha256, chunk) not in without:
            retain(session, BlobTopic(sha256, chunk), content)


def announce(session: Session, signed: SignedManifest, order: bytes | None = None) -> None:
    """The manifest, and the order to take it."""
    retain(session, ManifestTopic(CHANNEL), signed.encode())
    if order is not None:
        retain(session, RolloutTopic(CHANNEL), order)


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    """Until it holds; fails after `WAIT_SECONDS`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what or "waited in vain"
        time.sleep(0.01)
