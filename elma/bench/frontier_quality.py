"""What each way to answer is worth, question by question, from one pass of a reader.

In: a reader, questions, the device's last layer, codecs. Out: `Quality`, arrays of F1 a question.
Neighbours: `frontier` puts them beside times and bytes. The live functions compute everything:
`reader.walk` as on the device, and a resume from the decoded state as on a worker.

Shape: N questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud_worker.training.squad_files import Question
from cloud_worker.training.squad_metrics import Metrics, aggregate_metrics, gold_answers
from reader.codecs import TOKENS
from reader.model import Reader
from reader.spans import WindowSpans, choose_answers
from reader.walk import Walk, walk
from reader.windows import Window

Scores = NDArray[np.float64]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Quality:
    """F1 in 0..1 of every question under every way to answer it."""

    has_answer: NDArray[np.bool_]  # [N]
    full_depth: Scores  # [N]
    at_last_edge_layer: Scores  # [N] every window stops at the device's last layer
    is_offloaded: NDArray[np.bool_]  # [N] some window did not settle on the device
    helped: Mapping[str, Scores]  # codec -> [N] the others' states resumed on a worker

    @property
    def offload_rate(self) -> float:
        """The share of questions that the policy sends."""
        return float(self.is_offloaded.mean())

    def ours(self, codec: str) -> Scores:
        """The policy with a worker behind it."""
        return self.helped[codec]

    @property
    def random(self) -> Scores:
        """The expected F1 when as many questions are sent, but chance says which."""
        rate = self.offload_rate
        return (1 - rate) * self.at_last_edge_layer + rate * self.full_depth

    @property
    def oracle_offloads(self) -> NDArray[np.bool_]:
        """Which questions somebody sends who knows that it will help."""
        return self.full_depth > self.at_last_edge_layer

    @property
    def oracle(self) -> Scores:
        """The F1 of who knows."""
        return np.maximum(self.full_depth, self.at_last_edge_layer)

    def metrics(self, f1: Scores) -> Metrics:
        """F1, HasAns and NoAns in percent."""
        return aggregate_metrics(f1, f1, self.has_answer)


def measure_quality(
    reader: Reader,
    questions: Sequence[Question],
    *,
    codecs: Sequence[str],
    edge_layers: int,
    progress: Progress = lambda _text: None,
) -> Quality:
    """Read every question to the end, and again from each codec's state where it is sent."""
    columns: dict[str, list[float]] = {"full": [], "at_layer": []}
    helped: dict[str, list[float]] = {codec: [] for codec in codecs}
    offloaded = []
    for number, question in enumerate(questions):
        gold = gold_answers(question)
        windows = reader.split(question.question, question.context)

        def score(results: Mapping[int, WindowSpans]) -> float:
            ordered = [results[window.index] for window in windows]  # noqa: B023
            found = choose_answers(windows, ordered, question.context, reader.settings)  # noqa: B023
            return gold.f1(found[0].text)  # noqa: B023

        at_layer, full = _without_exits(reader, windows, edge_layers)
        columns["full"].append(score(full))
        columns["at_layer"].append(score(at_layer))
        begun = walk(reader, windows, last_layer=edge_layers)
        offloaded.append(begun.unresolved is not None)
        for codec in codecs:
            helped[codec].append(score({**begun.resolved, **_resume(reader, begun, codec)}))
        if number % 100 == 99:
            progress(f"quality of {number + 1} of {len(questions)} questions")
    return Quality(
        has_answer=np.array([bool(question.answers) for question in questions]),
        full_depth=np.array(columns["full"]),
        at_last_edge_layer=np.array(columns["at_layer"]),
        is_offloaded=np.array(offloaded),
        helped={codec: np.array(values) for codec, values in helped.items()},
    )


def _without_exits(
    reader: Reader, windows: Sequence[Window], edge_layers: int
) -> tuple[dict[int, WindowSpans], dict[int, WindowSpans]]:
    """Every window at the device's last layer, and at full depth."""
    indexes = [window.index for window in windows]
    batch = reader.run(reader.embed(windows), 0, edge_layers)
    at_layer = reader.spans(batch, edge_layers, indexes)
    batch = reader.run(batch, edge_layers, reader.config.layers)
    full = reader.spans(batch, reader.config.layers, indexes)
    return (
        {result.window_index: result for result in at_layer},
        {result.window_index: result for result in full},
    )


def _resume(reader: Reader, begun: Walk, codec: str) -> dict[int, WindowSpans]:
    """What a worker makes of the states that the device sends; of token ids it makes the same
    states as the device has."""
    batch = begun.unresolved
    if batch is None:
        return {}
    layer = begun.last_layer
    states = reader.engine.states(batch)
    if codec != TOKENS:
        sent = [reader.codecs.encode(codec, layer, state) for state in states]
        states = [
            reader.codecs.decode(codec, layer, payload, len(state))
            for payload, state in zip(sent, states, strict=True)
        ]
    resumed = reader.engine.pack(states, list(batch.question_tokens))
    last = reader.config.layers
    results = reader.spans(reader.run(resumed, layer, last), last, begun.unresolved_indexes)
    return {result.window_index: result for result in results}
