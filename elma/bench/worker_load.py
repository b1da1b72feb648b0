"""What a worker is asked in its benchmark: questions of mixed lengths, left at mixed depths.

In: questions, a loaded reader, a rate. Out: requests with their states, and when each arrives.
Neighbours: `worker_core` hands them to a worker, `worker` chooses rates and compares.

Lengths are those of the questions. Depths are uniform over 1 .. layers - 1, as from devices of all
kinds. Arrivals are a Poisson process, seeded, and open-loop: the next one comes however the worker
does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from elma.bench.questions import BenchQuestions
from elma.output import CommandError
from reader.arrays import FloatArray
from reader.model import Reader
from reader.weights import load_config
from reader.windows import Window

CHUNK_WINDOWS = 16
PASSAGE_DEPTH = 3
MOST_WINDOWS = 3
"""A question with more windows is a long passage, which the load has apart."""


@dataclass(frozen=True)
class LeftWindow:
    """A window as a device left it: its state `[T, H]` after `layer`."""

    layer: int
    question_tokens: int
    state: FloatArray = field(repr=False)


LeftRequest = tuple[LeftWindow, ...]


@dataclass(frozen=True)
class Arrival:
    """A request that comes `at` seconds after the start; the passage is the large one."""

    at: float
    request: LeftRequest
    is_passage: bool = False


def leave_questions(reader: Reader, questions: BenchQuestions, seed: int) -> list[LeftRequest]:
    """Every question, run to a depth of its own and left there."""
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    split = [reader.split(one.question, one.context) for one in questions.questions]
    chosen = [windows for windows in split if len(windows) <= MOST_WINDOWS]
    if not chosen:
        raise CommandError(f"{questions.source} has no question of at most {MOST_WINDOWS} windows")
    depths = [1 + number % (reader.config.layers - 1) for number in range(len(chosen))]
    chance.shuffle(depths)
    flat = [
        (window, depth, owner)
        for owner, (windows, depth) in enumerate(zip(chosen, depths, strict=True))
        for window in windows
    ]
    left = _leave(reader, [window for window, _, _ in flat], [depth for _, depth, _ in flat])
    requests: list[list[LeftWindow]] = [[] for _ in chosen]
    for (_, _, owner), window in zip(flat, left, strict=True):
        requests[owner].append(window)
    return [tuple(request) for request in requests]


def leave_passage(reader: Reader, questions: BenchQuestions, windows: int) -> LeftRequest:
    """One question about a passage of so many windows, made of the contexts one after another."""
    contexts = list(dict.fromkeys(one.context for one in questions.questions))
    text, found = "", list[Window]()
    for place in range(100 * windows):
        text += contexts[place % len(contexts)] + "\n"
        if len(text) > 300 * windows:
            found = reader.split(questions.questions[0].question, text)
            if len(found) >= windows:
                break
    depth = min(PASSAGE_DEPTH, reader.config.layers - 1)
    return tuple(_leave(reader, found[:windows], [depth] * windows))


def arrivals_at(
    requests: Sequence[LeftRequest], rate: float, seconds: float, seed: int
) -> list[Arrival]:
    """Requests drawn at random, `rate` a second for so long."""
    chance = random.Random(seed)  # noqa: S311
    now, arrivals = 0.0, []
    while (now := now + chance.expovariate(rate)) < seconds:
        arrivals.append(Arrival(now, chance.choice(requests)))
    return arrivals


def saturating(
    requests: Sequence[LeftRequest], rate: float, seconds: float, held: int, seed: int
) -> list[Arrival]:
    """As many as a worker holds at once, and then more than it can do."""
    chance = random.Random(seed + 1)  # noqa: S311
    at_once = [Arrival(0.0, chance.choice(requests)) for _ in range(held)]
    return [*at_once, *arrivals_at(requests, rate, seconds, seed)]


def mean_work(requests: Sequence[LeftRequest], layers: int) -> float:
    """What a request takes on the average, in tokens times layers."""
    work = sum(
        len(window.state) * (layers - window.layer) for request in requests for window in request
    )
    return work / len(requests)


def with_passage(arrivals: Sequence[Arrival], passage: LeftRequest, at: float) -> list[Arrival]:
    """The same arrivals, and a long passage among them."""
    added = [*arrivals, Arrival(at, passage, is_passage=True)]
    return sorted(added, key=lambda arrival: arrival.at)


def make_one_group_model(like: Path, folder: Path, seed: int) -> Path:
    """A model folder as large as `like` whose layers share one parameter group, as ALBERT-base's.

    Its weights are random: it says nothing about answers, and computes exactly as much.
    """
    import torch

    from reader.network import AlbertReader
    from reader.network_files import save_network

    config = load_config(like)
    torch.manual_seed(seed)
    network = AlbertReader(replace(config, groups=1, kept_heads=(), inner_sizes=(), spans=()))
    save_network(network, folder, tokenizer_from=like)
    return folder


def _leave(reader: Reader, windows: Sequence[Window], depths: Sequence[int]) -> list[LeftWindow]:
    """Each window run to its depth, in batches of about equal depth."""
    left: dict[int, LeftWindow] = {}
    order = sorted(range(len(windows)), key=lambda place: depths[place])
    for start in range(0, len(order), CHUNK_WINDOWS):
        places = order[start : start + CHUNK_WINDOWS]
        batch = reader.embed([windows[place] for place in places])
        layer = 0
        while places:
            depth = depths[places[0]]
            batch, layer = reader.run(batch, layer, depth), depth
            done = [row for row, place in enumerate(places) if depths[place] == depth]
            states = reader.engine.states(reader.engine.select(batch, done))
            for row, state in zip(done, states, strict=True):
                left[places[row]] = LeftWindow(depth, windows[places[row]].question_tokens, state)
            rest = list(range(len(done), len(places)))
            places = places[len(done) :]
            batch = reader.engine.select(batch, rest) if rest else batch
    return [left[place] for place in range(len(windows))]
