"""Training windows carry the right labels; epochs are reproducible and bounded in size."""

from __future__ import annotations

from collections import Counter

import pytest

from cloud_worker.training.batches import collate, plan_epoch
from cloud_worker.training.features import TrainingWindow, make_training_windows
from cloud_worker.training.squad_files import AnswerText, Question
from reader.windows import WindowSplitter
from tests.tiny import make_tiny_tokenizer


@pytest.fixture(scope="module")
def splitter(tmp_path_factory: pytest.TempPathFactory) -> WindowSplitter:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tiny_tokenizer(path)
    return WindowSplitter(path)


def question(context: str, answer: str | None, place: int | None = None) -> Question:
    start = context.index(answer) if answer and place is None else place or 0
    answers = (AnswerText(answer, start),) if answer else ()
    return Question("q", "who was king?", context, "t", answers, not answers, "s")


def label(splitter: WindowSplitter, asked: Question, max_tokens: int = 384) -> TrainingWindow:
    (window,) = make_training_windows([(asked, 1.0)], splitter, max_tokens=max_tokens)
    return window


def test_the_label_covers_the_answer(splitter: WindowSplitter) -> None:
    asked = question("the river was green and the ship was red", "green and")
    window = label(splitter, asked)
    (whole,) = splitter.split(asked.question, asked.context)
    first, last = whole.offsets[window.start][0], whole.offsets[window.end][1]
    assert asked.context[first:last] == "green and"


def test_no_answer_is_token_zero(splitter: WindowSplitter) -> None:
    window = label(splitter, question("the river was green", None))
    assert (window.start, window.end) == (0, 0)


@pytest.mark.parametrize("where", [0, 150, 299])
def test_a_cut_window_keeps_its_answer(splitter: WindowSplitter, where: int) -> None:
    words = ["the"] * 300
    words[where] = "lighthouse"
    context = " ".join(words)
    window = label(splitter, question(context, "lighthouse"), max_tokens=64)
    assert len(window) <= 64
    wanted = splitter.split("who?", "lighthouse")[0].token_ids[-2]
    assert window.token_ids[window.start] == wanted
    assert window.start == window.end


def test_a_long_passage_gives_the_window_with_the_answer(splitter: WindowSplitter) -> None:
    context = "the " * 900 + "lighthouse " + "the " * 100
    window = label(splitter, question(context, "lighthouse"))
    wanted = splitter.split("who?", "lighthouse")[0].token_ids[-2]
    assert window.token_ids[window.start] == wanted


def test_a_question_that_cannot_be_read_is_left_out(splitter: WindowSplitter) -> None:
    empty = Question("q", "  ", "text", "t", (), True, "s")
    assert not list(make_training_windows([(empty, 1.0)], splitter, max_tokens=64))


def windows(count: int, weight: float = 1.0) -> list[TrainingWindow]:
    return [TrainingWindow((2,) * (10 + number % 50), 4, 0, 0, weight) for number in range(count)]


def test_an_epoch_shows_each_window_once_in_bounded_batches() -> None:
    made = windows(500)
    plan = plan_epoch(made, epoch=0, seed=1, batch_windows=16, batch_tokens=400)
    shown = [index for batch in plan.batches for index in batch]
    assert sorted(shown) == list(range(500))
    for batch in plan.batches:
        longest = max(len(made[index]) for index in batch)
        assert len(batch) <= 16
        assert longest * len(batch) <= 400


def test_weights_repeat_and_thin() -> None:
    shown = Counter(
        index
        for batch in plan_epoch(
            windows(400, 2.25), epoch=0, seed=1, batch_windows=16, batch_tokens=4096
        ).batches
        for index in batch
    )
    assert set(shown.values()) == {2, 3}
    assert 850 < sum(shown.values()) < 950


def test_the_same_seed_gives_the_same_epoch_and_another_epoch_another_order() -> None:
    made = windows(300)

    def plan(epoch: int, seed: int) -> object:
        return plan_epoch(made, epoch=epoch, seed=seed, batch_windows=8, batch_tokens=4096)

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(1, 1)
    assert plan(0, 1) != plan(0, 2)


def test_a_batch_marks_padding_question_and_passage() -> None:
    batch = collate(
        [TrainingWindow((2, 5, 3, 7, 8, 3), 3, 3, 4), TrainingWindow((2, 5, 3, 7, 3), 3, 0, 0)],
        pad_token_id=0,
    )
    assert batch.token_ids.tolist() == [[2, 5, 3, 7, 8, 3], [2, 5, 3, 7, 3, 0]]
    assert batch.token_types.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch.valid.tolist() == [[True] * 6, [True] * 5 + [False]]
    allowed = [[place for place, ok in enumerate(row) if ok] for row in batch.answerable_positions]
    assert allowed == [[0, 3, 4], [0, 3]]
