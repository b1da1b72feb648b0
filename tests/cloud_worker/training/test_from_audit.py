"""Thresholds from audits: the promise holds on other questions, weights count, few are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cloud_worker.training.audit_arrays import AuditArrays
from cloud_worker.training.bounds import (
    betting_upper_bound,
    weighted_bound_holds,
    weighted_upper_bound,
)
from cloud_worker.training.from_audit import Wanted, propose, read_audit_files
from cloud_worker.training.measuring_errors import CalibrationError
from cloud_worker.training.policies import isotonic_fit
from elma.cli import app
from reader.exit_traces import (
    NO_ANSWER,
    AuditRecord,
    ExitNote,
    Finding,
    WindowRecord,
    answer_place,
    encode_record,
    finding,
    trace_in_steps,
)
from reader.exits import ExitSettings
from reader.model import Reader
from reader.walk import walk
from reader.weights import folder_digest
from reader.windows import Window
from tests.cloud_worker.training.measuring import random_questions
from tests.tiny import make_tiny_model

LAYERS, EXITS = 4, 2
RELEASE = "a" * 64
BOLD = replace(
    ExitSettings.uncalibrated(LAYERS),
    exit_thresholds=(1.0, 1.0, -1.0, -1.0),
    default_edge_layers=EXITS,
)
WANTED = Wanted(max_disagreement=5.0, confidence=0.9)


def graded_records(
    count: int, *, seed: int, rate: float = 1.0, drift: float = 1.0, device: float = 1.0
) -> list[AuditRecord]:
    """Each exit finds another answer than full depth with a probability of its uncertainty times
    `drift`; the device stops where the uncertainty is at most `device`, and `rate` of what it
    answers is sampled."""
    random = np.random.default_rng(seed)
    records = []
    for number in range(count):
        unsure = random.random(EXITS) * np.array([1.0, 0.6])
        wrong = random.random(EXITS) < unsure * drift
        exits = tuple(
            ExitNote(float(u), -5.0, 5.0, 50 if is_wrong else 10, 60 if is_wrong else 20)
            for u, is_wrong in zip(unsure, wrong, strict=True)
        )
        stops = np.flatnonzero(unsure <= device)
        is_sampled = random.random() < rate
        if len(stops) and not is_sampled:
            continue
        kind, weight = ("audit", 1.0 / rate) if len(stops) else ("offload", 1.0)
        window = WindowRecord(
            exits, int(stops[0]) + 1 if len(stops) else EXITS, Finding(LAYERS, -5.0, 5.0, 10, 20)
        )
        records.append(
            AuditRecord(float(number), RELEASE, kind, weight, (window,), (10, 20), True)  # type: ignore[arg-type]
        )
    return records


def disagreement(records: list[AuditRecord], settings: ExitSettings) -> float:
    """Percent, unweighted, of what these settings answer otherwise than full depth."""
    audit = AuditArrays.of(records, settings, EXITS)
    thresholds = np.array([*settings.exit_thresholds[:EXITS], np.inf])
    return 100.0 * float(audit.losses(thresholds).mean())


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_the_promise_holds_on_questions_that_nobody_recorded(rate: float) -> None:
    others = graded_records(20_000, seed=1_000)
    kept, shares = 0, []
    for seed in range(6):
        records = graded_records(2_000, seed=seed, rate=rate, device=0.9)
        proposal = propose(records, RELEASE, BOLD, WANTED)
        kept += disagreement(others, proposal.settings) <= WANTED.max_disagreement
        assert proposal.after.disagreement_bound <= WANTED.max_disagreement
        shares.append(proposal.after.share_on_device)
    assert kept >= 5, "of six promises at confidence 0.9"
    assert np.mean(shares) > 10.0, "it is not kept by stopping nothing"


def test_drift_makes_the_proposal_more_careful() -> None:
    calm = propose(graded_records(3_000, seed=1, drift=0.3), RELEASE, BOLD, WANTED)
    drifted = propose(graded_records(3_000, seed=1, drift=1.0), RELEASE, BOLD, WANTED)
    assert calm.before.disagreement < drifted.before.disagreement
    assert drifted.after.share_on_device < calm.after.share_on_device
    pairs = zip(drifted.settings.exit_thresholds, calm.settings.exit_thresholds, strict=True)
    assert all(careful <= bold for careful, bold in pairs)


def test_only_the_devices_exit_thresholds_change() -> None:
    proposal = propose(graded_records(3_000, seed=1), RELEASE, BOLD, WANTED)
    changed = proposal.settings
    assert changed.exit_thresholds[:EXITS] != BOLD.exit_thresholds[:EXITS]
    assert changed.exit_thresholds[EXITS:] == BOLD.exit_thresholds[EXITS:]
    assert replace(changed, exit_thresholds=BOLD.exit_thresholds) == BOLD


def test_a_sampled_answer_counts_for_those_that_were_not() -> None:
    everything = graded_records(8_000, seed=5, device=0.5)
    sampled = graded_records(8_000, seed=5, device=0.5, rate=0.1)
    whole = propose(everything, RELEASE, BOLD, WANTED)
    part = propose(sampled, RELEASE, BOLD, WANTED)
    assert part.records < 0.5 * whole.records
    assert part.questions == pytest.approx(whole.questions, rel=0.05)
    assert part.before.disagreement == pytest.approx(whole.before.disagreement, rel=0.06)
    unweighted = [replace(record, weight=1.0) for record in sampled]
    wrong = propose(unweighted, RELEASE, BOLD, WANTED).before.disagreement
    assert abs(wrong - whole.before.disagreement) > 0.12 * whole.before.disagreement


def test_too_few_records_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(CalibrationError, match=r"60 records are too few.*collect about \d+"):
        propose(graded_records(60, seed=1), RELEASE, BOLD, WANTED)
    rare = graded_records(400, seed=1, rate=0.02, device=0.8)
    with pytest.raises(CalibrationError, match="too few"):
        propose(rare, RELEASE, BOLD, WANTED)


def test_without_any_sampled_confident_answer_nothing_can_be_said() -> None:
    records = graded_records(5_000, seed=1, device=0.4)
    offloaded = [record for record in records if record.kind == "offload"]
    with pytest.raises(CalibrationError, match="no confident answer was sampled"):
        propose(offloaded, RELEASE, BOLD, WANTED)
    never = replace(BOLD, exit_thresholds=(-1.0,) * LAYERS)  # then all are offloaded anyway
    assert propose(offloaded, RELEASE, never, WANTED).sampled == 0


def test_records_of_another_release_or_of_fewer_exits_are_left_out() -> None:
    records = graded_records(2_000, seed=1)
    other = [replace(record, release="b" * 64) for record in records[:10]]
    shallow = [
        replace(record, windows=(replace(record.windows[0], exits=record.windows[0].exits[:1]),))
        for record in records[:7]
    ]
    proposal = propose([*records, *other, *shallow], RELEASE, BOLD, WANTED)
    assert (proposal.records, proposal.left_out) == (2_000, 17)
    with pytest.raises(CalibrationError, match=r"no record is of release bbb.*there are: aaa"):
        propose(records, "b" * 64, BOLD, WANTED)
    with pytest.raises(CalibrationError, match="at most 2"):
        propose(records, RELEASE, BOLD, replace(WANTED, edge_layers=3))


def test_an_exit_that_has_not_read_yet_may_not_stop() -> None:
    """Its "no answer" is right for nine questions in ten; the tenth answer it never finds."""
    blind = ExitNote(0.0, 9.0, 1.0, 90, 99)
    sees = ExitNote(0.1, -5.0, 5.0, 10, 20)
    nothing = replace(sees, null_score=9.0, span_score=1.0)
    without = WindowRecord((blind, nothing), 1, Finding(LAYERS, 9.0, 1.0, 10, 20))
    answered = WindowRecord((blind, sees), 1, Finding(LAYERS, -5.0, 5.0, 10, 20))
    records = [
        AuditRecord(0.0, RELEASE, "audit", 1.0, (window,), NO_ANSWER, True)
        for window in [without] * 2_700 + [answered] * 300
    ]
    proposal = propose(records, RELEASE, BOLD, Wanted(40.0, 0.9))
    assert proposal.settings.exit_thresholds[0] == -1.0
    assert proposal.settings.exit_thresholds[1] > 0.1
    assert proposal.before.has_answer_disagreement == 100.0


def test_arrays_answer_as_the_reader_does(tmp_path: Path) -> None:
    settings = ExitSettings(
        "entropy", (-1.0, -1.0, -1.0, 1.0), (0.5, -0.5, 0.2, 0.1), (2.0, 1.5, 1.0, 1.2), EXITS
    )
    folder = make_tiny_model(tmp_path / "m", layers=LAYERS, settings=settings)
    reader = Reader.load(folder, threads=1)
    split = [reader.split(q.question, q.context) for q in random_questions(12)]
    finals = [walk(reader, windows).resolved for windows in split]
    records = [
        AuditRecord(
            0.0,
            reader.digest,
            "audit",
            1.0,
            tuple(
                WindowRecord(exits_of(reader, w), EXITS, finding(w, found[w.index]))
                for w in windows
            ),
            NO_ANSWER,
            True,
        )
        for windows, found in zip(split, finals, strict=True)
    ]
    audit = AuditArrays.of(records, settings, EXITS)
    assert [tuple(place) for place in audit.answers.tolist()] == [
        answer_place(windows, found.values(), settings)
        for windows, found in zip(split, finals, strict=True)
    ]
    threshold = float(np.median(audit.uncertainty[:, 1]))
    stops = replace(settings, exit_thresholds=(-1.0, threshold, -1.0, 1.0))
    columns = np.where(audit.uncertainty[:, 1] <= threshold, 1, EXITS)
    assert 0 < (columns == 1).sum() < len(columns)
    assert [tuple(place) for place in audit.answers_at(columns).tolist()] == [
        answer_place(windows, walk(reader, windows, settings=stops).resolved.values(), settings)
        for windows in split
    ]


def exits_of(reader: Reader, window: Window) -> tuple[ExitNote, ...]:
    steps = trace_in_steps(reader, [window], EXITS, keep_states=False)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            exits: tuple[ExitNote, ...] = end.value.exits[window.index]
            return exits


def test_equal_weights_change_no_bound() -> None:
    losses = (np.random.default_rng(0).random(2_000) < 0.03).astype(float)
    plain = betting_upper_bound(losses, confidence=0.9, low=0.0)
    weighted = weighted_upper_bound(losses, np.full(2_000, 7.0), confidence=0.9)
    assert 0.03 < weighted < 0.05
    assert weighted == pytest.approx(plain, abs=0.004)


def test_a_weighted_bound_is_seldom_below_the_truth() -> None:
    random = np.random.default_rng(0)
    below = 0
    for _ in range(200):
        is_rare = random.random(6_000) < 0.8  # of the population; one in ten of them is drawn
        drawn = ~is_rare | (random.random(6_000) < 0.1)
        losses = (random.random(6_000) < np.where(is_rare, 0.05, 0.2)).astype(float)
        weights = np.where(is_rare, 10.0, 1.0)
        below += weighted_bound_holds(losses[drawn], weights[drawn], 0.079, confidence=0.9)
    assert below <= 30, "the mean is 0.08; more than 0.1 of 200 plus two standard deviations"


def test_a_weighted_fit_is_that_of_repeated_points() -> None:
    random = np.random.default_rng(3)
    x, y = random.integers(0, 20, 60).astype(float), random.random(60)
    counts = random.integers(1, 5, 60)
    values, fitted = isotonic_fit(x, y, counts.astype(float))
    expected = isotonic_fit(np.repeat(x, counts), np.repeat(y, counts))
    assert values.tolist() == expected[0].tolist()
    assert fitted == pytest.approx(expected[1])


def audit_file(path: Path, records: list[AuditRecord]) -> Path:
    path.write_text("".join(encode_record(record) + "\n" for record in records))
    return path


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = audit_file(tmp_path / "a.jsonl", graded_records(3, seed=0))
    assert len(read_audit_files([path, path])) == 6
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(CalibrationError, match=r"a\.jsonl, line 4"):
        read_audit_files([path])
    with pytest.raises(CalibrationError, match="missing"):
        read_audit_files([tmp_path / "missing.jsonl"])


def test_the_command_writes_a_model_in_which_only_the_thresholds_differ(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny", layers=LAYERS, settings=BOLD)
    release = folder_digest(folder)
    records = [replace(record, release=release) for record in graded_records(3_000, seed=4)]
    file = audit_file(tmp_path / "audit.jsonl", records)
    out = tmp_path / "new"
    arguments = ["calibrate", str(folder), "--from-audit", str(file), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["after"]["disagreement_bound"] <= 5.0 < report["before"]["disagreement"]
    assert report["new_release"] == folder_digest(out) != release
    assert report["settings_bytes"] < 2_000
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    new = {path.name: path.read_bytes() for path in out.iterdir()}
    assert [name for name in old if old[name] != new[name]] == ["exits.json"]
    assert Reader.load(out, threads=1).settings.exit_thresholds[2:] == (-1.0, -1.0)

    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0
    assert "is there already" in str(again.exception)
    table = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "third")])
    assert "proposed" in table.stdout


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--from-audit", "a", "--data", "b"],
        ["--from-audit", "a"],
        ["--from-audit", "a", "--out", "o", "--criterion", "entropy"],
        ["--from-audit", "a", "--out", "o", "--max-f1-drop", "0"],
        ["--data", "b", "--max-disagreement", "3"],
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["calibrate", "elma-small", *options])
    assert getattr(done.exception, "exit_status", None) == 2
