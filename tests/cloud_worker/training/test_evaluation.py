"""The offline evaluation gives what the device gives live, and its figures mean what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cloud_worker.training.evaluation import (
    answer_at_exit,
    answer_confidences,
    answer_questions,
    evaluation_report,
    frontier,
    policy_layers,
    predictions,
)
from cloud_worker.training.measuring_errors import EvaluationError
from cloud_worker.training.policies import shared_threshold_family
from cloud_worker.training.recording import Recording, record
from cloud_worker.training.squad_files import Question
from cloud_worker.training.squad_metrics import squad_metrics
from elma.cli import app
from reader.exits import CRITERIA, ExitSettings
from reader.model import Reader
from reader.network_files import load_network, save_network
from reader.spans import choose_answers
from reader.walk import finish, walk
from tests.cloud_worker.training.measuring import (
    made_up_recording,
    random_questions,
    write_squad_file,
)
from tests.tiny import make_tiny_model

LAYERS = 4
PNG_MAGIC = b"\x89PNG"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), layers=LAYERS)
    # One span head for all exits, so that neighbours can agree and patience has something to do.
    network = load_network(folder)
    for layer in range(1, LAYERS + 1):
        network.exit_head(layer).span.load_state_dict(network.exit_head(1).span.state_dict())
    save_network(network, folder, tokenizer_from=folder)
    return Reader.load(folder, precision="fp32")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return random_questions(24)


@pytest.fixture(scope="module")
def recording(reader: Reader, questions: list[Question]) -> Recording:
    return record(reader, questions, batch_tokens=1024)


def mixed_settings(recording: Recording, criterion: str) -> ExitSettings:
    """Settings under which windows stop at every layer and some questions have no answer."""
    margins = np.concatenate(
        [
            answer_at_exit(recording, layer, ExitSettings.uncalibrated(LAYERS)).no_answer_margin
            for layer in range(1, LAYERS + 1)
        ]
    )
    ordered = np.sort(margins)
    no_answer = float(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean())
    settings = ExitSettings(
        criterion=criterion,
        exit_thresholds=(1.0,) * LAYERS,
        no_answer_thresholds=tuple(no_answer + 0.01 * layer for layer in range(LAYERS)),
        temperatures=(0.7, 1.0, 1.5, 2.5),
        default_edge_layers=2,
        score_slopes=(0.5, 0.6, 0.7, 0.8),
        score_intercepts=(-0.1, 0.0, 0.1, 0.2),
    )
    uncertainty = recording.uncertainty_under(settings)
    going = np.ones(len(uncertainty), dtype=np.bool_)
    thresholds = []
    for layer in range(LAYERS - 1):
        # Between two recorded values, so that rounding in another batch moves no window.
        levels = np.unique(uncertainty[going, layer])
        middle = len(levels) // 3
        threshold = (levels[middle] + levels[middle + 1]) / 2 if len(levels) > 1 else -1.0
        thresholds.append(float(threshold))
        going &= uncertainty[:, layer] > threshold
    return replace(settings, exit_thresholds=(*thresholds, 1.0))


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_the_offline_policy_is_the_live_walk_question_by_question(
    reader: Reader, recording: Recording, criterion: str
) -> None:
    settings = mixed_settings(recording, criterion)
    window_layers = policy_layers(recording, settings)
    offline = answer_questions(recording, window_layers, settings)
    probabilities = answer_confidences(recording, window_layers, settings)

    for number, question in enumerate(recording.questions):
        windows = reader.split(question.question, question.context)
        begun = walk(reader, windows, last_layer=2, settings=settings)
        live = finish(reader, begun, settings=settings)
        answer = choose_answers(windows, list(live.values()), question.context, settings)[0]
        row = recording.first_window[number]

        assert [live[window.index].layer for window in windows] == window_layers[
            row : row + len(windows)
        ].tolist()
        assert answer.text == offline.texts[number]
        assert answer.score == pytest.approx(probabilities[number], abs=1e-4)

    # The comparison would be empty if all windows stopped at one layer or all were answered.
    assert len(set(window_layers.tolist())) >= 2 + (criterion != "patience")
    assert 0 < offline.answered.sum() < len(recording.questions)
    several = [
        window_layers[first : first + count]
        for first, count in zip(recording.first_window, recording.window_counts, strict=True)
        if count > 1
    ]
    assert any(len(set(layers.tolist())) > 1 for layers in several)


def test_batching_does_not_change_what_is_recorded(
    reader: Reader, questions: list[Question], recording: Recording
) -> None:
    alone = record(reader, questions, batch_tokens=1)

    assert (alone.texts == recording.texts).all()
    np.testing.assert_array_equal(alone.f1, recording.f1)
    np.testing.assert_allclose(alone.null_scores, recording.null_scores, atol=1e-4)
    for criterion in recording.uncertainty:
        np.testing.assert_allclose(
            alone.uncertainty[criterion], recording.uncertainty[criterion], atol=1e-4
        )


def test_progress_hears_of_every_window_once(reader: Reader, questions: list[Question]) -> None:
    heard: list[tuple[int, int]] = []

    made = record(reader, questions, progress=lambda done, total: heard.append((done, total)))

    assert heard[-1] == (len(made.null_scores), len(made.null_scores))
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})


def test_a_part_of_a_recording_is_what_recording_the_part_gives(
    reader: Reader, questions: list[Question], recording: Recording
) -> None:
    wanted = questions[1::3]

    part, direct = recording.select(wanted), record(reader, wanted)

    assert part.questions == direct.questions
    np.testing.assert_array_equal(part.first_window, direct.first_window)
    assert (part.texts == direct.texts).all()
    np.testing.assert_array_equal(part.exact, direct.exact)


def test_the_report_agrees_with_the_official_metric_of_the_predictions(
    recording: Recording,
) -> None:
    settings = mixed_settings(recording, "entropy")

    report = evaluation_report(recording, settings, max_edge_layers=2)
    official = squad_metrics(recording.questions, predictions(recording, settings))

    assert {name: report["policy"][name] for name in official} == pytest.approx(official)
    last = {name: report["exits"][-1][name] for name in official}
    assert last == report["full_depth"]
    assert [exit_["layer"] for exit_ in report["exits"]] == [1, 2, 3, 4]
    json.dumps(report, allow_nan=False)


def test_shares_and_means_of_exits_worked_by_hand() -> None:
    # Three questions of 1, 2 and 1 windows; a question lasts until its deepest window stops.
    uncertainty = np.array([[0.0, 0, 0], [0.0, 0, 0], [0.9, 0.1, 0], [0.9, 0.9, 0.9]])
    recording = made_up_recording(np.ones((4, 3)), uncertainty, windows=[1, 2, 1])
    settings = replace(ExitSettings.uncalibrated(3), exit_thresholds=(0.5, 0.5, 1.0))

    policy = evaluation_report(recording, settings, max_edge_layers=2)["policy"]

    assert policy["exit_histogram"] == {"1": 1, "2": 1, "3": 1}
    assert policy["mean_exit_layer"] == pytest.approx(2.0)
    assert policy["edge_share"] == pytest.approx(2 / 3)
    assert policy["mean_layers_per_window"] == pytest.approx((1 + 1 + 2 + 3) / 4)


def test_what_the_device_hands_over_is_answered_at_the_last_layer() -> None:
    # Windows stop at layers 1, 2, 3; the device keeps what stops at 1, so two go to the worker.
    f1 = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    uncertainty = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    recording = made_up_recording(f1, uncertainty)
    settings = replace(ExitSettings.uncalibrated(3), exit_thresholds=(0.5, 0.5, 1.0))
    report = evaluation_report(recording, settings, max_edge_layers=1)
    assert report["with_worker"]["f1"] == pytest.approx(100 * (0.1 + 0.6 + 0.9) / 3)
    assert report["with_worker"]["mean_layers_run"] == pytest.approx((1 + 3 + 3) / 3)
    assert report["policy"]["f1"] == pytest.approx(100 * (0.1 + 0.5 + 0.9) / 3)


def test_no_answer_is_scored_by_whether_there_is_one() -> None:
    recording = made_up_recording(
        f1=np.array([[0.8], [0.8], [0.0], [0.0]]),
        uncertainty=np.zeros((4, 1)),
        has_answer=[True, True, False, False],
        margins=np.array([[1.0], [3.0], [1.0], [3.0]]),
    )
    settings = replace(ExitSettings.uncalibrated(1), no_answer_thresholds=(2.0,))

    chosen = answer_at_exit(recording, 1, settings)
    forced = answer_at_exit(recording, 1, settings, forced=True)

    assert chosen.answered.tolist() == [True, False, True, False]
    assert chosen.f1.tolist() == [0.8, 0.0, 0.0, 1.0]
    assert [bool(text) for text in chosen.texts] == [True, False, True, False]
    assert forced.f1.tolist() == [0.8, 0.8, 0.0, 0.0]


def test_the_best_threshold_is_reported_on_the_scale_of_the_settings() -> None:
    recording = made_up_recording(
        f1=np.array([[1.0], [0.0], [1.0]]),
        uncertainty=np.zeros((3, 1)),
        has_answer=[True, False, True],
        margins=np.array([[1.0], [3.0], [2.0]]),
    )
    settings = replace(
        ExitSettings.uncalibrated(1), no_answer_thresholds=(-7.0,), temperatures=(4.0,)
    )

    exit_ = evaluation_report(recording, settings, max_edge_layers=1)["exits"][0]

    assert exit_["best_f1"] == pytest.approx(100.0)
    assert exit_["best_f1_thresh"] == pytest.approx(2.0)
    assert exit_["HasAns_f1_forced"] == pytest.approx(100.0)
    assert exit_["f1"] == pytest.approx(100 / 3)  # the settings refuse everything


def test_the_oracle_bounds_the_policy_and_chance_lies_between_the_exits() -> None:
    random = np.random.default_rng(4)
    f1 = np.sort(random.integers(0, 2, size=(300, 4)).astype(float), axis=1)
    recording = made_up_recording(f1, np.clip(random.random((300, 4)) - 0.3 * f1, 0, 1))
    settings = replace(ExitSettings.uncalibrated(4), exit_thresholds=(0.3, 0.3, 0.3, 1.0))

    drawn = frontier(recording, settings)
    oracle_layers = [point.mean_layer for point in drawn.oracle_curve]
    oracle_f1 = [point.f1 for point in drawn.oracle_curve]

    for point in [*drawn.policy_curve, *drawn.random_curve, *drawn.exits, drawn.policy]:
        # Between its corners the bound is a straight line, so interpolation is exact there.
        assert point.f1 <= np.interp(point.mean_layer, oracle_layers, oracle_f1) + 1e-6
    exit_f1 = [point.f1 for point in drawn.exits]
    assert all(min(exit_f1) <= point.f1 <= max(exit_f1) for point in drawn.random_curve)
    assert len(shared_threshold_family(recording.uncertainty["entropy"])) > 10


def test_unreadable_and_ambiguous_questions_are_named(
    reader: Reader, questions: list[Question]
) -> None:
    endless = replace(questions[0], id="endless", question="who " * 70)

    with pytest.raises(EvaluationError, match="question endless cannot be read"):
        record(reader, [endless])
    with pytest.raises(EvaluationError, match="q0 stands twice"):
        record(reader, [questions[0], questions[0]])
    with pytest.raises(EvaluationError, match="no question"):
        record(reader, [])


def test_the_verb_prints_the_promised_json_and_writes_its_files(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=3)
    data = write_squad_file(tmp_path / "dev.json", random_questions(10, passage_words=(15, 25)))
    arguments = ["evaluate", str(model), "--data", str(data), "--json", "--max-edge-layers", "2"]
    arguments += ["--plot", str(tmp_path / "f.png"), "--predictions", str(tmp_path / "p.json")]

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"model", "data", "seconds", "full_depth", "policy", "exits"} <= set(report)
    assert {"f1", "HasAns_f1", "NoAns_exact"} <= set(report["full_depth"])
    assert {"f1", "mean_exit_layer", "edge_share", "exit_histogram"} <= set(report["policy"])
    assert report["exits"][0]["layer"] == 1
    assert (tmp_path / "f.png").read_bytes().startswith(PNG_MAGIC)
    assert set(json.loads((tmp_path / "p.json").read_text())) == {f"q{n}" for n in range(10)}


def test_the_halves_of_the_verb_are_different_articles(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2)
    data = write_squad_file(tmp_path / "dev.json", random_questions(10, passage_words=(15,)))
    totals = {}
    for half in ("calibration", "report", "all"):
        arguments = ["evaluate", str(model), "--data", str(data), "--half", half, "--json"]
        result = CliRunner().invoke(app, arguments)
        totals[half] = json.loads(result.stdout)["full_depth"]["total"]

    assert totals == {"calibration": 6, "report": 4, "all": 10}


def test_an_edge_deeper_than_the_model_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", layers=2)
    data = write_squad_file(tmp_path / "dev.json", random_questions(4, passage_words=(15,)))

    result = CliRunner().invoke(
        app, ["evaluate", str(model), "--data", str(data), "--max-edge-layers", "3"]
    )

    assert result.exit_code != 0
    assert "more than the 2 layers" in str(result.exception)
