"""Canary questions: what a release must answer, on every machine, before it is trusted there.

In: a reader, and questions to choose from (the publisher) or the `canaries.json` of a release (a
device). Out: the file's content, or a `CanaryReport`. Neighbours: the publisher makes and ships
them, the edge agent and the worker run them before they take a release into use.

    make_canaries -> encode_canaries -> canaries.json -> load_canaries -> run_canaries

A canary asks whether this machine, with its engine and its precision, gets out of the weights what
the publisher got out of them. Whether the answers are any good was the publisher's question.
Canaries are walked with the release's own thresholds: a release whose exits stop where they must
not fails as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reader.errors import CanaryError, ReaderError
from reader.model import Reader
from reader.spans import Answer, choose_answers
from reader.walk import walk

CANARIES_FILE = "canaries.json"
MAX_CANARIES = 64
MAX_CANARIES_BYTES = 128 * 1024
MAX_QUESTION_CHARACTERS = 1_000
MAX_PASSAGE_CHARACTERS = 4_000
MAX_EXPECTED = 8
DEFAULT_COUNT = 16
"""About a second of reading on a small device, and a few kilobytes compressed."""
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class CanaryQuestion:
    """A question that may become a canary; `expected` are its right answers, if they are known."""

    question: str
    passage: str
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Canary:
    """A question with the answer that the release must give.

    That answer is characters `start .. end - 1` of the passage; "" and twice -1 for no answer.
    `expected` are the right answers as far as they are known; they decide nothing here.
    """

    question: str
    passage: str
    start: int
    end: int
    text: str
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class CanaryFailure:
    """A canary (its place in the file) that was answered otherwise, and how; never its text."""

    number: int
    reason: str


@dataclass(frozen=True)
class CanaryReport:
    """How many canaries were answered as they must be, which were not, and the seconds it took."""

    passed: int
    failed: tuple[CanaryFailure, ...]
    seconds: float

    @property
    def has_passed(self) -> bool:
        """Whether all were answered as they must be."""
        return not self.failed

    def describe(self) -> str:
        """One line for a person."""
        total = self.passed + len(self.failed)
        if self.has_passed:
            return f"{total} canaries passed"
        first = self.failed[0]
        return (
            f"{len(self.failed)} of {total} canaries failed; number {first.number} {first.reason}"
        )


def make_canaries(
    reader: Reader,
    questions: Iterable[CanaryQuestion],
    precise: Sequence[Reader] = (),
    *,
    count: int = DEFAULT_COUNT,
) -> tuple[Canary, ...]:
    """The `count` clearest of the questions that every reader answers alike, clearest first.

    `precise` are the same release on other engines and in other precisions. Clear is what every
    one of them puts far above its second answer: rounding on a third machine will not turn it. A
    question that cannot be read, or is too long for a canary, is left out. Raises `CanaryError`
    when none is left, `ValueError` for a count outside 1..MAX_CANARIES.
    """
    if not 1 <= count <= MAX_CANARIES:
        raise ValueError(f"{count} canaries are asked for; 1 to {MAX_CANARIES} fit a release")
    margins: dict[Canary, float] = {}
    for asked in questions:
        found = _agreed_answer(asked, [reader, *precise])
        if found is not None:
            canary, margin = found
            margins.setdefault(canary, margin)
    if not margins:
        raise CanaryError(
            f"none of the questions gives a canary for {reader.name}: each is too long, cannot be "
            "read, or is answered differently by its engines and precisions; give other questions"
        )
    return _within_bytes(sorted(margins, key=lambda canary: -margins[canary])[:count])


def run_canaries(reader: Reader, canaries: Sequence[Canary]) -> CanaryReport:
    """Ask a reader all of them, at full depth with its own thresholds; raises MemoryError.

    Whatever else the reader raises is that canary's failure.
    """
    begin = time.monotonic()
    failed = []
    for number, canary in enumerate(canaries):
        try:
            found = _answers(reader, canary.question, canary.passage)[0]
        except MemoryError:
            raise  # says nothing about the release
        except Exception as error:  # an engine may raise anything on weights that it cannot compute
            failed.append(CanaryFailure(number, f"raised {type(error).__name__}"))
            continue
        if (found.start, found.end) != (canary.start, canary.end):
            failed.append(
                CanaryFailure(
                    number,
                    f"is answered by characters {found.start} to {found.end}, "
                    f"not {canary.start} to {canary.end}",
                )
            )
    return CanaryReport(len(canaries) - len(failed), tuple(failed), time.monotonic() - begin)


def encode_canaries(canaries: Sequence[Canary]) -> bytes:
    """The content of `canaries.json`; equal canaries give equal bytes. Raises `CanaryError`."""
    document = {"version": _FORMAT_VERSION, "canaries": [asdict(canary) for canary in canaries]}
    content = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n"
    decode_canaries(content)  # what a device would refuse is not shipped
    return content


def decode_canaries(content: bytes) -> tuple[Canary, ...]:
    """The canaries of a file's content; at least one. Raises `CanaryError`."""
    if len(content) > MAX_CANARIES_BYTES:
        raise CanaryError(f"{len(content)} bytes of canaries, at most {MAX_CANARIES_BYTES} fit")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CanaryError("the canaries are not JSON; publish the release again") from error
    listed = document.get("canaries") if isinstance(document, dict) else None
    if not isinstance(listed, list) or document.get("version") != _FORMAT_VERSION:
        raise CanaryError(f"the canaries are not a list of format {_FORMAT_VERSION}; update ELMA")
    if not 1 <= len(listed) <= MAX_CANARIES:
        raise CanaryError(f"{len(listed)} canaries; a release has 1 to {MAX_CANARIES}")
    return tuple(_decode_canary(number, fields) for number, fields in enumerate(listed))


def load_canaries(folder: Path) -> tuple[Canary, ...]:
    """The canaries of a release's folder. Raises `CanaryError`, also when there are none."""
    path = folder / CANARIES_FILE
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_CANARIES_BYTES + 1)
    except OSError as error:
        raise CanaryError(f"{path} cannot be read ({error}); publish the release again") from error
    return decode_canaries(content)


def save_canaries(folder: Path, canaries: Sequence[Canary]) -> None:
    """Write `canaries.json` into a folder. Raises `CanaryError`, `OSError`."""
    (folder / CANARIES_FILE).write_bytes(encode_canaries(canaries))


def _agreed_answer(asked: CanaryQuestion, readers: Sequence[Reader]) -> tuple[Canary, float] | None:
    """The canary of a question and the least margin over the readers; None where they differ."""
    if len(asked.passage) > MAX_PASSAGE_CHARACTERS or len(asked.question) > MAX_QUESTION_CHARACTERS:
        return None
    margins, places = [], set()
    for reader in readers:
        try:
            found = _answers(reader, asked.question, asked.passage)
        except ReaderError:
            return None
        margins.append(found[0].score - (found[1].score if len(found) > 1 else 0.0))
        places.add((found[0].start, found[0].end))
    if len(places) != 1:
        return None
    ((start, end),) = places
    text = asked.passage[start:end] if start >= 0 else ""
    expected = asked.expected[:MAX_EXPECTED]
    return Canary(asked.question, asked.passage, start, end, text, expected), min(margins)


def _answers(reader: Reader, question: str, passage: str) -> list[Answer]:
    """The two best answers of a full walk."""
    windows = reader.split(question, passage)
    results = walk(reader, windows).results
    ordered = [results[window.index] for window in windows]
    return choose_answers(windows, ordered, passage, reader.settings, top_k=2)


def _within_bytes(canaries: Sequence[Canary]) -> tuple[Canary, ...]:
    """As many of the first ones as fit a file."""
    kept: list[Canary] = []
    room = MAX_CANARIES_BYTES - 1_024
    for canary in canaries:
        room -= len(json.dumps(asdict(canary), ensure_ascii=False, indent=3).encode())
        if room < 0:
            break
        kept.append(canary)
    return tuple(kept)


def _decode_canary(number: int, fields: Any) -> Canary:
    if not isinstance(fields, Mapping):
        raise CanaryError(f"canary {number} is no object")
    question = _text(number, fields, "question", MAX_QUESTION_CHARACTERS)
    passage = _text(number, fields, "passage", MAX_PASSAGE_CHARACTERS)
    text = _text(number, fields, "text", MAX_PASSAGE_CHARACTERS)
    start, end = fields.get("start"), fields.get("end")
    if type(start) is not int or type(end) is not int:
        raise CanaryError(f"canary {number}: start and end are not whole numbers")
    is_no_answer = start == end == -1
    if not is_no_answer and not 0 <= start < end <= len(passage):
        raise CanaryError(f"canary {number}: characters {start} to {end} are not in its passage")
    if text != ("" if is_no_answer else passage[start:end]):
        raise CanaryError(f"canary {number}: its text is not what stands at {start} to {end}")
    expected = fields.get("expected", [])
    if not isinstance(expected, list) or len(expected) > MAX_EXPECTED:
        raise CanaryError(f"canary {number}: at most {MAX_EXPECTED} right answers are listed")
    if not all(isinstance(each, str) and len(each) <= MAX_PASSAGE_CHARACTERS for each in expected):
        raise CanaryError(f"canary {number}: a right answer is no text of bounded length")
    return Canary(question, passage, start, end, text, tuple(expected))


def _text(number: int, fields: Mapping[str, Any], name: str, most_characters: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > most_characters:
        raise CanaryError(f"canary {number}: {name} is no text of up to {most_characters}")
    return value
