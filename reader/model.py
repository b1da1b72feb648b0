"""`Reader`: a model folder, loaded, with text going in and spans coming out.

In: a question and a passage, or a state from another machine. Out: states and spans at any layer.
Path: `split` -> `embed` -> `run` -> `spans`, with `walk` on top for early exits. Neighbours: the
edge calls all of it, the worker from `run` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reader.config import ReaderConfig
from reader.errors import InputError, ModelFolderError, StateShapeError
from reader.exits import CRITERIA, ExitSettings, ExitView, best_span
from reader.network import AlbertReader
from reader.spans import WindowSpans, best_spans
from reader.states import StateBatch
from reader.weights import folder_digest, load_network, resolve_model_folder
from reader.windows import WINDOW_TOKENS, Window, WindowSplitter


class Reader:
    """An early-exit reader in evaluation mode; safe to share between threads that only read."""

    def __init__(
        self,
        network: AlbertReader,
        splitter: WindowSplitter,
        settings: ExitSettings,
        *,
        name: str,
        digest: str,
    ) -> None:
        """Use `Reader.load`; this is for networks that are already in memory."""
        if len(settings.exit_thresholds) != network.config.layers:
            raise ModelFolderError(
                f"{name}: exits.json has {len(settings.exit_thresholds)} layers, the network "
                f"{network.config.layers}; run `elma calibrate` again"
            )
        self.network, self.splitter, self.settings = network.eval(), splitter, settings
        self.name, self.digest = name, digest

    @classmethod
    def load(
        cls,
        model: Path | str,
        *,
        threads: int | None = None,
        settings: ExitSettings | None = None,
    ) -> Reader:
        """Load a folder, the shipped model by its name, or a hub id.

        `threads` bounds torch's threads in this process. `settings` replaces those of the folder;
        a folder without any never exits early. Raises `ModelFolderError`.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        folder = resolve_model_folder(model)
        network = load_network(folder)
        settings = (
            settings
            or ExitSettings.load(folder)
            or ExitSettings.uncalibrated(network.config.layers)
        )
        window_tokens = min(WINDOW_TOKENS, network.config.max_positions)
        splitter = WindowSplitter(folder / "tokenizer.json", window_tokens=window_tokens)
        return cls(network, splitter, settings, name=folder.name, digest=folder_digest(folder))

    @property
    def config(self) -> ReaderConfig:
        """Sizes of the network."""
        return self.network.config

    def split(self, question: str, passage: str) -> list[Window]:
        """Windows of a question; raises `InputError`."""
        return self.splitter.split(question, passage)

    @torch.no_grad()
    def embed(self, windows: Sequence[Window]) -> StateBatch:
        """The state after layer 0 of windows, `[B, T, H]`; raises `InputError` for none."""
        if not windows:
            raise InputError("no window to read")
        lengths = torch.tensor([len(window) for window in windows])
        heads = torch.tensor([window.question_tokens for window in windows])
        token_ids = torch.full((len(windows), int(lengths.max())), self.config.pad_token_id)
        for row, window in enumerate(windows):
            token_ids[row, : len(window)] = torch.tensor(window.token_ids)
        position = torch.arange(token_ids.shape[1]).unsqueeze(0)  # [1, T]
        types = (position >= heads.unsqueeze(1)) & (position < lengths.unsqueeze(1))
        return StateBatch(self.network.embed(token_ids, types.long()), lengths, heads)

    @torch.no_grad()
    def run(self, batch: StateBatch, from_layer: int, to_layer: int) -> StateBatch:
        """Layers `from_layer + 1 .. to_layer`; exact resumption of what another machine began.

        Raises `StateShapeError` when the state is not this reader's, `ValueError` for layers that
        it does not have.
        """
        if batch.hidden.shape[2] != self.config.hidden_size:
            raise StateShapeError(
                f"the state is {batch.hidden.shape[2]} wide, this reader {self.config.hidden_size}"
            )
        if batch.hidden.shape[1] > self.config.max_positions:
            raise StateShapeError(
                f"the state has {batch.hidden.shape[1]} tokens, "
                f"this reader reads {self.config.max_positions}"
            )
        hidden = self.network.run(batch.hidden, batch.valid, from_layer, to_layer)
        return batch.with_hidden(hidden)

    @torch.no_grad()
    def exit_logits(self, batch: StateBatch, layer: int) -> tuple[Tensor, Tensor]:
        """Start and end logits `[B, T]` float32 of the exit behind `layer`, -inf where no answer
        can be."""
        logits = self.network.exit_logits(layer, batch.hidden).float()  # [B, T, 2]
        logits = logits.masked_fill(~batch.answerable.unsqueeze(-1), -torch.inf)
        return logits[..., 0], logits[..., 1]

    @torch.no_grad()
    def view(
        self,
        batch: StateBatch,
        layer: int,
        earlier_spans: Tensor,
        settings: ExitSettings | None = None,
    ) -> ExitView:
        """What an exit criterion looks at; `earlier_spans` `[B, K, 2]` of the exits before.

        Thresholds and temperatures are those of `settings` (the reader's own if None).
        """
        chosen = settings or self.settings
        start, end = self.exit_logits(batch, layer)
        certainty = self.network.certainty_logit(layer, batch.hidden).float()
        return ExitView(
            start,
            end,
            certainty,
            earlier_spans,
            no_answer_threshold=chosen.no_answer_thresholds[layer - 1],
            temperature=chosen.temperatures[layer - 1],
        )

    def uncertainty(self, view: ExitView, settings: ExitSettings | None = None) -> Tensor:
        """Uncertainty `[B]` under the criterion of `settings` (the reader's own if None)."""
        return CRITERIA[(settings or self.settings).criterion](view)

    def spans(
        self, batch: StateBatch, layer: int, window_indexes: Sequence[int]
    ) -> list[WindowSpans]:
        """The candidates of each window at the exit behind `layer`."""
        start, end = self.exit_logits(batch, layer)
        return best_spans(start, end, window_indexes=window_indexes, layer=layer)

    @staticmethod
    def best_span(view: ExitView) -> Tensor:
        """Argmax start and end `[B, 2]`, the history that patience compares."""
        return best_span(view)
