"""Where the states of waiting windows lie: in the batches that steps made, in the engine's memory.

In: windows that the scheduler chose, and what a step made of them. Out: the batch of the next step.
Neighbours: `resume` calls it between two steps; only its thread touches a piece.

A piece is what came out of one step. Windows that go on together need no copying; one that goes
another way is copied out. When more than half of a piece's rows belong to windows that have left,
the rest is copied out too, so that a waiting window keeps at most about twice its own size, and a
row is copied once a step on the average, however the windows mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakSet

from cloud_worker.request_queue import Window
from reader.arrays import FloatArray
from reader.engines.engine import Engine
from reader.states import StateBatch


@dataclass(eq=False)
class Piece:
    """A batch, and the places of the windows that still need their rows of it.

    Weak: a window that was dropped, by whatever thread, needs nothing any more.
    """

    batch: StateBatch
    kept: WeakSet[Placed] = field(default_factory=WeakSet)


@dataclass(eq=False)
class Placed:
    """A window's state: window `position` of a piece."""

    piece: Piece
    position: int


State = FloatArray | Placed
"""What a waiting window holds: as it came from the edge, or where a step left it."""


def gather(engine: Engine, windows: Sequence[Window]) -> tuple[list[Window], StateBatch]:
    """One batch of these windows' states, and the windows in the order that they have in it.

    States that came from edges go into the engine's memory here, all in one. Raises `ReaderError`.
    """
    new = [window for window in windows if not isinstance(window.state, Placed)]
    by_piece: dict[Piece, list[Window]] = {}
    for window in windows:
        if isinstance(window.state, Placed):
            by_piece.setdefault(window.state.piece, []).append(window)
    order: list[Window] = []
    parts: list[StateBatch] = []
    for piece, own in by_piece.items():
        own.sort(key=lambda window: window.state.position)
        order += own
        parts.append(_take_out(engine, piece, [window.state for window in own]))
    if new:
        order += new
        states = [window.state for window in new]
        parts.append(engine.pack(states, [window.question_tokens for window in new]))
    return order, parts[0] if len(parts) == 1 else engine.join(parts)


def lay_down(engine: Engine, batch: StateBatch, positions: Sequence[int]) -> list[Placed]:
    """Keep these windows of what a step made; the places of each, in that order."""
    piece = Piece(batch)
    places = [Placed(piece, position) for position in positions]
    piece.kept.update(places)
    _shrink(engine, piece)
    return places


def _take_out(engine: Engine, piece: Piece, places: Sequence[Placed]) -> StateBatch:
    """The rows of some windows, which leave the piece."""
    if len(places) == len(piece.batch):
        return piece.batch
    taken = engine.select(piece.batch, [place.position for place in places])
    piece.kept.difference_update(places)
    _shrink(engine, piece)
    return taken


def _shrink(engine: Engine, piece: Piece) -> None:
    """Copy out what is needed when that is less than half."""
    kept = sorted(piece.kept, key=lambda place: place.position)
    tokens = sum(piece.batch.lengths[place.position] for place in kept)
    if kept and 2 * tokens < piece.batch.token_count:
        piece.batch = engine.select(piece.batch, [place.position for place in kept])
        for position, place in enumerate(kept):
            place.position = position
