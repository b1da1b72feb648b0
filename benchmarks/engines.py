"""Every engine in every precision on one machine: time of all layers, distance to float32, memory.

In: a model folder and a number of threads. Out: a Markdown table, and JSON on request. Each
contestant runs in a process of its own, in turn, several rounds; a round's time is the best of its
repetitions, so that other programs disturb little. Neighbours: `reader.engines.choosing` picks by
what this shows; docs/decisions/0013-engines.md keeps the figures.

    python benchmarks/engines.py --threads 1
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/engines.py --threads 1     # as on a small device
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from reader.engines.choosing import load_engine
from reader.engines.engine import Engine
from reader.errors import EngineError
from reader.states import StateBatch
from reader.weights import resolve_model_folder

CONTESTANTS = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("torch", "int8"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
)
LENGTHS = (96, 160, 256, 384)
QUESTION_TOKENS = 12


def main() -> None:
    """Measure all, or one (as the child of all)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="elma-small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, precision = options.one
        print(json.dumps(measure(engine, precision, options)))
        return
    rows = [_summary(rounds) for rounds in _all_rounds(options) if rounds]
    _print_table(rows)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


def measure(engine: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contestant in this process; times in milliseconds for all layers over one window."""
    folder = resolve_model_folder(options.model)
    try:
        subject = load_engine(folder, engine=engine, precision=precision, threads=options.threads)
    except EngineError as error:
        return {"engine": engine, "precision": precision, "skipped": str(error)}
    times = {
        tokens: _best_milliseconds(subject, _window(subject, tokens), options.repetitions)
        for tokens in LENGTHS
    }
    resident = _resident_megabytes()
    exact = load_engine(folder, engine=engine, precision="fp32", threads=options.threads)
    return {
        "engine": engine,
        "precision": precision,
        "threads": subject.choice.threads,
        "milliseconds": times,
        "distance": _distance(subject, exact),
        "resident_megabytes": resident,
    }


def _all_rounds(options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """For each contestant its rounds, taken in turn with the others."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {each: [] for each in CONTESTANTS}
    for _ in range(options.rounds):
        for contestant in CONTESTANTS:
            arguments = [
                *("--one", *contestant),
                *("--model", options.model, "--threads", str(options.threads)),
                *("--repetitions", str(options.repetitions)),
            ]
            done = subprocess.run(  # noqa: S603 -- this very file, arguments from this process
                [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
            )
            row = json.loads(done.stdout.splitlines()[-1])
            if "skipped" in row:
                print(f"{contestant}: {row['skipped']}", file=sys.stderr)
                continue
            found[contestant].append(row)
    return list(found.values())


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    times = {
        tokens: round(median(each["milliseconds"][str(tokens)] for each in rounds), 2)
        for tokens in LENGTHS
    }
    memory = max(each["resident_megabytes"] for each in rounds)
    return {**rounds[0], "milliseconds": times, "resident_megabytes": memory}


def _print_table(rows: list[dict[str, Any]]) -> None:
    lengths = " | ".join(f"{tokens} tokens, ms" for tokens in LENGTHS)
    print(f"| engine | precision | threads | {lengths} | distance to fp32 | resident, MB |")
    print("|---" * (5 + len(LENGTHS)) + "|")
    for row in rows:
        times = " | ".join(f"{row['milliseconds'][tokens]:.1f}" for tokens in LENGTHS)
        print(
            f"| {row['engine']} | {row['precision']} | {row['threads']} | {times} "
            f"| {row['distance']:.4f} | {row['resident_megabytes']} |"
        )


def _window(engine: Engine, tokens: int) -> StateBatch:
    generator = np.random.default_rng(tokens)
    ids = generator.integers(0, engine.config.vocab_size, tokens).tolist()
    return engine.embed([ids], [QUESTION_TOKENS])


def _best_milliseconds(engine: Engine, batch: StateBatch, repetitions: int) -> float:
    engine.run(batch, 0, engine.config.layers)  # compiles the shapes
    best = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        engine.run(batch, 0, engine.config.layers)
        best = min(best, time.perf_counter() - started)
    return best * 1000


def _distance(engine: Engine, exact: Engine) -> float:
    """Root mean square of the difference in last states, over that of the states."""
    last = engine.config.layers
    found, wanted = (
        each.states(each.run(_window(each, 160), 0, last))[0] for each in (engine, exact)
    )
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def _resident_megabytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise OSError("/proc/self/status names no VmRSS; this benchmark needs Linux")


if __name__ == "__main__":
    main()
