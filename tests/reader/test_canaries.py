"""Canaries: what a release answered at the publisher, it must answer everywhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reader.canaries import (
    CANARIES_FILE,
    DEFAULT_COUNT,
    MAX_CANARIES,
    MAX_CANARIES_BYTES,
    MAX_PASSAGE_CHARACTERS,
    Canary,
    CanaryQuestion,
    decode_canaries,
    encode_canaries,
    load_canaries,
    make_canaries,
    run_canaries,
    save_canaries,
)
from reader.errors import CanaryError
from reader.exits import ExitSettings
from reader.model import Reader
from tests.tiny import make_tiny_model

LAYERS = 4
QUESTIONS = [
    CanaryQuestion(
        f"when was the tower number {number} built",
        f"the tower number {number} was built in {1500 + number} by the king of the city. "
        f"the keeper of light {number * 7} was old and the river was long.",
        (f"{1500 + number}",),
    )
    for number in range(24)
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader.load(make_tiny_model(tmp_path_factory.mktemp("model") / "one", layers=LAYERS))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader.load(
        make_tiny_model(tmp_path_factory.mktemp("model") / "two", layers=LAYERS, seed=1)
    )


@pytest.fixture(scope="module")
def canaries(reader: Reader) -> tuple[Canary, ...]:
    return make_canaries(reader, QUESTIONS)


def test_a_release_passes_its_own_canaries_after_a_trip_through_their_file(
    reader: Reader, canaries: tuple[Canary, ...], tmp_path: Path
) -> None:
    save_canaries(tmp_path, canaries)
    loaded = load_canaries(tmp_path)
    assert loaded == canaries
    assert len(loaded) == DEFAULT_COUNT
    report = run_canaries(reader, loaded)
    assert report.has_passed
    assert report.passed == DEFAULT_COUNT


def test_other_weights_fail_them_and_the_report_names_no_text(
    other: Reader, canaries: tuple[Canary, ...]
) -> None:
    report = run_canaries(other, canaries)
    assert not report.has_passed
    assert report.passed + len(report.failed) == len(canaries)
    assert f"of {len(canaries)} canaries failed" in report.describe()
    assert "tower" not in report.describe()


def test_exits_that_stop_where_they_must_not_fail_them(
    reader: Reader, canaries: tuple[Canary, ...]
) -> None:
    hasty = replace(ExitSettings.uncalibrated(LAYERS), exit_thresholds=(1e9,) * LAYERS)
    changed = Reader(
        reader.engine, reader.splitter, hasty, name="hasty", digest="0" * 64, codecs=reader.codecs
    )
    assert not run_canaries(changed, canaries).has_passed


def test_only_what_every_engine_answers_alike_becomes_a_canary(
    reader: Reader, other: Reader
) -> None:
    alike = []
    for question in QUESTIONS:
        (one,), (two,) = make_canaries(reader, [question]), make_canaries(other, [question])
        if (one.start, one.end) == (two.start, two.end):
            alike.append(question)
    differ = [question for question in QUESTIONS if question not in alike]
    assert differ
    with pytest.raises(CanaryError, match="none of the questions"):
        make_canaries(reader, differ, [other])
    if alike:
        made = make_canaries(reader, QUESTIONS, [other], count=len(QUESTIONS))
        assert {canary.question for canary in made} == {each.question for each in alike}


def test_the_clearest_come_first_and_what_cannot_be_read_is_left_out(reader: Reader) -> None:
    unreadable = [
        CanaryQuestion("", "a passage"),
        CanaryQuestion("who", "x" * (MAX_PASSAGE_CHARACTERS + 1)),
        CanaryQuestion("of " * 200, "a passage"),
    ]
    three = make_canaries(reader, [*unreadable, *QUESTIONS], count=3)
    assert three == make_canaries(reader, QUESTIONS, count=len(QUESTIONS))[:3]
    with pytest.raises(ValueError, match="1 to 64"):
        make_canaries(reader, QUESTIONS, count=MAX_CANARIES + 1)


def test_an_engine_that_raises_is_a_failed_canary_not_a_crash(
    reader: Reader, canaries: tuple[Canary, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reader.engine, "run", broken)
    report = run_canaries(reader, canaries)
    assert report.passed == 0
    assert report.failed[0].reason == "raised ZeroDivisionError"


def test_no_answer_can_be_what_is_expected() -> None:
    canary = Canary("who", "nobody", -1, -1, "")
    assert decode_canaries(encode_canaries([canary])) == (canary,)


@pytest.mark.parametrize(
    "change",
    [
        {"start": 5, "end": 3},
        {"start": 0, "end": 10_000},
        {"start": True},
        {"start": "0"},
        {"start": -1, "end": -1},
        {"text": "another"},
        {"question": None},
        {"passage": "x" * (MAX_PASSAGE_CHARACTERS + 1)},
        {"expected": "text"},
        {"expected": [1]},
        {"expected": ["x"] * 9},
    ],
)
def test_a_malformed_canary_is_refused(
    change: dict[str, Any], canaries: tuple[Canary, ...]
) -> None:
    document = json.loads(encode_canaries(canaries))
    document["canaries"][0] |= change
    with pytest.raises(CanaryError, match="canary 0"):
        decode_canaries(json.dumps(document).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "canaries": []}',
        b'{"version": 2, "canaries": [{}]}',
        b'{"version": 1, "canaries": [1]}',
        b"[" * 100_000,
        b" " * (MAX_CANARIES_BYTES + 1),
        json.dumps({"version": 1, "canaries": [{}] * (MAX_CANARIES + 1)}).encode(),
    ],
)
def test_a_malformed_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CANARIES_FILE).write_bytes(content)
    with pytest.raises(CanaryError):
        load_canaries(tmp_path)


def test_a_folder_without_canaries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CanaryError, match=r"canaries\.json cannot be read"):
        load_canaries(tmp_path)


def test_canaries_never_outgrow_their_file(reader: Reader) -> None:
    filler = "the long river of the city. " * 120
    long = [CanaryQuestion(f"who {n}", f"{n} {filler}") for n in range(MAX_CANARIES)]
    made = make_canaries(reader, long, count=MAX_CANARIES)
    assert 1 <= len(made) < MAX_CANARIES
    assert len(encode_canaries(made)) <= MAX_CANARIES_BYTES
