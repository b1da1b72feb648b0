"""Bytes of an update on its way to one edge, by what changed, against the whole release.

In: the model folder that edges have and those that follow it. Out: a row an update, and for each
kind of tensor the bytes by every method of `releases.deltas`. Neighbours:
`benchmarks/release_bytes.py` is the command, `results` writes.

Everything is built, planned and assembled by the functions that a publisher and an edge run;
canaries are made as `elma publish` makes them. Two updates are made here: one of thresholds alone,
one of the first update's exit heads alone. Bytes are those of MQTT payloads: manifest, indexes and
whole chunks. Topics and packet headers, some 120 bytes a message, come on top and are not counted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elma.bench.machine import describe_machine
from elma.bench.questions import load_bench_questions
from elma.bench.results import Table
from protocol.file_index import FileIndex, decode_index
from protocol.manifest import (
    CHUNK_BYTES,
    BlobRef,
    Manifest,
    PreviousRelease,
    SignedManifest,
    sign_manifest,
)
from protocol.signing import KeyList, SigningKey
from publisher.checking import GoldQuestion, check_model
from reader.weights import folder_digest, load_config
from releases.architecture import architecture_of
from releases.assembly import assemble
from releases.blob_folder import BlobFolder
from releases.building import Contents, build_contents
from releases.chunk_folder import ChunkFolder
from releases.deltas import METHODS, Content, encode_whole, try_methods
from releases.parts import PartSpan, split_file
from releases.planning import LocalContent, missing_indexes, plan
from releases.store import ReleaseStore
from releases.transport import WantedChunk

THRESHOLDS, HEADS = "thresholds alone", "exit heads alone"
MAX_RELEASE_BYTES = 2 * 1024**3
AIMS = {THRESHOLDS: (8 * 1024, 1.0), "fine-tuned": (MAX_RELEASE_BYTES, 0.5)}
"""By update: fewer bytes to an edge than these, and a smaller share of the whole release."""
SIGNING_KEY = SigningKey.make("release-2026")
ROOT_KEY = SigningKey.make("root")
KEY_LIST = KeyList(1, {SIGNING_KEY.key_id: SIGNING_KEY.public})
SIGNED_KEYS = KEY_LIST.sign(ROOT_KEY)


@dataclass(frozen=True)
class Row:
    """An update: payload bytes and messages to an edge that has the base, and to one that has
    nothing; bytes that the publisher uploads; seconds of building, and of putting together on the
    edge (digests and syncs included)."""

    update: str
    edge_bytes: int
    edge_messages: int
    fresh_bytes: int
    share: float
    upload_bytes: int
    build_seconds: float
    assemble_seconds: float


def run(base: Path, updates: Mapping[str, Path], threads: int) -> dict[str, Any]:
    """Measure the updates of `base`, by name, after the two that are made here."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = {
            THRESHOLDS: new_thresholds(base, folder / "thresholds"),
            HEADS: new_heads(base, next(iter(updates.values())), folder / "heads"),
        }
        rows = list(measure(base, made | dict(updates), folder, threads))
    return {
        "base": base.name,
        "rows": [asdict(row) for row in rows],
        "kinds": {name: bytes_by_kind(base, folder) for name, folder in updates.items()},
        "machine": describe_machine(threads),
    }


def measure(base: Path, updates: Mapping[str, Path], scratch: Path, threads: int) -> Iterator[Row]:
    """A row an update, each published after the base by itself."""
    blobs, canaries = BlobFolder(scratch / "blobs"), canaries_of(base, threads)
    first = build_contents(base, canaries, blobs=blobs)
    installed = scratch / "installed"
    shutil.copytree(base, installed)
    (installed / "canaries.json").write_bytes(canaries)
    for number, (name, folder) in enumerate(updates.items()):
        canaries, begun = canaries_of(folder, threads), time.perf_counter()
        contents = build_contents(
            folder, canaries, blobs=blobs, bases=[base], earlier=read_indexes(first, blobs)
        )
        build_seconds, signed = time.perf_counter() - begun, sign(folder, contents)
        edge = receive(signed, blobs, [installed], scratch / f"edge-{number}")
        fresh = receive(signed, blobs, [], scratch / f"fresh-{number}")
        yield Row(
            update=name,
            edge_bytes=edge.payload_bytes,
            edge_messages=edge.messages,
            fresh_bytes=fresh.payload_bytes,
            share=edge.payload_bytes / fresh.payload_bytes,
            upload_bytes=contents.new_bytes + len(signed.encode()),
            build_seconds=build_seconds,
            assemble_seconds=edge.seconds,
        )


@dataclass(frozen=True)
class Received:
    """What came to an edge, manifest included, and how long the rest took it."""

    payload_bytes: int
    messages: int
    seconds: float


def receive(
    signed: SignedManifest, blobs: BlobFolder, folders: Sequence[Path], target: Path
) -> Received:
    """Plan, fetch and assemble a release as an edge with these model folders does."""
    manifest = signed.manifest(KEY_LIST)
    local = LocalContent(folders)
    with ReleaseStore(target) as store:
        begun = time.perf_counter()
        fetched = missing_indexes(manifest.files, local, store.downloads)
        fetch(fetched, blobs, store.downloads)
        needed = plan(
            manifest, manifest.files, local, store.downloads, max_release_bytes=MAX_RELEASE_BYTES
        )
        fetch(needed.chunks, blobs, store.downloads)
        assemble(manifest, needed, store)
        seconds = time.perf_counter() - begun
    fetched = [*fetched, *needed.chunks]
    payload_bytes = len(signed.encode()) + sum(one.length_bytes for one in fetched)
    return Received(payload_bytes, 1 + len(fetched), seconds)


def fetch(wanted: Sequence[WantedChunk], blobs: BlobFolder, chunks: ChunkFolder) -> None:
    """Copy chunks, as if they had come over the wire."""
    for one in wanted:
        offset = one.chunk * CHUNK_BYTES
        content = blobs.read_range(one.blob.sha256, offset, one.length_bytes)
        chunks.put(one.blob, one.chunk, content)


def sign(folder: Path, contents: Contents) -> SignedManifest:
    """A manifest of the length that a real one has."""
    created = time.time()
    manifest = Manifest(
        channel="stable",
        version=2,
        release=folder_digest(folder),
        name=folder.name,
        created=created,
        expires=created + 30 * 86_400,
        architecture=architecture_of(load_config(folder)),
        files=contents.files,
        rollout_public=SIGNING_KEY.public,
        previous=PreviousRelease(
            "0" * 64, 1, BlobRef(hashlib.sha256(folder.name.encode()).hexdigest(), 2000)
        ),
    )
    return sign_manifest(manifest, SIGNING_KEY, SIGNED_KEYS)


def canaries_of(folder: Path, threads: int) -> bytes:
    """The canaries that `elma publish` gives this model."""
    questions = [
        GoldQuestion(one.question, one.context, tuple(answer.text for answer in one.answers))
        for one in load_bench_questions(None).questions
    ]
    return check_model(folder, questions, threads=threads).canaries_file


def read_indexes(contents: Contents, blobs: BlobFolder) -> list[FileIndex]:
    """The indexes of a release's files."""
    return [
        decode_index(blobs.path_of(file.index.sha256).read_bytes())
        for file in contents.files
        if file.index is not None
    ]


def new_thresholds(base: Path, target: Path) -> Path:
    """The base with every exit threshold moved by a hundredth."""
    shutil.copytree(base, target)
    settings = json.loads((base / "exits.json").read_text(encoding="utf-8"))
    settings["exit_thresholds"] = [0.99 * one for one in settings["exit_thresholds"]]
    (target / "exits.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return target


def new_heads(base: Path, trained: Path, target: Path) -> Path:
    """The base with the exit heads and thresholds of another training."""
    shutil.copytree(base, target)
    for name in ("exits.safetensors", "exits.json"):
        shutil.copyfile(trained / name, target / name)
    return target


def bytes_by_kind(base: Path, folder: Path) -> list[dict[str, Any]]:
    """For each kind of tensor its bytes, those that stayed, and those of the changed parts by
    every method; a method that cannot do a part counts it whole. `best` is what is sent."""
    kinds: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for path in sorted(folder.glob("*.safetensors")):
        old = base / path.name
        before = {span.name: span for span in split_file(old)} if old.is_file() else {}
        held = {span.sha256 for span in before.values()}
        for span in split_file(path):
            row = kinds[kind_of(path.name, span)]
            row["raw_bytes"] += span.length_bytes
            if span.sha256 in held:
                row["same_bytes"] += span.length_bytes
                continue
            new = read_part(path, span)
            whole = len(encode_whole(new.content).data)
            match = before.get(span.name)
            tried = {} if match is None else try_methods(new, read_part(old, match))
            lengths = {"zstd": whole} | {method: len(data) for method, data in tried.items()}
            for method in METHODS:
                row[method] += lengths.get(method, whole)
            row["best"] += min(lengths.values())
    return [{"kind": kind, **row} for kind, row in kinds.items()]


def read_part(path: Path, span: PartSpan) -> Content:
    """A part of a file with its bytes."""
    with path.open("rb") as stream:
        stream.seek(span.offset)
        return Content(span.sha256, stream.read(span.length_bytes), span.layout)


def kind_of(file: str, span: PartSpan) -> str:
    """What a part holds, in words."""
    if span.name == "header":
        return "headers"
    if file in ("exits.safetensors", "bottleneck.safetensors"):
        return "exit heads" if file.startswith("exits") else "state codec"
    if "word_embeddings" in span.name:
        return "word embeddings"
    return "matrices" if span.layout.item_bytes == 1 else "scales and vectors"


def describe_aim(row: Mapping[str, Any]) -> str:
    """What was aimed at for an update, and what came of it."""
    aim_bytes, aim_share = AIMS[row["update"]]
    is_met = row["edge_bytes"] < aim_bytes and row["share"] < aim_share
    aim = f"under {aim_bytes:,} bytes" if aim_share == 1 else f"under {100 * aim_share:.0f} %"
    return f"Aim for {row['update']}: {aim}; {'met' if is_met else '**missed**'}."


def markdown_of(result: Mapping[str, Any]) -> str:
    """Both tables, and whether the aims are met."""
    rows = result["rows"]
    headings = ["update of " + str(result["base"]), "bytes to an edge", "messages", "whole release"]
    headings += ["share", "uploaded", "build s", "edge s"]
    lines = [
        Table(
            headings,
            [
                [
                    row["update"],
                    row["edge_bytes"],
                    row["edge_messages"],
                    row["fresh_bytes"],
                    f"{100 * row['share']:.2f} %",
                    row["upload_bytes"],
                    row["build_seconds"],
                    row["assemble_seconds"],
                ]
                for row in rows
            ],
        ).markdown()
    ]
    for name, kinds in result["kinds"].items():
        columns = ["raw_bytes", "same_bytes", *METHODS, "best"]
        cells = [[row["kind"], *(row.get(column, 0) for column in columns)] for row in kinds]
        titles = [f"bytes of {name}", "all", "unchanged", *METHODS, "sent"]
        lines.append(Table(titles, cells).markdown())
    lines.append("A method that cannot do a part counts it whole.")
    lines += [describe_aim(row) for row in rows if row["update"] in AIMS]
    return "\n\n".join(lines)
