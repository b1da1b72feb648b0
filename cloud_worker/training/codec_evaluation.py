"""What each state codec costs and loses: offloaded questions, answered through its bytes.

In: a reader, its recording of some questions, codecs. Out: a `CodecRow` a codec. Neighbours:
`recording` holds what every exit said; `evaluation` turns windows into answers; `elma evaluate
--codec` prints, and `reader.codecs.save_losses` keeps the losses for the device's choice.

The device's part of every offloaded window runs once. For each codec its state is encoded, decoded
and taken to the last layer, exactly as a worker does; windows that the device settles keep their
exit. The recording's last column is then what the worker says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cloud_worker.training.evaluation import answer_questions, policy_layers
from cloud_worker.training.measuring_errors import EvaluationError
from cloud_worker.training.policies import IntArray
from cloud_worker.training.recording import (
    Progress,
    Recording,
    in_batches,
    record_spans,
)
from cloud_worker.training.squad_metrics import BoolArray, gold_answers
from reader.codecs import TOKENS, tokens_bytes
from reader.exits import ExitSettings
from reader.model import Reader
from reader.states import StateBatch
from reader.windows import Window

EXACT_CODEC = "fp32"


@dataclass(frozen=True)
class CodecRow:
    """One codec over the offloaded questions; F1 in percent, losses in points against fp32.

    `changed` counts the answers that are other ones than with fp32.
    """

    codec: str
    f1: float
    exact: float
    f1_loss: float
    changed: int
    bytes_a_question: float
    bytes_a_token: float

    def as_json(self) -> dict[str, Any]:
        """The row as `elma evaluate --json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class CodecTable:
    """All rows, and how many questions, windows and tokens they are about."""

    rows: tuple[CodecRow, ...]
    questions: int
    windows: int
    tokens: int

    @property
    def losses(self) -> dict[str, float]:
        """Codec to points of F1, as `save_losses` keeps them."""
        return {row.codec: round(row.f1_loss, 4) for row in self.rows if row.codec != TOKENS}


def evaluate_codecs(
    reader: Reader,
    recording: Recording,
    codecs: Sequence[str],
    *,
    edge_layers: int,
    everything: bool = False,
    settings: ExitSettings | None = None,
    progress: Progress | None = None,
) -> CodecTable:
    """Answer the questions that are handed over after `edge_layers` through each codec.

    With `everything`, all of them are handed over: the codecs are the same, the questions more,
    chance less. `progress(done, total)` counts windows times codecs. Raises `EvaluationError` when
    no question is offloaded, `UnknownCodec`.
    """
    chosen = settings or reader.settings
    layers = policy_layers(recording, chosen)
    offloaded = np.full(len(layers), fill_value=True) if everything else layers > edge_layers  # [W]
    if not offloaded.any():
        raise EvaluationError(
            f"no question is offloaded after layer {edge_layers}; give a smaller "
            "--max-edge-layers, or --offload-all"
        )
    windows = [
        window
        for question in recording.questions
        for window in reader.split(question.question, question.context)
    ]
    names = list(dict.fromkeys((EXACT_CODEC, *codecs)))
    resumed, sizes = _resume_all(
        reader, recording, windows, np.flatnonzero(offloaded), names, edge_layers, progress
    )
    together = np.where(offloaded, recording.layers, layers)  # [W] the layer of each result
    asked = np.logical_or.reduceat(offloaded, recording.first_window)  # [N]
    tokens = sum(len(windows[row]) for row in np.flatnonzero(offloaded))
    rows = _rows(resumed, sizes, together, asked, chosen, tokens)
    if TOKENS in codecs:
        size = tokens_bytes(tokens, reader.config.vocab_size)
        rows.append(_row_of(TOKENS, rows[0], size, int(asked.sum()), tokens))
    wanted = tuple(row for row in rows if row.codec in codecs)
    return CodecTable(wanted, int(asked.sum()), int(offloaded.sum()), tokens)


def _resume_all(
    reader: Reader,
    recording: Recording,
    windows: Sequence[Window],
    rows: IntArray,
    names: Sequence[str],
    edge_layers: int,
    progress: Progress | None,
) -> tuple[dict[str, Recording], dict[str, int]]:
    """A recording for each codec, and its bytes in all."""
    names = [name for name in names if name != TOKENS]
    resumed = {name: _copy(recording) for name in names}
    sizes = dict.fromkeys(names, 0)
    owners = np.repeat(np.arange(len(recording.questions)), recording.window_counts)  # [W]
    golds = {int(owner): gold_answers(recording.questions[owner]) for owner in owners[rows]}
    done = 0
    for batch_rows in in_batches([len(windows[row]) for row in rows]):
        chosen = [int(rows[place]) for place in batch_rows]
        batch = reader.run(reader.embed([windows[row] for row in chosen]), 0, edge_layers)
        for name in names:
            received, size = _send(reader, batch, name, edge_layers)
            sizes[name] += size
            last = reader.config.layers
            results = reader.spans(reader.run(received, edge_layers, last), last, chosen)
            for row, result in zip(chosen, results, strict=True):
                owner = int(owners[row])
                record_spans(resumed[name], windows[row], result, owner, golds[owner])
            done += len(chosen)
            if progress is not None:
                progress(done, len(rows) * len(names))
    return resumed, sizes


def _send(reader: Reader, batch: StateBatch, codec: str, layer: int) -> tuple[StateBatch, int]:
    """The batch as a worker gets it, and the bytes on the way."""
    states = reader.engine.states(batch)
    payloads = [reader.codecs.encode(codec, layer, state) for state in states]
    received = [
        reader.codecs.decode(codec, layer, payload, len(state))
        for payload, state in zip(payloads, states, strict=True)
    ]
    size = sum(len(payload) for payload in payloads)
    return reader.engine.pack(received, batch.question_tokens), size


def _rows(
    resumed: dict[str, Recording],
    sizes: dict[str, int],
    together: IntArray,
    asked: BoolArray,
    settings: ExitSettings,
    tokens: int,
) -> list[CodecRow]:
    outcomes = {
        name: answer_questions(recording, together, settings) for name, recording in resumed.items()
    }
    exact = outcomes[EXACT_CODEC]
    count = int(asked.sum())
    rows = []
    for name, found in outcomes.items():
        f1 = 100.0 * float(found.f1[asked].mean())
        rows.append(
            CodecRow(
                codec=name,
                f1=f1,
                exact=100.0 * float(found.exact[asked].mean()),
                f1_loss=100.0 * float(exact.f1[asked].mean()) - f1,
                changed=int((found.texts != exact.texts)[asked].sum()),
                bytes_a_question=sizes[name] / count,
                bytes_a_token=sizes[name] / tokens,
            )
        )
    return rows


def _row_of(codec: str, like: CodecRow, size: int, questions: int, tokens: int) -> CodecRow:
    """Token ids: the worker computes the very states of the device."""
    return replace(
        like,
        codec=codec,
        f1_loss=0.0,
        changed=0,
        bytes_a_question=size / questions,
        bytes_a_token=size / tokens,
    )


def _copy(recording: Recording) -> Recording:
    """A recording whose arrays of spans may be written."""
    return replace(
        recording,
        null_scores=recording.null_scores.copy(),
        span_scores=recording.span_scores.copy(),
        span_places=recording.span_places.copy(),
        texts=recording.texts.copy(),
        exact=recording.exact.copy(),
        f1=recording.f1.copy(),
    )
