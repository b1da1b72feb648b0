"""Releases for the protocol's tests: the shipped model's shape, with digests made up."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from protocol.blobs import CHUNK_BYTES, BlobRef
from protocol.file_index import FileIndex, FilePart, PartSource
from protocol.manifest import Architecture, Manifest, PreviousRelease, ReleaseFile
from protocol.release_messages import (
    Agreement,
    ModelState,
    RolloutOrder,
    WorkerReleases,
)
from protocol.signing import SigningKey

NOW = 1_790_000_000.0
DAY_SECONDS = 86_400.0
FIXED_KEY = SigningKey("publisher-1", bytes(range(32)))
"""Secret to nobody: a fixed key signs the same bytes the same way, so that they can be golden."""


def sha(text: str) -> str:
    """A digest that looks like any other."""
    return hashlib.sha256(text.encode()).hexdigest()


def blob(name: str, length_bytes: int) -> BlobRef:
    """A blob of this length with its chunks' hashes."""
    count = BlobRef.count_chunks(length_bytes)
    hashes = tuple(sha(f"{name}/{chunk}") for chunk in range(count)) if count > 1 else ()
    return BlobRef(sha(name), length_bytes, hashes)


def files() -> tuple[ReleaseFile, ...]:
    """The eight files of the shipped model as a publisher sends them."""
    small = {
        "config.json": (900, 400),
        "tokenizer.json": (466_247, 150_000),
        "exits.safetensors": (59_392, 50_000),
        "exits.json": (2_100, 600),
        "bottleneck.safetensors": (150_000, 140_000),
        "codecs.json": (300, 150),
        "canaries.json": (30_000, 9_000),
    }
    whole = [
        ReleaseFile(name, length, sha(name), "zstd", blob(f"{name}.zst", stored))
        for name, (length, stored) in small.items()
    ]
    packed = "packed.safetensors"
    return (
        *whole,
        ReleaseFile(packed, 34_000_000, sha(packed), index=blob("index", 30_000)),
    )


def manifest(**changes: Any) -> Manifest:
    """A release of the shipped model with everything that a manifest may say."""
    previous = PreviousRelease(sha("before"), 11, blob("before manifest", 2_000))
    made = Manifest(
        channel="stable",
        version=12,
        release=sha("release"),
        name="elma-small",
        created=NOW,
        expires=NOW + 30 * DAY_SECONDS,
        architecture=Architecture("albert", 12, 12, 384, 12, 1536, 384, 30_522, 512),
        files=files(),
        rollout_public=FIXED_KEY.public,
        previous=previous,
        urls=("https://models.example.org/elma/",),
        f1=81.25,
        note="thresholds calibrated anew",
    )
    return replace(made, **changes)


def index() -> FileIndex:
    """Three parts, of which one can be had as a difference, from two blobs."""
    parts = (FilePart(sha("head"), 5_000), FilePart(sha("a"), 400_000), FilePart(sha("b"), 70))
    blobs = (blob("pack", 2 * CHUNK_BYTES + 9), blob("old pack", 100_000))
    sources = (
        PartSource(0, "zstd", None, 0, 0, 900),
        PartSource(1, "whole", None, 0, 900, 400_000),
        PartSource(1, "difference", sha("old a"), 0, 400_900, 31_000),
        PartSource(2, "whole", None, 1, 500, 70),
    )
    return FileIndex(parts, blobs, sources)


def order(**changes: Any) -> RolloutOrder:
    """A twentieth of the edges may take the release."""
    made = RolloutOrder(
        "stable", sha("release"), 12, 3, 0.05, False, "stage 5%", NOW, NOW + 7 * DAY_SECONDS
    )
    return replace(made, **changes)


def model_state(**changes: Any) -> ModelState:
    """An edge half way to its next release."""
    made = ModelState(
        state="downloading",
        release=sha("before"),
        version=11,
        target=sha("release"),
        target_version=12,
        reason="",
        done_bytes=1_000,
        total_bytes=2_000,
        updated=NOW,
        manifest_expires=NOW + DAY_SECONDS,
        reason_code="fetch",
    )
    return replace(made, **changes)


def worker_releases(**changes: Any) -> WorkerReleases:
    """A worker with one release loaded, one on its way and one that failed."""
    made = WorkerReleases(
        worker="worker-1",
        loaded=(sha("before"),),
        loading=(sha("release"),),
        failed=((sha("broken"), "canary 3 failed"),),
        agreement=(
            Agreement(sha("before"), 4, "offload", 90, 100),
            Agreement(sha("before"), 2, "audit", 7, 7),
        ),
        updated=NOW,
    )
    return replace(made, **changes)
