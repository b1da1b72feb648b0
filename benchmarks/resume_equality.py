"""Is a window that is resumed on a worker the same as at full depth on one machine?

    python benchmarks/resume_equality.py --model elma-small --json

For every layer k and every state codec: the device's part up to layer k runs here, the state goes
sealed over a real broker to a real worker process, and what comes back is compared with all layers
run here. Printed: the largest difference of a logit, over all returned spans and the null score;
how often the best span, and the whole ordered list of spans, are the same; bytes of a window.
Once in float32, for which the codecs' tolerances are stated, and once in int8, as the shipped
models run by default: there the activations are rounded anew in every layer, and a difference in
the last bit of a state can move a whole step. Exit status 0 only if every difference in float32
stays within the tolerance of its codec.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.exchange import Publication, Subscription
from broker.session import Session
from broker.settings import BrokerSettings
from elma.demonstration.passages import load_questions
from elma.demonstration.processes import Child, signals_raise
from elma.demonstration.scenario import is_listening, is_ready
from elma.demonstration.setup import EDGE_NAME, Setup, prepare
from elma.log_form import LogForm, LogFormat
from elma.output import (
    CommandError,
    JsonOption,
    configure_logging,
    print_json,
    print_status,
    print_table,
)
from protocol.key_files import EDGE_SECRET_NAME, POOL_PUBLIC_NAME, load_edge_keys, load_pool_public
from protocol.messages import (
    MAX_SPANS,
    AnswerMessage,
    ErrorMessage,
    RequestWindow,
    ResumeRequest,
    WindowResult,
)
from protocol.sealing import RequestHeader, open_answer, seal_request
from protocol.topics import AnswerTopic, RequestTopic, answer_subscription, new_request_id
from protocol.wire import WIRE_VERSION
from reader.arrays import FloatArray
from reader.codecs import CodecSet
from reader.model import Reader
from reader.spans import WindowSpans
from reader.states import StateBatch
from reader.windows import Window

START_SECONDS = 120.0
ANSWER_SECONDS = 120.0


PRECISIONS = ("fp32", "int8")
JUDGED_PRECISION = "fp32"


@dataclass
class Row:
    """What one layer and codec came to in one arithmetic, over all windows."""

    precision: str
    layer: int
    codec: str
    windows: int = 0
    largest_difference: float = 0.0
    best_equal: int = 0
    all_equal: int = 0
    state_bytes: int = 0

    def add(self, result: WindowResult, alone: Alone, state_bytes: int) -> None:
        """Compare one window."""
        self.windows += 1
        self.state_bytes += state_bytes
        expected = [(span.start_token, span.end_token) for span in alone.spans.spans]
        found = [(span.start_token, span.end_token) for span in result.spans]
        self.best_equal += found[:1] == expected[:1]
        self.all_equal += found == expected
        # The null score is the sum of two logits; each of them is bounded by half of it.
        differences = [abs(result.null_score - alone.spans.null_score) / 2]
        for span in result.spans:
            differences.append(abs(span.start_logit - float(alone.start[span.start_token])))
            differences.append(abs(span.end_logit - float(alone.end[span.end_token])))
        self.largest_difference = max(self.largest_difference, *differences)

    @property
    def tolerance(self) -> float | None:
        """The codec's, in the arithmetic that it is stated for."""
        is_judged = self.precision == JUDGED_PRECISION
        return CodecSet.tolerance(self.codec) if is_judged else None

    @property
    def is_within(self) -> bool:
        """Whether no logit differs by more than the tolerance, where there is one."""
        return self.tolerance is None or self.largest_difference <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """The row of the JSON document."""
        return {
            "precision": self.precision,
            "layer": self.layer,
            "codec": self.codec,
            "windows": self.windows,
            "largest_logit_difference": float(f"{self.largest_difference:.3g}"),
            "tolerance": self.tolerance,
            "best_span_equal": self.best_equal,
            "all_spans_equal": self.all_equal,
            "state_bytes_a_window": round(self.state_bytes / max(1, self.windows)),
        }


@dataclass(frozen=True)
class Alone:
    """A window at full depth on this machine: its spans, and all its logits `[T]`."""

    spans: WindowSpans
    start: FloatArray
    end: FloatArray


def main(
    model: Annotated[str, typer.Option(help="Model folder, or elma-small.")] = "elma-small",
    data: Annotated[Path | None, typer.Option(help="SQuAD JSON file, plain or gzipped.")] = None,
    questions: Annotated[int, typer.Option(min=1, help="How many questions.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads here.")] = 1,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or int8; may be repeated.  [default: both]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare, and print one table or one JSON document."""
    configure_logging("warning", LogForm(LogFormat.CONSOLE))
    asked = choose_questions(data, questions)
    rows: list[Row] = []
    for name in precision or PRECISIONS:
        reader = Reader.load(model, threads=threads, precision=name)
        rows += compare_all(reader, model, asked, name)
    is_within = all(row.is_within for row in rows)
    table = [row.as_json() for row in rows]
    if as_json:
        document = {
            "model": f"{reader.name}@{reader.digest[:12]}",
            "engine": reader.engine.choice.name,
        }
        print_json({**document, "ok": is_within, "rows": table})
    else:
        print_table(tuple(table[0]), [tuple(row.values()) for row in table])
    raise typer.Exit(0 if is_within else 1)


def compare_all(
    reader: Reader, model: str, asked: Sequence[tuple[str, str]], precision: str
) -> list[Row]:
    """Every layer and codec, at a broker and a worker of their own. Raises CommandError."""
    rows: list[Row] = []
    with signals_raise(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elma-resume-")))
        setup = prepare(folder, model, "auto")
        start(setup, precision, stack)
        edge = ProtocolEdge(setup, reader.digest, stack)
        for layer in range(1, reader.config.layers):
            print_status(f"{precision}: layer {layer} of {reader.config.layers}")
            of_layer = {codec: Row(precision, layer, codec) for codec in reader.codecs.names(layer)}
            for question, passage in asked:
                compare(reader, edge, reader.split(question, passage), layer, of_layer)
            rows += of_layer.values()
    return rows


def choose_questions(data: Path | None, count: int) -> list[tuple[str, str]]:
    """`count` questions with their passages."""
    if data is None:
        return [(question.text, question.passage) for question in load_questions()][:count]
    from cloud_worker.training.squad_files import read_squad

    read = read_squad(data)
    step = max(1, len(read) // count)
    return [(question.question, question.context) for question in read[::step][:count]]


def start(setup: Setup, precision: str, stack: ExitStack) -> None:
    """Start a broker and a worker that computes in `precision`, and wait for both."""
    is_ready_by_name = {
        "broker": partial(is_listening, setup.broker_port),
        "worker": partial(is_ready, f"{setup.worker_url}/readyz"),
    }
    for name, arguments in (
        ("broker", setup.broker_arguments),
        ("worker", [*setup.worker_arguments, "--precision", precision]),
    ):
        child = Child(name, arguments, setup.folder / f"{name}.log")
        stack.callback(child.stop)
        try:
            child.wait_until(is_ready_by_name[name], wait_seconds=START_SECONDS)
        except CommandError:
            print_status(child.log_tail())
            raise


class ProtocolEdge:
    """An edge made of the protocol alone: it seals, publishes, waits for the answer, opens it."""

    def __init__(self, setup: Setup, release: str, stack: ExitStack) -> None:
        keys = setup.folder / EDGE_NAME
        self._keys = load_edge_keys(keys / EDGE_SECRET_NAME)
        self._pool = load_pool_public(keys / POOL_PUBLIC_NAME)
        self._release = release
        self._session = Session(
            BrokerSettings(port=setup.broker_port),
            f"edge-{EDGE_NAME}",
            subscriptions=[Subscription(answer_subscription(EDGE_NAME))],
        )
        stack.enter_context(self._session)
        if not self._session.wait_connected(START_SECONDS):
            raise CommandError(f"no connection to the broker: {self._session.failure}")

    def ask(self, windows: Sequence[RequestWindow]) -> AnswerMessage:
        """The worker's answer. Raises CommandError."""
        created = time.time()
        header = RequestHeader(
            version=WIRE_VERSION,
            pool_key_id=self._pool.key_id,
            edge=EDGE_NAME,
            request=new_request_id(),
            created=created,
            deadline=created + ANSWER_SECONDS,
            release=self._release,
        )
        body = ResumeRequest(tuple(windows), MAX_SPANS)
        payload, key = seal_request(header, body, self._keys, self._pool)
        topic = str(RequestTopic("normal", EDGE_NAME, header.request))
        answers = str(AnswerTopic(EDGE_NAME, header.request))
        self._session.publish(Publication(topic, payload, expiry_seconds=60))
        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end:
            delivery = self._session.receive(1.0)
            if delivery is None:
                continue
            self._session.acknowledge(delivery)
            if delivery.topic != answers:  # a late word about the request before
                continue
            word = open_answer(delivery.payload, header, key)
            if isinstance(word, ErrorMessage):
                raise CommandError(f"the worker refused: {word.code}, {word.detail}")
            if isinstance(word, AnswerMessage):
                return word
        raise CommandError(f"no answer within {ANSWER_SECONDS:g} seconds")


def compare(
    reader: Reader,
    edge: ProtocolEdge,
    windows: Sequence[Window],
    layer: int,
    rows: dict[str, Row],
) -> None:
    """One question: run to `layer` here, the rest on the worker in each codec and here in full."""
    states = reader.engine.states(reader.run(reader.embed(windows), 0, layer))
    alone = run_alone(reader, windows)
    for codec, row in rows.items():
        packed = [
            RequestWindow(
                window.index,
                layer,
                len(window),
                window.question_tokens,
                codec,
                reader.codecs.encode(codec, layer, states[place]),
            )
            for place, window in enumerate(windows)
        ]
        sizes = {window.index: len(window.state) for window in packed}
        for result in edge.ask(packed).results:
            row.add(result, alone[result.index], sizes[result.index])


def run_alone(reader: Reader, windows: Sequence[Window]) -> dict[int, Alone]:
    """Every window by itself, all layers here."""
    last = reader.config.layers
    found = {}
    for window in windows:
        batch: StateBatch = reader.run(reader.embed([window]), 0, last)
        start_logits, end_logits = reader.exit_logits(batch, last)  # [1, T]
        spans = reader.spans(batch, last, [window.index])[0]
        found[window.index] = Alone(spans, start_logits[0], end_logits[0])
    return found


if __name__ == "__main__":
    typer.run(main)
