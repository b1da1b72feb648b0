"""The walk: what stops gives exactly the exit of the layer that ran; the rest goes on exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reader.exits import CRITERIA
from reader.model import Reader
from reader.spans import WindowSpans
from reader.state_codecs import decode_state, encode_state
from reader.walk import finish, resume_walk, walk
from reader.windows import Window
from tests.tiny import make_tiny_model

LAYERS = 6
PASSAGE = " ".join(
    f"the tower number {number} was built in {1500 + number} of red stone by the king"
    for number in range(60)
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader.load(make_tiny_model(tmp_path_factory.mktemp("model"), layers=LAYERS, groups=3))


@pytest.fixture(scope="module")
def windows(reader: Reader) -> list[Window]:
    found = reader.split("when was the last tower built?", PASSAGE)
    assert len(found) >= 3
    return found


def alone(reader: Reader, window: Window, layer: int) -> WindowSpans:
    return reader.spans(reader.run(reader.embed([window]), 0, layer), layer, [window.index])[0]


def assert_same(left: WindowSpans, right: WindowSpans) -> None:
    assert (left.window_index, left.layer) == (right.window_index, right.layer)
    assert left.null_score == pytest.approx(right.null_score, abs=1e-4)
    assert [span.score for span in left.spans] == pytest.approx(
        [span.score for span in right.spans], abs=1e-4
    )
    assert (left.spans[0].start_token, left.spans[0].end_token) == (
        right.spans[0].start_token,
        right.spans[0].end_token,
    )


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_windows_that_stop_have_the_result_of_their_layer(
    reader: Reader, windows: list[Window], criterion: str
) -> None:
    never = replace(reader.settings, criterion=criterion)
    seen = []
    batch = reader.embed(windows)
    history = np.zeros((len(windows), 0, 2), dtype=np.int64)
    for layer in range(1, LAYERS):
        batch = reader.run(batch, layer - 1, layer)
        view = reader.view(batch, layer, history)
        seen.append(reader.uncertainty(view, never))
        history = np.concatenate((history, reader.best_span(view)[:, None]), axis=1)
    middle = float(np.sort(np.stack(seen), axis=None)[np.stack(seen).size // 2])
    settings = replace(never, exit_thresholds=(middle,) * LAYERS)
    done = walk(reader, windows, settings=settings)
    expected_layer = {
        window.index: next(
            (layer for layer in range(1, LAYERS) if float(seen[layer - 1][row]) <= middle), LAYERS
        )
        for row, window in enumerate(windows)
    }
    assert {index: found.layer for index, found in done.resolved.items()} == expected_layer
    for window in windows:
        found = done.resolved[window.index]
        assert_same(found, alone(reader, window, found.layer))


def test_nothing_stops_without_certainty_and_the_last_layer_always_does(
    reader: Reader, windows: list[Window]
) -> None:
    part = walk(reader, windows, last_layer=4)
    assert not part.resolved
    assert part.unresolved_indexes == tuple(window.index for window in windows)
    assert {result.layer for result in part.provisional.values()} == {4}
    done = finish(reader, part)
    assert {result.layer for result in done.values()} == {LAYERS}
    for window in windows:
        assert_same(done[window.index], alone(reader, window, LAYERS))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_walk_rebuilt_from_encoded_states_ends_like_the_unbroken_one(
    reader: Reader, windows: list[Window], layer: int
) -> None:
    whole = walk(reader, windows).resolved
    batch = reader.run(reader.embed(windows), 0, layer)
    states = [
        decode_state("fp32", encode_state("fp32", state), len(window), 32)
        for state, window in zip(reader.engine.states(batch), windows, strict=True)
    ]
    again = resume_walk(
        reader,
        resolved={},
        states=states,
        question_tokens=[window.question_tokens for window in windows],
        window_indexes=[window.index for window in windows],
        layer=layer,
    )
    for index, result in finish(reader, again).items():
        assert_same(result, whole[index])


@pytest.mark.parametrize("layer", [0, LAYERS + 1])
def test_a_layer_that_is_not_there_is_refused(
    reader: Reader, windows: list[Window], layer: int
) -> None:
    with pytest.raises(ValueError, match="last_layer"):
        walk(reader, windows, last_layer=layer)
