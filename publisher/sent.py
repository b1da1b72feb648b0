"""What a broker has acknowledged: which chunks it should still retain, and since when.

In: acknowledgements. Out: what need not be sent again. The file `sent/{broker}.log` of the store
has one line an event, appended as it happens:

    + {unix seconds} {sha256} {chunk}       acknowledged
    - {sha256} {chunk}                      cleared
    ! {unix seconds}                        the broker had lost what it retained

A line that is lost, or half written, costs one chunk that is sent once more. Neighbours: `upload`
reads and writes it, and asks the broker for samples before it believes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from publisher.errors import PublisherStoreError

Chunk = tuple[str, int]
COMPACT_LINES = 100_000


class SentLog:
    """The log of one broker; a context manager that keeps its file open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at: dict[Chunk, float] = {}
        self._is_torn = False
        lines = self._read()
        try:
            if lines > COMPACT_LINES + len(self._at):
                partial = path.with_suffix(".partial")
                partial.write_text("".join(map(_line, self._at.items())), encoding="ascii")
                partial.replace(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a", encoding="ascii", buffering=1)
            if self._is_torn:  # killed in the middle of a line
                self._stream.write("\n")
        except OSError as error:
            raise PublisherStoreError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> SentLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def chunks(self) -> dict[Chunk, float]:
        """When each chunk that should be retained was acknowledged (unix seconds), oldest first."""
        return dict(self._at)

    def add(self, chunk: Chunk, now: float) -> None:
        """The broker acknowledged it."""
        self._at.pop(chunk, None)
        self._at[chunk] = now
        self._write(_line((chunk, now)))

    def remove(self, chunks: Iterable[Chunk]) -> None:
        """The broker was told to forget them."""
        for chunk in chunks:
            if self._at.pop(chunk, None) is not None:
                self._write(f"- {chunk[0]} {chunk[1]}\n")

    def forget_all(self, now: float) -> None:
        """The broker has lost them."""
        self._at.clear()
        self._write(f"! {now:.0f}\n")

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line)
        except OSError as error:
            raise PublisherStoreError(
                f"{self._path} cannot be written: {error.strerror}"
            ) from error

    def _read(self) -> int:
        """Replay the file; the number of its lines. A line that is none is skipped."""
        try:
            text = self._path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise PublisherStoreError(f"{self._path} cannot be read: {error.strerror}") from error
        lines = text.splitlines()
        self._is_torn = bool(lines) and not text.endswith("\n")
        for line in lines:
            words = line.split()
            try:
                if words[0] == "+" and len(words[2]) == 64:
                    chunk = (words[2], int(words[3]))
                    self._at.pop(chunk, None)
                    self._at[chunk] = float(words[1])
                elif words[0] == "-":
                    self._at.pop((words[1], int(words[2])), None)
                elif words[0] == "!":
                    self._at.clear()
            except (IndexError, ValueError):
                continue
        return len(lines)


def _line(item: tuple[Chunk, float]) -> str:
    (sha256, number), at = item
    return f"+ {at:.0f} {sha256} {number}\n"
