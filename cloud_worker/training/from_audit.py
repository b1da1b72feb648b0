"""Chooses exit thresholds from what devices compared in the field, without any text or gold answer.

Input: audit files (`reader.exit_traces.AuditRecord`, a line each) and the settings of the release
that made them. Output: the same settings with other exit thresholds for the device's layers, and
what is promised of them. Neighbours: `elma errors export` wrote the files, `policies` orders the
candidates, `audit_arrays` replays them, `bounds` tests them, `elma calibrate --from-audit` writes
the result.

The target is agreement with full depth: a question is lost when the device's answer is not, to the
character, that of the last layer. Whether that one is right nobody knows here, so no-answer
thresholds, temperatures and score maps stay as `calibration` chose them, and a release whose last
layer has become wrong is not found out this way.

As in `calibration`: a family of policies from careful to bold, tested in that order until the
upper bound on the mean loss passes `max_disagreement`, or that over the questions to which full
depth has an answer, three times that; an exit that rarely finds what full depth finds may not stop.

What the records stand for. Devices keep all that they offload and a sample of the rest, so each
record has a weight (1 and 1 / rate), and all means here are weighted. The bound is one for such
samples (`bounds.weighted_bound_holds`): of a rare sample, few records speak for many questions, and
what counts is how many confident answers were sampled. Half of the records orders the candidates
and the other half tests them: ordered and tested on the same, a fifth of the promises made from
few sampled answers did not hold. The bound holds for questions drawn independently from what these
devices are asked; tomorrow's may be others than yesterday's.

Shapes: see `audit_arrays`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cloud_worker.training.audit_arrays import AuditArrays
from cloud_worker.training.bounds import (
    SHUFFLE_SEED,
    last_certified,
    weighted_bound_holds,
    weighted_upper_bound,
)
from cloud_worker.training.calibration import (
    ALWAYS_STOP,
    LEAST_SHARE_OF_LAST_EXIT,
    NEVER_STOP,
)
from cloud_worker.training.measuring_errors import CalibrationError
from cloud_worker.training.policies import equal_loss_family, exit_layers
from cloud_worker.training.squad_metrics import BoolArray, FloatArray
from reader.exit_traces import AuditRecord, decode_record
from reader.exits import ExitSettings

HAS_ANSWER_FACTOR = 3.0


@dataclass(frozen=True)
class Wanted:
    """What the new thresholds must keep.

    `max_disagreement`: percent of the questions whose answer may differ from full depth's; three
    times that among those that full depth answers. `edge_layers`: the layers to choose thresholds
    for; None takes as many as most records have.
    """

    max_disagreement: float
    confidence: float
    edge_layers: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise CalibrationError(
                f"the confidence is {self.confidence}; give one between 0 and 1, such as 0.9"
            )
        if not 0.0 < self.max_disagreement < 100.0:
            raise CalibrationError(
                f"the disagreement is {self.max_disagreement}; give a percentage, such as 5"
            )


@dataclass(frozen=True)
class PolicyFigures:
    """What one set of thresholds does with the recorded questions; percent, weighted.

    The bounds are upper ones at the wanted confidence. `share_on_device` is of questions that no
    window of leaves it; `mean_exit_layer` counts the last layer for the others.
    """

    disagreement: float
    disagreement_bound: float
    has_answer_disagreement: float
    has_answer_bound: float
    share_on_device: float
    mean_exit_layer: float


@dataclass(frozen=True)
class Proposal:
    """The proposed settings, and figures of the old and the new ones on the same records."""

    settings: ExitSettings
    records: int
    sampled: int  # of them, confident answers that were sampled
    questions: float  # that they stand for
    left_out: int  # records of other releases, or of devices with fewer layers
    edge_layers: int
    before: PolicyFigures  # on all of them: the old thresholds did not depend on any
    after: PolicyFigures  # on the half that tested


def read_audit_files(paths: Iterable[Path]) -> list[AuditRecord]:
    """Every record of every file. Raises `CalibrationError` that names file and line."""
    records: list[AuditRecord] = []
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        records.append(_decoded(path, number, line))
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(
                f"audit file {path} cannot be read ({error}); "
                "`elma errors export --audit FILE` writes one"
            ) from error
    return records


def propose(
    records: Sequence[AuditRecord], release: str, settings: ExitSettings, wanted: Wanted
) -> Proposal:
    """The boldest thresholds that keep what is wanted on the records of one release.

    Falls back to never exiting early where none does. Raises `CalibrationError` when there are too
    few records to show anything.
    """
    usable, edge_layers = _usable(records, release, settings, wanted)
    tuning, audit = (AuditArrays.of(part, settings, edge_layers) for part in _halves(usable))
    _refuse_too_few(audit, wanted)
    may_stop = _exits_that_find(tuning)
    family = [
        np.where(may_stop, thresholds, -np.inf)
        for thresholds in equal_loss_family(
            tuning.uncertainty, _window_losses(tuning), weights=tuning.window_weights
        )
    ]

    def is_refused(thresholds: FloatArray) -> float:
        return 0.0 if _holds(audit, audit.losses(thresholds), wanted) else 1.0

    found = last_certified(family, is_refused, 0.5)
    chosen = family[0] if found is None else found[0]
    device = np.clip(chosen[:-1], NEVER_STOP, ALWAYS_STOP).tolist()
    old = np.array([*settings.exit_thresholds[:edge_layers], np.inf])
    everything = AuditArrays.of(usable, settings, edge_layers)
    layers = len(settings.exit_thresholds)
    return Proposal(
        settings=replace(
            settings, exit_thresholds=(*device, *settings.exit_thresholds[edge_layers:])
        ),
        records=len(usable),
        sampled=sum(record.kind == "audit" for record in usable),
        questions=float(everything.weights.sum()),
        left_out=len(records) - len(usable),
        edge_layers=edge_layers,
        before=_figures(everything, old, wanted, layers),
        after=_figures(audit, chosen, wanted, layers),
    )


def _decoded(path: Path, number: int, line: str) -> AuditRecord:
    try:
        return decode_record(line)
    except ValueError as error:
        raise CalibrationError(
            f"audit file {path}, line {number}: {error}; export it again "
            "(elma errors export --audit)"
        ) from error


def _usable(
    records: Sequence[AuditRecord], release: str, settings: ExitSettings, wanted: Wanted
) -> tuple[list[AuditRecord], int]:
    """The records that speak of this release's exits, and how many exits they have."""
    mine = [record for record in records if record.release == release]
    if not mine:
        others = ", ".join(sorted({record.release[:12] for record in records})) or "none"
        raise CalibrationError(
            f"no record is of release {release[:12]} (there are: {others}); "
            "name the model that the devices ran"
        )
    layers = len(settings.exit_thresholds)
    depths = Counter(record.depth for record in mine)
    edge_layers = wanted.edge_layers or depths.most_common(1)[0][0]
    if not 1 <= edge_layers < layers:
        raise CalibrationError(
            f"the device's layers are {edge_layers}; this reader has exits 1..{layers - 1} to set"
        )
    usable = [record for record in mine if record.depth >= edge_layers]
    if not usable:
        raise CalibrationError(
            f"no record has {edge_layers} exits, at most {max(depths)}; lower --max-edge-layers"
        )
    stops_early = any(value >= 0.0 for value in settings.exit_thresholds[:edge_layers])
    if stops_early and not any(record.kind == "audit" for record in usable):
        raise CalibrationError(
            "no confident answer was sampled, so nothing is known of the questions that stayed on "
            "the device; set `rate` in the table [audit] of the devices above 0"
        )
    if any(window.final.layer > layers for record in usable for window in record.windows):
        raise CalibrationError("a record names a layer that this reader does not have")
    return usable, edge_layers


def _halves(records: Sequence[AuditRecord]) -> tuple[list[AuditRecord], list[AuditRecord]]:
    """Two halves with as many records of each kind, dealt by chance with a fixed seed."""
    halves: tuple[list[AuditRecord], list[AuditRecord]] = ([], [])
    for kind in ("audit", "offload"):
        of_kind = [record for record in records if record.kind == kind]
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(of_kind)).tolist()
        for place, number in enumerate(order):
            halves[place % 2].append(of_kind[number])
    return halves


def _refuse_too_few(audit: AuditArrays, wanted: Wanted) -> None:
    """Raises when not even records without any disagreement could show what is wanted."""
    limit = wanted.max_disagreement / 100.0
    everyone = np.ones(len(audit.weights), dtype=np.bool_)
    for what, chosen, allowed in (
        ("records", everyone, limit),
        ("records to which full depth has an answer", audit.has_answer, HAS_ANSWER_FACTOR * limit),
    ):
        weights = audit.weights[chosen]
        if allowed >= 1.0 or (what != "records" and not len(weights)):
            continue
        best = weighted_upper_bound(np.zeros(len(weights)), weights, confidence=wanted.confidence)
        if best > allowed:
            more = int(np.ceil(3.0 * len(weights) * best / allowed))
            raise CalibrationError(
                f"{2 * len(weights)} {what} are too few: even if all agreed, the half of them that "
                f"tests would only show that at most {100 * best:.1f} % differ from full depth, "
                f"and {100 * allowed:g} % is wanted; collect about {more}, sample more "
                "(audit.rate), or allow more (--max-disagreement)"
            )


def _exits_that_find(audit: AuditArrays) -> BoolArray:
    """[E + 1] whether an exit may stop: forced to answer, it finds what full depth answers often
    enough. Its certainty of "no answer" would otherwise come from not having read yet."""
    answered = audit.has_answer
    if not answered.any():
        return np.ones(audit.uncertainty.shape[1], dtype=np.bool_)
    unforced = replace(audit, null_scores=np.full_like(audit.null_scores, -np.inf))
    windows = len(audit.uncertainty)
    weights = audit.weights[answered]
    found = [
        float(((1 - unforced.losses_at(np.full(windows, k)))[answered] * weights).sum())
        / float(weights.sum())
        for k in range(audit.uncertainty.shape[1])
    ]
    return np.array([share >= LEAST_SHARE_OF_LAST_EXIT for share in found])


def _window_losses(audit: AuditArrays) -> FloatArray:
    """[W, E + 1] what its question loses when all its windows stop at a column."""
    windows, columns = audit.uncertainty.shape
    losses = np.stack([audit.losses_at(np.full(windows, k)) for k in range(columns)], axis=1)
    counts = np.diff(audit.first_window, append=windows)
    return np.repeat(losses, counts, axis=0)


def _holds(audit: AuditArrays, losses: FloatArray, wanted: Wanted) -> bool:
    """Whether both bounds hold. Each test alone holds at the confidence, so passing both does."""
    limit = wanted.max_disagreement / 100.0
    if not weighted_bound_holds(losses, audit.weights, limit, confidence=wanted.confidence):
        return False
    answered, allowed = audit.has_answer, HAS_ANSWER_FACTOR * limit
    if not answered.any() or allowed >= 1.0:
        return True
    return weighted_bound_holds(
        losses[answered], audit.weights[answered], allowed, confidence=wanted.confidence
    )


def _figures(
    audit: AuditArrays, thresholds: FloatArray, wanted: Wanted, layers: int
) -> PolicyFigures:
    columns = exit_layers(audit.uncertainty, thresholds) - 1
    losses, weights, answered = audit.losses_at(columns), audit.weights, audit.has_answer
    deepest = np.maximum.reduceat(columns, audit.first_window)  # [N]
    last = audit.uncertainty.shape[1] - 1
    ran = np.where(deepest < last, deepest + 1, layers)
    part, bound = 0.0, 0.0
    if answered.any():
        part = float(np.average(losses[answered], weights=weights[answered]))
        bound = weighted_upper_bound(
            losses[answered], weights[answered], confidence=wanted.confidence
        )
    whole = weighted_upper_bound(losses, weights, confidence=wanted.confidence)
    return PolicyFigures(
        disagreement=100.0 * float(np.average(losses, weights=weights)),
        disagreement_bound=100.0 * whole,
        has_answer_disagreement=100.0 * part,
        has_answer_bound=100.0 * bound,
        share_on_device=100.0 * float(np.average(deepest < last, weights=weights)),
        mean_exit_layer=float(np.average(ran, weights=weights)),
    )
