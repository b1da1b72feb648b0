"""`elma bench wire`: bytes and time of a state on its way, with no layer computed.

In: a model folder, questions. Out: a row a codec (bytes, encoding, decoding, sealing, opening), and
the time from a state on the device to an opened answer through a real broker and a worker process
that computes nothing. Neighbours: `release_codecs` has the codecs, `wire_trips` the way through
the broker.

Every figure is of one window of `tokens` tokens, at the device's default last layer. Times are
medians; the codecs take turns, so that noise of the machine hits all alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from broker.run import run_broker
from elma.bench.frontier_quality import measure_quality
from elma.bench.machine import describe_machine
from elma.bench.questions import BenchQuestions
from elma.bench.release_codecs import ReleaseCodecs
from elma.bench.results import COLOURS, Table, new_figure, percentile, save_figure, write_results
from elma.bench.wire_trips import (
    EDGE,
    PRIORITY,
    Keys,
    Sample,
    encode,
    make_header,
    make_request,
    running_echo_worker,
    time_round_trips,
)
from elma.output import CommandError
from protocol.sealing import open_request, seal_request
from protocol.topics import RequestTopic
from reader.codecs import TOKENS
from reader.model import Reader

REFERENCE_CODEC = "int8"

_T = TypeVar("_T")


@dataclass(frozen=True)
class WirePlan:
    """What is measured: the model, the tokens of the window, and how often."""

    model: str
    tokens: int = 180
    repeats: int = 100
    rounds: int = 100
    threads: int = 1
    f1_questions: int = 0


def run_wire_bench(
    plan: WirePlan,
    questions: BenchQuestions,
    *,
    out: Path | None,
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Measure; with `f1_questions` also what the questions are worth that the device sends.

    Raises CommandError, `BrokerError` (no mosquitto and no embedded broker) and `ModelFolderError`.
    """
    codecs = ReleaseCodecs.of_model(plan.model)
    reader = Reader.load(plan.model, threads=plan.threads)
    sample = make_sample(reader, plan.tokens, questions)
    if plan.f1_questions:
        progress(f"F1 of those of {plan.f1_questions} questions that are sent")
    f1_offloaded = measure_f1(reader, questions, plan.f1_questions)
    keys = Keys.make()
    rows = [
        row | {"f1_offloaded": f1_offloaded.get(row["codec"])}
        for row in time_codecs(sample, codecs, keys, plan.repeats)
    ]
    progress("starting a broker and a worker that computes nothing")
    with tempfile.TemporaryDirectory(prefix="elma-bench-") as folder, ExitStack() as stack:
        broker = stack.enter_context(run_broker(directory=Path(folder) / "broker"))
        stack.enter_context(running_echo_worker(plan.model, broker, keys, Path(folder)))
        trips = time_round_trips(sample, codecs, keys, broker, plan.rounds)
        kind = broker.kind
    for row in rows:
        row["round_trip_p50_ms"] = round(percentile(trips[row["codec"]], 50), 3)
        row["round_trip_p95_ms"] = round(percentile(trips[row["codec"]], 95), 3)
    chosen = next((row for row in rows if row["codec"] == REFERENCE_CODEC), rows[0])
    result = {
        "model": Path(plan.model).name,
        "release": sample.release,
        "tokens": plan.tokens,
        "layer": sample.layer,
        "repeats": plan.repeats,
        "rounds": plan.rounds,
        "f1_questions": plan.f1_questions,
        "broker": kind,
        "machine": describe_machine(plan.threads),
        "rows": rows,
        "round_trip_codec": chosen["codec"],
        "round_trip_p50_ms": chosen["round_trip_p50_ms"],
        "sealing_and_codec_ms": round(
            sum(chosen[part] for part in ("encode_ms", "decode_ms", "seal_ms", "open_ms")), 3
        ),
    }
    if out is not None:
        write_results(out, "wire", result, markdown_of(result))
        draw(result, out / "wire.png")
    return result


def measure_f1(reader: Reader, questions: BenchQuestions, count: int) -> dict[str, float]:
    """F1 in percent, by codec, of those of `count` questions that the device sends; empty where
    there are none."""
    if not count:
        return {}
    layer = reader.settings.default_edge_layers
    codecs = (*reader.codecs.names(layer), TOKENS)
    asked = questions.spread(count).questions
    quality = measure_quality(reader, asked, codecs=codecs, edge_layers=layer)
    sent = quality.is_offloaded
    if not sent.any():
        return {}
    return {codec: round(100 * float(quality.ours(codec)[sent].mean()), 2) for codec in codecs}


def make_sample(reader: Reader, tokens: int, questions: BenchQuestions) -> Sample:
    """A window of exactly `tokens` tokens of the first question long enough for it."""
    layer = reader.settings.default_edge_layers
    for question in questions.questions:
        window = reader.split(question.question, question.context)[0]
        if len(window) >= tokens > window.question_tokens + 1:
            last = tokens - 1
            cut = replace(
                window,
                token_ids=(*window.token_ids[:last], window.token_ids[-1]),
                offsets=(*window.offsets[:last], (0, 0)),
            )
            batch = reader.run(reader.embed([cut]), 0, layer)
            return Sample(cut, reader.engine.states(batch)[0], layer, reader.digest)
    raise CommandError(
        f"no question makes a window of {tokens} tokens; give fewer by --tokens, or --data",
        exit_status=2,
    )


def time_codecs(
    sample: Sample, codecs: ReleaseCodecs, keys: Keys, repeats: int
) -> list[dict[str, Any]]:
    """A row for every codec that this release has for such a state, and one for token ids."""
    names = codecs.names(sample.layer)
    steps: dict[str, dict[str, list[float]]] = {codec: {} for codec in names}
    sizes: dict[str, tuple[int, int]] = {}
    for _ in range(repeats):
        for codec in names:
            sizes[codec] = _time_once(sample, codecs, keys, codec, steps[codec])
    return [
        {
            "codec": codec,
            "bytes": sizes[codec][0],
            "sealed_bytes": sizes[codec][1],
            **{f"{step}_ms": round(percentile(times, 50), 4) for step, times in found.items()},
        }
        for codec, found in steps.items()
    ]


def _time_once(
    sample: Sample, codecs: ReleaseCodecs, keys: Keys, codec: str, times: dict[str, list[float]]
) -> tuple[int, int]:
    tokens, layer = len(sample.window), sample.layer
    payload = _timed(times, "encode", partial(encode, codecs, codec, sample))
    request = make_request(sample, codec, payload)
    header = make_header(sample, keys)
    sealed, _key = _timed(
        times, "seal", lambda: seal_request(header, request, keys.edge, keys.pool.public)
    )
    topic = RequestTopic(PRIORITY, EDGE, header.request)
    _timed(times, "open", lambda: open_request(sealed, keys.pool, keys, time.time(), topic))
    _timed(times, "decode", lambda: codecs.decode(codec, layer, payload, tokens))
    return len(payload), len(sealed)


def _timed(times: dict[str, list[float]], step: str, work: Callable[[], _T]) -> _T:
    begin = time.perf_counter()
    done = work()
    times.setdefault(step, []).append((time.perf_counter() - begin) * 1000)
    return done


def markdown_of(result: Mapping[str, Any]) -> str:
    """The table as a person reads it."""
    table = Table(
        (
            "codec",
            "bytes",
            "encode ms",
            "seal ms",
            "open ms",
            "decode ms",
            "round trip p50 ms",
            "p95 ms",
            "F1 offloaded",
        ),
        [
            (
                row["codec"],
                row["bytes"],
                row["encode_ms"],
                row["seal_ms"],
                row["open_ms"],
                row["decode_ms"],
                row["round_trip_p50_ms"],
                row["round_trip_p95_ms"],
                row["f1_offloaded"],
            )
            for row in result["rows"]
        ],
    )
    return "\n".join(
        [
            f"{result['model']}, one window of {result['tokens']} tokens after layer "
            f"{result['layer']}, broker {result['broker']} on loopback, "
            f"{result['machine']['cpu']}.",
            "",
            table.markdown(),
            "",
            f"{result['round_trip_codec']}: round trip {result['round_trip_p50_ms']} ms at the "
            f"median, {result['sealing_and_codec_ms']} ms of it encoding, sealing, opening and "
            "decoding the request.",
        ]
    )


def draw(result: Mapping[str, Any], png_path: Path) -> None:
    """Bytes and round trip of every codec."""
    figure = new_figure(f"{result['model']}: a state of {result['tokens']} tokens on the wire")
    left, right = figure.subplots(1, 2)
    names = [row["codec"] for row in result["rows"]]
    left.barh(names, [row["bytes"] / 1000 for row in result["rows"]], color=COLOURS[0])
    left.set(xlabel="kB")
    right.barh(names, [row["round_trip_p50_ms"] for row in result["rows"]], color=COLOURS[2])
    right.set(xlabel="round trip without computation, p50, ms")
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    save_figure(figure, png_path)
