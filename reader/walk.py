"""The device's walk through the layers: run, look, stop what is certain, go on with the rest.

In: a question's windows. Out: what settled at which layer, and the state of what did not.
Neighbours: the edge agent offloads or finishes the unresolved ones; evaluation measures the same
walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reader.arrays import FloatArray, IntArray
from reader.exits import ExitSettings
from reader.model import Reader
from reader.spans import WindowSpans, best_spans
from reader.states import StateBatch
from reader.windows import Window


@dataclass(frozen=True)
class Walk:
    """Where a walk stands after `last_layer`.

    `resolved` holds the windows that stopped, by window index, each at its own layer; `provisional`
    the best so far of those that did not; `unresolved` their state in the order of
    `unresolved_indexes`, None when all stopped.
    """

    resolved: dict[int, WindowSpans]
    provisional: dict[int, WindowSpans]
    unresolved: StateBatch | None
    unresolved_indexes: tuple[int, ...]
    last_layer: int
    history: IntArray = field(repr=False)  # [rows, layers run, 2], argmax spans of the unresolved

    @property
    def results(self) -> dict[int, WindowSpans]:
        """One result a window: settled where it is, provisional where it is not."""
        return {**self.provisional, **self.resolved}


def walk(
    reader: Reader,
    windows: Sequence[Window],
    *,
    last_layer: int | None = None,
    settings: ExitSettings | None = None,
) -> Walk:
    """Run windows up to `last_layer` (default: all layers), stopping each where it is certain.

    A window at the reader's last layer has always settled. Raises `InputError` for no window,
    `ValueError` for a layer that the reader does not have.
    """
    last = reader.config.layers if last_layer is None else last_layer
    if not 1 <= last <= reader.config.layers:
        raise ValueError(f"last_layer {last} is outside 1..{reader.config.layers}")
    start = Walk(
        resolved={},
        provisional={},
        unresolved=reader.embed(windows),
        unresolved_indexes=tuple(window.index for window in windows),
        last_layer=0,
        history=np.zeros((len(windows), 0, 2), dtype=np.int64),
    )
    return walk_on(reader, start, last_layer=last, settings=settings)


def walk_on(
    reader: Reader, begun: Walk, *, last_layer: int, settings: ExitSettings | None = None
) -> Walk:
    """Go on with the unresolved windows of a walk, up to `last_layer`."""
    chosen = settings or reader.settings
    resolved, provisional = dict(begun.resolved), dict(begun.provisional)
    batch, indexes, history = begun.unresolved, list(begun.unresolved_indexes), begun.history
    layer = begun.last_layer
    while batch is not None and layer < last_layer:
        layer += 1
        batch = reader.run(batch, layer - 1, layer)
        view = reader.view(batch, layer, history, chosen)
        if layer == reader.config.layers:
            stops = np.ones(len(batch), dtype=np.bool_)
        else:
            stops = reader.uncertainty(view, chosen) <= np.float32(
                chosen.exit_thresholds[layer - 1]
            )
        if layer == last_layer or bool(stops.any()):
            results = best_spans(
                view.start_logits, view.end_logits, window_indexes=indexes, layer=layer
            )
            settled = stops.tolist()
            for result, stopped in zip(results, settled, strict=True):
                (resolved if stopped else provisional)[result.window_index] = result
            going = [row for row, stopped in enumerate(settled) if not stopped]
        else:
            going = list(range(len(batch)))
        history = np.concatenate((history, reader.best_span(view)[:, None]), axis=1)[going]
        indexes = [indexes[row] for row in going]
        if not going:
            batch = None
        elif len(going) < len(batch):
            batch = reader.engine.select(batch, going)
    return Walk(
        resolved=resolved,
        provisional={index: provisional[index] for index in indexes if index in provisional},
        unresolved=batch,
        unresolved_indexes=tuple(indexes),
        last_layer=layer if batch is not None else last_layer,
        history=history,
    )


def finish(
    reader: Reader, begun: Walk, *, settings: ExitSettings | None = None
) -> dict[int, WindowSpans]:
    """Run what is left on this machine, early exits still allowed; one result a window."""
    done = walk_on(reader, begun, last_layer=reader.config.layers, settings=settings)
    return done.resolved


def resume_walk(
    reader: Reader,
    *,
    resolved: dict[int, WindowSpans],
    states: Sequence[FloatArray],
    question_tokens: Sequence[int],
    window_indexes: Sequence[int],
    layer: int,
) -> Walk:
    """A walk rebuilt from states `[T_i, H]` after `layer` that were stored (an outbox after a
    crash). Patience starts anew."""
    batch = reader.engine.pack(states, question_tokens)
    empty = np.zeros((len(batch), 0, 2), dtype=np.int64)
    spans = reader.spans(batch, layer, window_indexes) if layer else []
    provisional = {result.window_index: result for result in spans}
    return Walk(dict(resolved), provisional, batch, tuple(window_indexes), layer, empty)
