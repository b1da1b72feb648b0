"""Those who answer in `elma bench edge`: the peers, as their users run them, and our reader.

In: an `Entry`, which says who answers and how. Out: an object that answers one question.
Neighbours: `contest` runs each in a process of its own, `exporting` makes what the peers load.

The peers do what the example scripts of `transformers` do for SQuAD 2.0: windows of 384 tokens with
a stride of 128, the 20 best starts and ends, no answer longer than 30 tokens, and "no answer" when
the lowest null score over the windows beats the best span by more than a threshold. They are given
our calibrated threshold of the last exit, so that F1 compares reading and not thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_LENGTH_TOKENS = 384
STRIDE_TOKENS = 128
BEST_COUNT = 20
MAX_ANSWER_TOKENS = 30

KINDS = ("transformers", "onnxruntime", "elma")


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    `folder` holds what is loaded: a Hugging Face folder, a folder with `model.onnx`, or a model
    folder of ours. `is_padded` concerns transformers alone; `engine`, `precision` and `exits`
    ours alone.
    """

    name: str
    kind: str  # one of KINDS
    folder: str
    is_padded: bool = False
    engine: str = "auto"
    precision: str = "auto"
    exits: bool = True

    def as_json(self) -> dict[str, Any]:
        """What a child process is told."""
        return asdict(self)


class Contestant(Protocol):
    """Answers questions, one at a time."""

    def answer(self, question: str, passage: str) -> str:
        """The text of the answer, "" for none."""
        ...

    def describe(self) -> dict[str, Any]:
        """Engine, precision and threads, as they were really chosen."""
        ...


def load_contestant(entry: Entry, threads: int, no_answer_threshold: float) -> Contestant:
    """Load what an entry names; heavy libraries are imported here and nowhere else."""
    if entry.kind == "transformers":
        return TransformersReader(entry, threads, no_answer_threshold)
    if entry.kind == "onnxruntime":
        return OnnxRuntimeReader(entry, threads, no_answer_threshold)
    return ElmaReader(entry, threads)


class TransformersReader:
    """`AlbertForQuestionAnswering` in float32, padded to 384 tokens or not at all."""

    def __init__(self, entry: Entry, threads: int, no_answer_threshold: float) -> None:
        import torch
        from transformers import AlbertForQuestionAnswering, PreTrainedTokenizerFast
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(threads)
        self._torch, self._threads, self._padded = torch, threads, entry.is_padded
        self._threshold = no_answer_threshold
        self._model = AlbertForQuestionAnswering.from_pretrained(entry.folder)
        self._model.train(False)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(entry.folder)

    def answer(self, question: str, passage: str) -> str:
        """One forward pass over all windows."""
        features = self._tokenizer(
            question.strip(),
            passage,
            truncation="only_second",
            max_length=min(MAX_LENGTH_TOKENS, self._model.config.max_position_embeddings),
            stride=STRIDE_TOKENS,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            padding="max_length" if self._padded else "longest",
            return_tensors="pt",
        )
        inputs = {
            name: features[name] for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        if not self._padded and len(features["input_ids"]) == 1:
            del inputs["attention_mask"]  # nothing is padding, so there is nothing to mask
        with self._torch.inference_mode():
            output = self._model(**inputs)
        offsets = features["offset_mapping"].tolist()
        candidates = (
            Feature(start, end, _passage_offsets(places, features.encodings[row].sequence_ids))
            for row, (start, end, places) in enumerate(
                zip(output.start_logits.numpy(), output.end_logits.numpy(), offsets, strict=True)
            )
        )
        return choose_text(candidates, passage, self._threshold)

    def describe(self) -> dict[str, Any]:
        """Float32, as loaded."""
        return {"engine": "torch", "precision": "fp32", "threads": self._threads}


class OnnxRuntimeReader:
    """An exported graph in ONNX Runtime, without padding; no torch in the process."""

    def __init__(self, entry: Entry, threads: int, no_answer_threshold: float) -> None:
        from tokenizers import Tokenizer

        from reader.engines.silent_onnxruntime import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        folder = Path(entry.folder)
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(
            MAX_LENGTH_TOKENS, stride=STRIDE_TOKENS, strategy="only_second"
        )
        self._threads, self._threshold, self._precision = (
            threads,
            no_answer_threshold,
            entry.precision,
        )

    def answer(self, question: str, passage: str) -> str:
        """One run for each window, so that none is padded."""
        first = self._tokenizer.encode(question.strip(), passage)
        return choose_text(
            (self._feature(window) for window in (first, *first.overflowing)),
            passage,
            self._threshold,
        )

    def describe(self) -> dict[str, Any]:
        """As exported."""
        return {"engine": "onnxruntime", "precision": self._precision, "threads": self._threads}

    def _feature(self, window: Any) -> Feature:
        values = (window.ids, window.attention_mask, window.type_ids)
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {
            name: np.asarray([value], dtype=np.int64)
            for name, value in zip(names, values, strict=True)
        }
        start, end = self._session.run(None, inputs)  # each [1, T]
        return Feature(start[0], end[0], _passage_offsets(window.offsets, window.sequence_ids))


class ElmaReader:
    """Our reader, walking until it is certain, or to the last layer with `exits` off."""

    def __init__(self, entry: Entry, threads: int) -> None:
        from reader.model import Reader

        self._reader = Reader.load(
            entry.folder, threads=threads, engine=entry.engine, precision=entry.precision
        )
        self._settings = self._reader.settings
        if not entry.exits:
            layers = self._reader.config.layers
            self._settings = replace(self._settings, exit_thresholds=(-1.0,) * layers)

    def answer(self, question: str, passage: str) -> str:
        """All windows together, as the device reads them."""
        from reader.spans import choose_answers
        from reader.walk import walk

        windows = self._reader.split(question, passage)
        done = walk(self._reader, windows, settings=self._settings)
        results = [done.resolved[window.index] for window in windows]
        return choose_answers(windows, results, passage, self._settings)[0].text

    def describe(self) -> dict[str, Any]:
        """As chosen on this machine."""
        choice = self._reader.engine.choice
        return {
            "engine": choice.name,
            "precision": choice.precision,
            "threads": choice.threads,
            "digest": self._reader.digest,
        }


@dataclass(frozen=True)
class Feature:
    """A window's logits `[T]`, and its passage tokens' characters (None elsewhere)."""

    start_logits: NDArray[np.float32]
    end_logits: NDArray[np.float32]
    offsets: Sequence[tuple[int, int] | None]


def choose_text(features: Iterable[Feature], passage: str, no_answer_threshold: float) -> str:
    """The post-processing of the question-answering examples of `transformers`."""
    null_score, best_score, best_place = np.inf, -np.inf, (0, 0)
    for feature in features:
        start_logits, end_logits = feature.start_logits, feature.end_logits
        null_score = min(null_score, float(start_logits[0] + end_logits[0]))
        ends = np.argsort(end_logits)[-1 : -BEST_COUNT - 1 : -1].tolist()
        for start in np.argsort(start_logits)[-1 : -BEST_COUNT - 1 : -1].tolist():
            for end in ends:
                first, last = feature.offsets[start], feature.offsets[end]
                if first is None or last is None:
                    continue
                if end < start or end - start + 1 > MAX_ANSWER_TOKENS:
                    continue
                score = float(start_logits[start] + end_logits[end])
                if score > best_score:
                    best_score, best_place = score, (first[0], last[1])
    if null_score - best_score > no_answer_threshold:
        return ""
    return passage[best_place[0] : best_place[1]]


def _passage_offsets(
    offsets: Sequence[Sequence[int]], sequence_ids: Sequence[int | None]
) -> list[tuple[int, int] | None]:
    return [
        (place[0], place[1]) if sequence == 1 else None
        for place, sequence in zip(offsets, sequence_ids, strict=True)
    ]
