"""`Reader`: a model folder, loaded, with text going in and spans coming out.

In: a question and a passage, or a state from another machine. Out: states and spans at any layer.
Path: `split` -> `embed` -> `run` -> `spans`, with `walk` on top for early exits. Neighbours: an
`Engine` computes; the edge calls all of it, the worker from `run` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reader.arrays import FloatArray, IntArray
from reader.codecs import CodecSet
from reader.config import ReaderConfig
from reader.engines.choosing import load_engine
from reader.engines.engine import Engine, ExitScores
from reader.errors import InputError, ModelFolderError, StateShapeError
from reader.exits import CRITERIA, ExitSettings, ExitView, best_span
from reader.memory import memory_errors
from reader.spans import WindowSpans, best_spans
from reader.states import StateBatch
from reader.weights import folder_digest, resolve_model_folder
from reader.windows import WINDOW_TOKENS, Window, WindowSplitter


class Reader:
    """An early-exit reader; safe to share between threads that only read."""

    def __init__(
        self,
        engine: Engine,
        splitter: WindowSplitter,
        settings: ExitSettings,
        *,
        name: str,
        digest: str,
        codecs: CodecSet | None = None,
    ) -> None:
        """Use `Reader.load`; this is for engines that are already in memory."""
        if len(settings.exit_thresholds) != engine.config.layers:
            raise ModelFolderError(
                f"{name}: exits.json has {len(settings.exit_thresholds)} layers, the network "
                f"{engine.config.layers}; run `elma calibrate` again"
            )
        self.engine, self.splitter, self.settings = engine, splitter, settings
        self.name, self.digest = name, digest
        self.codecs = codecs or CodecSet(engine.config.hidden_size)

    @classmethod
    @memory_errors()
    def load(
        cls,
        model: Path | str,
        *,
        threads: int | None = None,
        settings: ExitSettings | None = None,
        engine: str = "auto",
        precision: str = "auto",
        name: str | None = None,
    ) -> Reader:
        """Load a folder, the shipped model by its name, or a hub id.

        `threads` bounds the engine's threads in this process. `settings` replaces those of the
        folder; a folder without any never exits early. `engine` and `precision`: see
        `engines.choosing`. `name` is what answers call it; the folder's where it is None. Raises
        `ModelFolderError`, `EngineError`; `MemoryError`, whatever the engine calls it, as the
        computing methods do.
        """
        folder = resolve_model_folder(model)
        computing = load_engine(folder, engine=engine, precision=precision, threads=threads)
        config = computing.config
        settings = settings or ExitSettings.load(folder) or ExitSettings.uncalibrated(config.layers)
        window_tokens = min(WINDOW_TOKENS, config.max_positions)
        splitter = WindowSplitter(folder / "tokenizer.json", window_tokens=window_tokens)
        return cls(
            computing,
            splitter,
            settings,
            name=name or folder.name,
            digest=folder_digest(folder),
            codecs=CodecSet.load(folder, config),
        )

    @property
    def config(self) -> ReaderConfig:
        """Sizes of the network."""
        return self.engine.config

    def split(self, question: str, passage: str) -> list[Window]:
        """Windows of a question; raises `InputError`."""
        return self.splitter.split(question, passage)

    @memory_errors()
    def embed(self, windows: Sequence[Window]) -> StateBatch:
        """The state after layer 0 of windows; raises `InputError` for none."""
        if not windows:
            raise InputError("no window to read")
        return self.engine.embed(
            [window.token_ids for window in windows],
            [window.question_tokens for window in windows],
        )

    @memory_errors()
    def run(self, batch: StateBatch, from_layer: int, to_layer: int) -> StateBatch:
        """Layers `from_layer + 1 .. to_layer`; exact resumption of what another machine began.

        Raises `StateShapeError` when the state is not this reader's, `ValueError` for layers that
        it does not have.
        """
        self._check(batch)
        return self.engine.run(batch, from_layer, to_layer)

    @memory_errors()
    def run_mixed(self, batch: StateBatch, layers: Sequence[int]) -> StateBatch:
        """One layer of each window, `layers[i]` of window i, all of one parameter group.

        Raises as `run` does.
        """
        self._check(batch)
        return self.engine.run_mixed(batch, layers)

    @memory_errors()
    def exit_logits(self, batch: StateBatch, layer: int) -> tuple[FloatArray, FloatArray]:
        """Start and end logits `[B, T]` of the exit behind `layer`, -inf where no answer can be."""
        return _masked(batch, self.engine.exit_scores(batch, layer))

    @memory_errors()
    def view(
        self,
        batch: StateBatch,
        layer: int,
        earlier_spans: IntArray,
        settings: ExitSettings | None = None,
    ) -> ExitView:
        """What an exit criterion looks at; `earlier_spans` `[B, K, 2]` of the exits before.

        Thresholds and temperatures are those of `settings` (the reader's own if None).
        """
        chosen = settings or self.settings
        scores = self.engine.exit_scores(batch, layer)
        start, end = _masked(batch, scores)
        return ExitView(
            start,
            end,
            scores.certainty,
            earlier_spans,
            no_answer_threshold=chosen.no_answer_thresholds[layer - 1],
            temperature=chosen.temperatures[layer - 1],
        )

    def uncertainty(self, view: ExitView, settings: ExitSettings | None = None) -> FloatArray:
        """Uncertainty `[B]` under the criterion of `settings` (the reader's own if None)."""
        return CRITERIA[(settings or self.settings).criterion](view)

    def spans(
        self, batch: StateBatch, layer: int, window_indexes: Sequence[int]
    ) -> list[WindowSpans]:
        """The candidates of each window at the exit behind `layer`."""
        start, end = self.exit_logits(batch, layer)
        return best_spans(start, end, window_indexes=window_indexes, layer=layer)

    @staticmethod
    def best_span(view: ExitView) -> IntArray:
        """Argmax start and end `[B, 2]`, the history that patience compares."""
        return best_span(view)

    def _check(self, batch: StateBatch) -> None:
        width = batch.rows.shape[1]
        if width != self.config.hidden_size:
            raise StateShapeError(
                f"the state is {width} wide, this reader {self.config.hidden_size}"
            )
        if max(batch.lengths) > self.config.max_positions:
            raise StateShapeError(
                f"the state has {max(batch.lengths)} tokens, "
                f"this reader reads {self.config.max_positions}"
            )


def _masked(batch: StateBatch, scores: ExitScores) -> tuple[FloatArray, FloatArray]:
    """Rows of logits as start and end `[B, T]`, -inf where no answer can be."""
    answerable = batch.answerable  # [B, T]
    logits = np.full((2, *answerable.shape), -np.inf, dtype=np.float32)
    for window, (first, last) in enumerate(
        zip(batch.boundaries, batch.boundaries[1:], strict=False)
    ):
        logits[:, window, : last - first] = scores.logits[first:last].T
    logits[:, ~answerable] = -np.inf
    return logits[0], logits[1]
