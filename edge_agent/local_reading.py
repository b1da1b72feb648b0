"""What the device itself can do with a question: read it up to a layer, pack it, finish it.

Inputs: a `Question`. Outputs: a `Reading` (its windows and how far each got), the windows to send
to a worker, and the `FinalAnswer` of a reading with its results. Neighbours: `reader` does the
mathematics, `path` decides what happens next, `generations` makes one of these for each release.
Everything here runs on the inference thread, but for `provisional` and `answer`, which only look at
numbers.

A reading belongs to the `LocalReading` that began it, and is packed, finished and answered by that
one: releases change under way, and no answer may come of two.

A long passage makes many windows; they are walked a few at a time, so that memory stays bounded and
other questions get their turn in between. Windows are independent of each other, so this changes no
result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from broker.tracing import Span, Value, begin, finish
from edge_agent.audit_windows import provisional_of
from edge_agent.codec_choice import Offer
from edge_agent.questions import FinalAnswer, Question, RankedAnswer, ResolvedBy
from protocol.messages import MAX_SPANS, RequestWindow, ResumeRequest
from reader.codecs import TOKENS, encode_tokens, tokens_bytes
from reader.model import Reader
from reader.spans import WindowSpans, choose_answers
from reader.walk import Walk, walk
from reader.walk import finish as finish_walk
from reader.windows import Window

WINDOWS_PER_BATCH = 2
"""More at once takes more memory and, on a device's few threads, no less time."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reading:
    """A question after the device's layers: one walk for each batch of its windows.

    `local` is what read it and must go on with it. `answer_by` is its deadline in seconds of the
    monotonic clock. Past it, reading stops early, and the last batches have no walk. `span` is the
    question's, where there are traces.
    """

    local: LocalReading
    question: Question
    windows: tuple[Window, ...]
    walks: tuple[Walk, ...]
    answer_by: float = math.inf
    span: Span | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every window was read."""
        return len(self.walks) == math.ceil(len(self.windows) / WINDOWS_PER_BATCH)

    @property
    def is_settled(self) -> bool:
        """Whether every window has exited."""
        return not any(part.unresolved_indexes for part in self.walks)

    @property
    def unresolved(self) -> tuple[int, ...]:
        """The indexes of the windows that have not."""
        return tuple(index for part in self.walks for index in part.unresolved_indexes)

    @property
    def unresolved_tokens(self) -> int:
        """How many tokens those windows have."""
        return sum(len(self.windows[index]) for index in self.unresolved)

    @property
    def resolved(self) -> dict[int, WindowSpans]:
        """The results of the windows that have exited."""
        return {index: spans for part in self.walks for index, spans in part.resolved.items()}

    @property
    def provisional(self) -> dict[int, WindowSpans]:
        """The device's best so far for every window that was read."""
        rest = {index: spans for part in self.walks for index, spans in part.provisional.items()}
        return self.resolved | rest

    def __repr__(self) -> str:
        """Without tokens and states."""
        return f"Reading(request_id={self.question.request_id!r}, windows={len(self.windows)})"


class LocalReading:
    """Reads questions with `reader`, stopping at `edge_layers`; not for two threads at once."""

    def __init__(
        self,
        reader: Reader,
        *,
        edge_layers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reader = reader
        self.edge_layers = edge_layers
        self._clock = clock
        self._seconds_a_token_layer = 2e-5

    @property
    def model(self) -> str:
        """The model's name and the first digits of its digest, as answers show it."""
        return f"{self.reader.name}@{self.reader.digest[:12]}"

    def warm_up(self) -> None:
        """Read a small text twice, so that no asker pays for first-time work."""
        _run_to_end(self.warm_up_in_steps())

    def warm_up_in_steps(self) -> Generator[None, None, None]:
        """The same, with pauses in which questions get their turn."""
        for _ in range(2):
            question = Question("warm-up", "what is read?", "some words " * 40, 1, 1.0, 0.0)
            reading = self.read(question)
            yield
            self.finish(reading)
            yield

    def read(self, question: Question) -> Reading:
        """Run the device's layers; windows that exit stop. Raises `reader.errors.InputError`."""
        return _run_to_end(self.read_in_steps(question))

    def read_in_steps(
        self, question: Question, answer_by: float = math.inf, span: Span | None = None
    ) -> Generator[None, None, Reading]:
        """The same, with a pause after every batch; ends early when the next would be too late.

        The first batch is always read. Raises `reader.errors.InputError`.
        """
        reading_span = begin(span, "read")
        windows = self.reader.split(question.question, question.passage)
        walks: list[Walk] = []
        seconds = 0.0
        for batch in _batches(windows):
            if walks:
                yield
                if self._clock() + seconds > answer_by:
                    break
            layers_span = begin(reading_span, "layers", first_layer=1, last_layer=self.edge_layers)
            began = time.perf_counter()
            part = walk(self.reader, batch, last_layer=self.edge_layers)
            seconds = time.perf_counter() - began
            walks.append(part)
            if layers_span is not None:
                finish(layers_span, **_described(batch, part.resolved))
            if not part.resolved:
                # Only when every window ran every layer is the time a fair measure of its price.
                tokens = sum(len(window) for window in batch)
                self._note_pace(seconds, tokens * self.edge_layers)
        finish(reading_span, windows=len(windows), release=self.reader.digest)
        return Reading(self, question, tuple(windows), tuple(walks), answer_by, span)

    def finish(self, reading: Reading) -> dict[int, WindowSpans]:
        """Run the remaining layers here; early exits still count."""
        return _run_to_end(self.finish_in_steps(reading, math.inf))

    def finish_in_steps(
        self, reading: Reading, answer_by: float
    ) -> Generator[None, None, dict[int, WindowSpans]]:
        """The same, with a pause after every batch; past `answer_by` the best so far has to do.

        The first batch is always finished.
        """
        results = reading.provisional
        layers = self.reader.config.layers - self.edge_layers
        seconds = 0.0
        finishing_span = begin(reading.span, "finish", first_layer=self.edge_layers + 1)
        for number, part in enumerate(part for part in reading.walks if part.unresolved_indexes):
            if number:
                yield
                if self._clock() + seconds > answer_by:
                    break
            began = time.perf_counter()
            results |= finish_walk(self.reader, part)
            seconds = time.perf_counter() - began
            tokens = sum(len(reading.windows[index]) for index in part.unresolved_indexes)
            if layers:
                self._note_pace(seconds, tokens * layers)
        finish(finishing_span, windows=len(reading.unresolved))
        return results

    def finishing_seconds(self, reading: Reading) -> float:
        """How long `finish` will take at most, from the pace so far, with half as much again."""
        layers = self.reader.config.layers - self.edge_layers
        return 0.05 + 1.5 * reading.unresolved_tokens * layers * self._seconds_a_token_layer

    def offers(self, reading: Reading, codec: str, *, may_send_tokens: bool) -> list[Offer]:
        """How the unresolved windows could be sent, without packing them.

        `codec` names one, or is "auto": then every one whose loss is known, and the token ids
        where they may be sent. Raises `reader.errors.UnknownCodec`.
        """
        codecs, layer = self.reader.codecs, self.edge_layers
        lengths = [len(reading.windows[index]) for index in reading.unresolved]

        def offer(name: str, loss: float) -> Offer:
            return Offer(name, sum(codecs.size(name, layer, tokens) for tokens in lengths), loss)

        if codec != "auto":
            return [offer(codec, 0.0)]
        losses = [(name, codecs.loss(name, layer)) for name in codecs.names(layer)]
        offers = [offer(name, loss) for name, loss in losses if loss is not None]
        if may_send_tokens:
            size = sum(tokens_bytes(tokens, self.reader.config.vocab_size) for tokens in lengths)
            again = sum(lengths) * layer * self._seconds_a_token_layer
            offers.append(Offer(TOKENS, size, 0.0, extra_seconds=again))
        return offers

    def request(self, reading: Reading, codec: str) -> ResumeRequest:
        """The unresolved windows, packed by a codec, or as token ids; copies, so any thread may.

        Raises `reader.errors.StateError`.
        """
        if codec == TOKENS:
            windows = self._token_windows(reading)
        else:
            windows = self._state_windows(reading, codec)
        return ResumeRequest(tuple(windows), top_spans=MAX_SPANS)

    def answer(
        self,
        reading: Reading,
        results: Mapping[int, WindowSpans],
        *,
        resolved_by: ResolvedBy,
        degraded: bool,
        latency_seconds: float,
        bytes_sent: int,
    ) -> FinalAnswer:
        """The final answer from one result for every window that was read."""
        question = reading.question
        read = [window for window in reading.windows if window.index in results]
        chosen = choose_answers(
            read,
            [results[window.index] for window in read],
            question.passage,
            self.reader.settings,
            top_k=question.top_k,
        )
        ranked = tuple(
            RankedAnswer(found.text, found.start, found.end, found.score) for found in chosen
        )
        return FinalAnswer(
            request_id=question.request_id,
            answer=ranked[0].answer,
            start=ranked[0].start,
            end=ranked[0].end,
            score=ranked[0].score,
            no_answer_score=chosen[0].no_answer_score,
            exit_layer=max(spans.layer for spans in results.values()),
            resolved_by=resolved_by,
            degraded=degraded,
            latency_ms=round(max(latency_seconds, 0.0) * 1000, 3),
            bytes_sent=bytes_sent,
            model=self.model,
            release=self.reader.digest,
            engine=self.reader.engine.choice.name,
            precision=self.reader.engine.choice.precision,
            answers=ranked if question.top_k > 1 else (),
        )

    def _token_windows(self, reading: Reading) -> Iterator[RequestWindow]:
        best = reading.provisional
        for index in reading.unresolved:
            window = reading.windows[index]
            yield RequestWindow(
                index=index,
                from_layer=0,
                length_tokens=len(window),
                question_tokens=window.question_tokens,
                codec=TOKENS,
                state=encode_tokens(window.token_ids, self.reader.config.vocab_size),
                provisional=provisional_of(best[index], self.reader.settings),
            )

    def _state_windows(self, reading: Reading, codec: str) -> Iterator[RequestWindow]:
        for part in reading.walks:
            if part.unresolved is None:
                continue
            states = self.reader.engine.states(part.unresolved)  # [T, H] each
            for index, state in zip(part.unresolved_indexes, states, strict=True):
                yield RequestWindow(
                    index=index,
                    from_layer=part.last_layer,
                    length_tokens=int(state.shape[0]),
                    question_tokens=reading.windows[index].question_tokens,
                    codec=codec,
                    state=self.reader.codecs.encode(codec, part.last_layer, state),
                    provisional=provisional_of(part.provisional[index], self.reader.settings),
                )

    def _note_pace(self, seconds: float, token_layers: int) -> None:
        measured = seconds / token_layers
        self._seconds_a_token_layer += 0.3 * (measured - self._seconds_a_token_layer)


def _batches(windows: list[Window]) -> Iterator[list[Window]]:
    for first in range(0, len(windows), WINDOWS_PER_BATCH):
        yield windows[first : first + WINDOWS_PER_BATCH]


def _described(batch: list[Window], resolved: Mapping[int, WindowSpans]) -> dict[str, Value]:
    """What a span says of a batch: sizes, and the layers at which windows exited."""
    return {
        "windows": len(batch),
        "tokens": sum(len(window) for window in batch),
        "exited": len(resolved),
        "exit_layers": [spans.layer for spans in resolved.values()],
    }


def _run_to_end(steps: Generator[None, None, _Result]) -> _Result:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
