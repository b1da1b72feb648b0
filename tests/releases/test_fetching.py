"""Window, patience and giving up of a fetch, with a transport and clocks that the test holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.blobs import CHUNK_BYTES, BlobRef
from releases.blob_folder import blob_reference
from releases.chunk_folder import ChunkFolder
from releases.errors import (
    ChunkCorrupt,
    ChunkMissing,
    ContentError,
    FetchInterrupted,
    TransportFailed,
)
from releases.fetching import ChunkFetcher, FetchRules
from releases.pacing import Pacer
from releases.transport import Arrival, ChunkKey, WantedChunk

CONTENT = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(90_000))
BLOB = blob_reference(CONTENT)
WANTED = [WantedChunk(BLOB, chunk) for chunk in range(BLOB.chunk_count)]


def chunk_content(chunk: int) -> bytes:
    return CONTENT[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]


class Held:
    """A transport whose answers the test decides; time passes when nothing comes."""

    def __init__(self, answer: Callable[[ChunkKey, int], Arrival | None]) -> None:
        self.answer = answer
        self.now = 0.0
        self.is_ready = True
        self.generation = 0
        self.asked: list[int] = []
        self.open: list[ChunkKey] = []
        self.widest = 0

    def clock(self) -> float:
        return self.now

    def ask(self, wanted: WantedChunk) -> bool:
        self.asked.append(wanted.chunk)
        self.open.append(wanted.key)
        self.widest = max(self.widest, len(self.open))
        return True

    def arrived(self, timeout_seconds: float) -> Arrival | None:
        if self.open:
            key = self.open.pop(0)
            arrival = self.answer(key, self.asked.count(key[1]))
            if arrival is not None:
                return arrival
        self.now += timeout_seconds
        return None

    def forget(self, wanted: WantedChunk) -> None:
        self.open = [key for key in self.open if key != wanted.key]

    def close(self) -> None:
        pass


def right(key: ChunkKey, _: int) -> Arrival:
    return Arrival(key, chunk_content(key[1]))


def fetch(transport: Held, folder: Path, **options: object) -> ChunkFolder:
    chunks = ChunkFolder(folder)
    pacer = Pacer(clock=transport.clock)
    fetcher = ChunkFetcher(chunks, pacer, FetchRules(), clock=transport.clock, **options)  # type: ignore[arg-type]
    fetcher.fetch(WANTED, transport)
    return chunks


def test_at_most_the_window_is_asked_for_at_once(tmp_path: Path) -> None:
    transport = Held(right)
    assert fetch(transport, tmp_path).read(BLOB) == CONTENT
    assert transport.widest == 4
    assert transport.asked == list(range(BLOB.chunk_count))


def test_while_questions_wait_for_the_cloud_the_window_is_one(tmp_path: Path) -> None:
    transport = Held(right)
    fetch(transport, tmp_path, is_busy=lambda: True)
    assert transport.widest == 1


def test_a_silent_chunk_is_asked_for_again_and_then_named_after_all_others_came(
    tmp_path: Path,
) -> None:
    transport = Held(lambda key, count: None if key[1] == 1 else right(key, count))
    with pytest.raises(ChunkMissing, match=f"chunk 1 of blob {BLOB.sha256} is not at the broker"):
        fetch(transport, tmp_path)
    assert transport.asked.count(1) == 3
    assert transport.now >= 20 + 40 + 80
    assert [ChunkFolder(tmp_path).has(BLOB, one.chunk) for one in WANTED].count(False) == 1


def test_a_chunk_that_comes_at_the_second_ask_is_no_failure(tmp_path: Path) -> None:
    transport = Held(lambda key, count: right(key, count) if count > 1 else None)
    assert fetch(transport, tmp_path).read(BLOB) == CONTENT


def test_a_chunk_that_is_always_wrong_ends_the_fetch(tmp_path: Path) -> None:
    transport = Held(
        lambda key, count: Arrival(key, b"wrong") if key[1] == 2 else right(key, count)
    )
    with pytest.raises(ChunkCorrupt, match="chunk 2 of blob"):
        fetch(transport, tmp_path)
    assert transport.asked.count(2) == 3
    assert not (tmp_path / BLOB.sha256 / "2").exists()


def test_chunks_nobody_asked_for_are_not_kept(tmp_path: Path) -> None:
    stray = BlobRef(hashlib.sha256(b"x").hexdigest(), 1)
    strays = iter([Arrival((stray.sha256, 0), b"x"), Arrival((BLOB.sha256, 77), b"x")])
    transport = Held(right)
    real = transport.arrived
    transport.arrived = lambda seconds: next(strays, None) or real(seconds)  # type: ignore[method-assign]
    fetch(transport, tmp_path)
    assert not (tmp_path / stray.sha256).exists()
    assert not (tmp_path / BLOB.sha256 / "77").exists()


def test_a_new_connection_is_asked_for_everything_that_was_under_way(tmp_path: Path) -> None:
    transport = Held(right)

    def drop_once(key: ChunkKey, count: int) -> Arrival | None:
        if transport.generation == 0:
            transport.generation = 1
            transport.open.clear()
            return None
        return right(key, count)

    transport.answer = drop_once
    assert fetch(transport, tmp_path).read(BLOB) == CONTENT
    assert transport.now < 1.0  # nobody waited for an answer of the old connection


def test_a_transport_with_problems_is_given_up(tmp_path: Path) -> None:
    transport = Held(lambda key, _: Arrival(key, problem="the broker refuses"))
    with pytest.raises(TransportFailed, match="the broker refuses"):
        fetch(transport, tmp_path)
    assert len(transport.asked) < 12


def test_a_transport_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    transport = Held(right)
    transport.is_ready = False
    transport.ask = lambda _: False  # type: ignore[method-assign]
    with pytest.raises(TransportFailed, match="no connection"):
        fetch(transport, tmp_path)
    assert transport.now >= 60


def test_an_interrupted_fetch_keeps_what_came(tmp_path: Path) -> None:
    transport = Held(right)
    with pytest.raises(FetchInterrupted):
        fetch(transport, tmp_path, is_interrupted=lambda: len(transport.asked) > 6)
    kept = sum(ChunkFolder(tmp_path).has(BLOB, one.chunk) for one in WANTED)
    assert 0 < kept < BLOB.chunk_count
    assert not transport.open


def test_a_chunk_that_went_bad_on_the_disk_does_not_count_after_a_start(tmp_path: Path) -> None:
    fetch(Held(right), tmp_path)
    (tmp_path / BLOB.sha256 / "1").write_bytes(bytes(CHUNK_BYTES))
    chunks = ChunkFolder(tmp_path)
    assert not chunks.has(BLOB, 1)
    assert chunks.has(BLOB, 0)
    with pytest.raises(ContentError, match="chunk 1"):
        chunks.read(BLOB)


def test_wrong_bytes_cannot_be_put(tmp_path: Path) -> None:
    chunks = ChunkFolder(tmp_path)
    for chunk, content in ((0, chunk_content(1)), (0, chunk_content(0)[:-1]), (99, b"")):
        with pytest.raises(ContentError):
            chunks.put(BLOB, chunk, content)
    assert not list(tmp_path.iterdir())
