"""Do thresholds from audits keep their promise? Simulated with a real reader on real questions.

In: a model folder and a SQuAD file. Out: a table, and JSON on request. Every question is read once
at all layers. Then, many times over: the questions are split in two by chance, devices answer the
one half (all layers traced, a share of the confident answers sampled, the rest forgotten), new
thresholds are proposed from these records alone, and the other half shows how often the device's
answers then differ from full depth. "broken" counts the splits on which that is more than promised,
the chance of the measuring half included. Neighbours: `cloud_worker.training.from_audit` proposes;
docs/drift.md tells the results.

    python benchmarks/audit_promise.py --data dev.json --json audit-promise.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cloud_worker.training.evaluation import answer_at_exit, answer_questions
from cloud_worker.training.from_audit import Wanted, propose
from cloud_worker.training.measuring_errors import CalibrationError
from cloud_worker.training.policies import exit_layers
from cloud_worker.training.recording import Recording, record
from cloud_worker.training.squad_files import Question, read_squad
from reader.exit_traces import NO_ANSWER, AuditKind, AuditRecord, ExitNote, Finding, WindowRecord
from reader.exits import ExitSettings
from reader.model import Reader

RATES = (1.0, 0.3, 0.1)
LIMITS = (3.0, 5.0, 8.0)
CONFIDENCE = 0.9


def main() -> None:
    """Record once, simulate every rate and limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="elma-small")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    reader = Reader.load(options.model, threads=options.threads)
    whole = record(reader, read_squad(options.data))
    field = Field(whole, reader.settings)
    rows = [field.simulate(rate, limit, options.splits) for limit in LIMITS for rate in RATES]
    print("| promised | rate | sampled | refused | differs: mean, worst | broken | on device |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['limit']:g} % | {row['rate']:g} | {row['sampled']:.0f} | {row['refused']} | "
            f"{row['mean']:.2f} %, {row['worst']:.2f} % | {row['broken']} of {row['proposed']} | "
            f"{row['share']:.1f} % |"
        )
    now = field.differs(whole.questions, reader.settings)
    print(f"thresholds of now: {now[0]:.2f} % differ, {now[1]:.1f} % on the device")
    if options.json:
        document = {"model": reader.name, "questions": len(whole.questions), "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class Field:
    """Devices in the field with one release; every question was read at all layers before."""

    def __init__(self, whole: Recording, settings: ExitSettings) -> None:
        self._whole, self._settings = whole, settings
        self._exits = settings.default_edge_layers
        self._uncertainty = whole.uncertainty_under(settings)
        counts = whole.window_counts
        self._rows = {
            question.id: range(first, first + count)
            for question, first, count in zip(
                whole.questions, whole.first_window, counts, strict=True
            )
        }

    def simulate(self, rate: float, limit: float, splits: int) -> dict[str, Any]:
        """What `splits` proposals from samples of `rate` promise, and keep."""
        found: list[tuple[float, float, float]] = []
        for seed in range(splits):
            random = np.random.default_rng(seed)
            order = random.permutation(len(self._whole.questions)).tolist()
            shuffled = [self._whole.questions[number] for number in order]
            half = len(shuffled) // 2
            records = self.records(shuffled[:half], rate, random)
            try:
                proposal = propose(records, "", self._settings, Wanted(limit, CONFIDENCE))
            except CalibrationError:
                continue
            found.append((*self.differs(shuffled[half:], proposal.settings), proposal.sampled))
        differs, shares, sampled = np.array(found or [(np.nan,) * 3]).T
        return {
            "limit": limit,
            "rate": rate,
            "proposed": len(found),
            "refused": splits - len(found),
            "sampled": float(sampled.mean()),
            "mean": float(differs.mean()),
            "worst": float(differs.max()),
            "broken": int((differs > limit).sum()),
            "share": float(shares.mean()),
        }

    def records(
        self, questions: Sequence[Question], rate: float, random: np.random.Generator
    ) -> list[AuditRecord]:
        """What devices keep of these questions."""
        records = []
        for question in questions:
            rows = self._rows[question.id]
            stops = [self._exit(row) for row in rows]
            kind: AuditKind = "offload" if self._exits + 1 in stops else "audit"
            if kind == "audit" and random.random() >= rate:
                continue
            windows = tuple(
                self._window(row, stop, kind) for row, stop in zip(rows, stops, strict=True)
            )
            weight = 1.0 / rate if kind == "audit" else 1.0
            records.append(AuditRecord(0.0, "", kind, weight, windows, NO_ANSWER, True))
        return records

    def differs(self, questions: Sequence[Question], settings: ExitSettings) -> tuple[float, float]:
        """Percent of answers that are not full depth's, and percent given on the device."""
        whole = self._whole.select(questions)
        thresholds = np.array(settings.exit_thresholds)
        layers = exit_layers(whole.uncertainty_under(settings), thresholds)
        layers = np.where(layers <= self._exits, layers, whole.layers)
        full = answer_at_exit(whole, whole.layers, settings)
        mine = answer_questions(whole, layers, settings)
        differs = (full.answered != mine.answered) | (full.answered & (full.texts != mine.texts))
        on_device = mine.layers <= self._exits
        return 100.0 * float(differs.mean()), 100.0 * float(on_device.mean())

    def _exit(self, row: int) -> int:
        """The layer at which a device stops, one past its last where it hands over."""
        thresholds = self._settings.exit_thresholds[: self._exits]
        stops = (self._uncertainty[row, : self._exits] <= np.array(thresholds)).tolist()
        return 1 + [*stops, True].index(True)

    def _window(self, row: int, stop: int, kind: AuditKind) -> WindowRecord:
        """Of a question that is handed over, a window that had stopped is not run further."""
        is_run_on = kind == "audit" or stop > self._exits
        return WindowRecord(
            tuple(
                ExitNote(float(self._uncertainty[row, layer - 1]), *self._found(row, layer))
                for layer in range(1, self._exits + 1)
            ),
            min(stop, self._exits),
            self._finding(row, self._whole.layers if is_run_on else stop),
        )

    def _finding(self, row: int, layer: int) -> Finding:
        return Finding(layer, *self._found(row, layer))

    def _found(self, row: int, layer: int) -> tuple[float, float, int, int]:
        start, end = self._whole.span_places[row, layer - 1, 0].tolist()
        null = float(self._whole.null_scores[row, layer - 1])
        return null, float(self._whole.span_scores[row, layer - 1, 0]), start, end


if __name__ == "__main__":
    main()
