"""Blobs on their way to the broker: as retained chunks, only what it lacks, cleared when unused.

In: references to blobs, and the folder that has their bytes. Out: chunks that the broker retains.
Neighbours: `line` publishes, `sent` remembers what was acknowledged, `sending` says which blobs.

What does the broker have? MQTT cannot list retained messages without sending them. So the log of
acknowledgements is believed, after a sample: the chunk that was acknowledged last among those
wanted is asked for, with the one acknowledged first. Mosquitto saves what it retains as one picture
of one moment, so a broker that was killed and has lost something has lost the newest first; and
what has expired is the oldest. A sample that is missing: everything is sent again.

A chunk in between that somebody has spoilt or taken away shows in no sample. `forget_wrong` reads
all of them back, for when a device says that one is wrong.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from broker.exchange import Publication
from protocol.blobs import CHUNK_BYTES, BlobRef
from protocol.topics import BlobTopic
from publisher.errors import PublisherStoreError, UploadFailed
from publisher.line import ACKNOWLEDGE_SECONDS, Line, is_chunk
from publisher.sent import Chunk, SentLog
from releases.blob_folder import BlobFolder
from releases.errors import ReleaseError

CHUNK_EXPIRY_SECONDS = 14 * 86_400
RENEW_SECONDS = CHUNK_EXPIRY_SECONDS / 2
"""A chunk that was acknowledged longer ago is sent again, so that it never expires in use."""
SAMPLE_SECONDS = 5.0
READ_TOGETHER = 8
"""Chunks that are read back at once: 2 MiB in memory."""
READ_SECONDS = 60.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Uploaded:
    """Chunks and bytes that were sent now, and chunks that the broker had."""

    chunks_sent: int
    bytes_sent: int
    chunks_there: int


def upload(
    line: Line,
    log: SentLog,
    folder: BlobFolder,
    wanted: Iterable[BlobRef],
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Uploaded:
    """Make the broker retain every chunk of the blobs; `progress(bytes sent, bytes to send)`.

    Raises UploadFailed, PublisherStoreError. Run again after any interruption, it goes on.
    """
    chunks = chunks_of(wanted)
    there = _believed(line, log, chunks, wall_clock())
    missing = [chunk for chunk in chunks if chunk not in there]
    total = sum(chunks[chunk].chunk_length(chunk[1]) for chunk in missing)
    done = 0

    def note(publication: Publication) -> None:
        nonlocal done
        chunk = is_chunk(publication)
        if chunk is not None:
            log.add(chunk, wall_clock())
        done += len(publication.payload)
        if progress is not None:
            progress(done, total)

    def publications() -> Iterator[Publication]:
        for chunk in missing:
            yield _publication(folder, chunks[chunk], chunk[1])

    line.send(publications(), patience_seconds=ACKNOWLEDGE_SECONDS, sent=note, stop=stop)
    return Uploaded(len(missing), total, len(chunks) - len(missing))


def clear_unused(line: Line, log: SentLog, kept: Iterable[BlobRef]) -> int:
    """Make the broker forget every chunk that we sent and no blob of `kept` needs; how many."""
    needed = chunks_of(kept)
    unused = [chunk for chunk in log.chunks() if chunk not in needed]
    empty = (Publication(str(BlobTopic(*chunk)), b"", 1, True) for chunk in unused)
    line.send(
        empty,
        patience_seconds=ACKNOWLEDGE_SECONDS,
        sent=lambda publication: log.remove(filter(None, [is_chunk(publication)])),
    )
    return len(unused)


def forget_wrong(
    line: Line,
    log: SentLog,
    wanted: Iterable[BlobRef],
    *,
    stop: threading.Event | None = None,
) -> int:
    """Read back every chunk of the blobs that the broker should retain, and strike off the log what
    it has not or has otherwise, so that `upload` sends it again; how many.

    Costs the link as much as the blobs have bytes. Raises UploadFailed when the broker does not
    answer, or `stop` is set: what was found wrong until then stays struck off.
    """
    chunks, sent, wrong = chunks_of(wanted), log.chunks(), 0
    believed = [chunk for chunk in chunks if chunk in sent]
    for first in range(0, len(believed), READ_TOGETHER):
        if stop is not None and stop.is_set():
            raise UploadFailed("stopped; what the broker retains was not read to its end")
        batch = believed[first : first + READ_TOGETHER]
        for chunk, payload in line.retained_chunks(batch, READ_SECONDS).items():
            if not _is_right(payload, chunks[chunk], chunk[1]):
                log.remove([chunk])
                wrong += 1
    return wrong


def chunks_of(blobs: Iterable[BlobRef]) -> dict[Chunk, BlobRef]:
    """Every chunk of the blobs, once, in their order."""
    return {(blob.sha256, number): blob for blob in blobs for number in range(blob.chunk_count)}


def _believed(line: Line, log: SentLog, chunks: dict[Chunk, BlobRef], now: float) -> set[Chunk]:
    """The chunks among these that the broker still retains, as far as a sample tells."""
    fresh = [
        chunk for chunk, at in log.chunks().items() if chunk in chunks and now - at < RENEW_SECONDS
    ]
    for chunk in {*fresh[:1], *fresh[-1:]}:
        payload = line.retained_chunk(*chunk, SAMPLE_SECONDS)
        if not _is_right(payload, chunks[chunk], chunk[1]):
            log.forget_all(now)
            return set()
    return set(fresh)


def _is_right(payload: bytes | None, blob: BlobRef, number: int) -> bool:
    return payload is not None and hashlib.sha256(payload).hexdigest() == blob.chunk_sha256(number)


def _publication(folder: BlobFolder, blob: BlobRef, number: int) -> Publication:
    """The message that carries a chunk, its bytes checked."""
    length_bytes = blob.chunk_length(number)
    try:
        payload = folder.read_range(blob.sha256, number * CHUNK_BYTES, length_bytes)
    except (OSError, ReleaseError) as error:
        raise PublisherStoreError(
            f"blob {blob.sha256} is not in the publisher's store ({error}); publish the model anew"
        ) from error
    if not _is_right(payload, blob, number):
        raise PublisherStoreError(
            f"chunk {number} of blob {blob.sha256} in the publisher's store is damaged; restore it"
        )
    topic = str(BlobTopic(blob.sha256, number))
    return Publication(topic, payload, 1, True, CHUNK_EXPIRY_SECONDS)
