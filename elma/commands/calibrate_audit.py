"""The second way of `elma calibrate`: thresholds from what devices compared in the field.

Input: a model folder, and audit files of devices that ran it. Output: a new model folder in which
only `exits.json` differs, so that publishing it sends some kilobytes, and a table or JSON of what
was promised. Neighbours: `calibrate` reads the options, `cloud_worker.training.from_audit` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from elma.model_copies import copy_model
from elma.output import CommandError, print_json, print_status, print_table

DEFAULT_MAX_DISAGREEMENT = 5.0


def calibrate_from_audit(
    model: str,
    files: Sequence[Path],
    out: Path,
    *,
    max_disagreement: float | None,
    confidence: float,
    edge_layers: int | None,
    as_json: bool,
) -> None:
    """Propose thresholds, and write the model with them into a folder of its own."""
    from cloud_worker.training.from_audit import Wanted, propose, read_audit_files
    from reader.exits import SETTINGS_FILE, ExitSettings
    from reader.weights import folder_digest, resolve_model_folder

    folder = resolve_model_folder(model)
    settings = ExitSettings.load(folder)
    if settings is None:
        raise CommandError(
            f"{folder} has no {SETTINGS_FILE}; calibrate it with --data first", exit_status=2
        )
    release = folder_digest(folder)
    allowed = DEFAULT_MAX_DISAGREEMENT if max_disagreement is None else max_disagreement
    wanted = Wanted(allowed, confidence, edge_layers)
    proposal = propose(read_audit_files(files), release, settings, wanted)
    copy_model(folder, out)
    proposal.settings.save(out)
    report = {
        "model": folder.name,
        "release": release,
        "new_release": folder_digest(out),
        "settings_file": str(out / SETTINGS_FILE),
        "settings_bytes": (out / SETTINGS_FILE).stat().st_size,
        "max_disagreement": allowed,
        "confidence": confidence,
        **asdict(proposal),
    }
    print_json(report) if as_json else _print_proposal(report)
    before, after = proposal.before, proposal.after
    if before.disagreement_bound <= allowed and before.share_on_device >= after.share_on_device:
        print_status(
            f"warning: the thresholds of now keep {allowed:g} % already and leave as much on the "
            "device; there is nothing to gain by publishing these"
        )
    if proposal.after.share_on_device == 0.0:
        print_status(
            f"warning: {proposal.records} records could not show that any early exit keeps "
            f"disagreement below {allowed:g} %, so nothing would be answered on the "
            "device; collect more, or allow more"
        )
    print_status(f"wrote {out}; only {SETTINGS_FILE} differs from {folder.name}")


def _print_proposal(report: dict[str, Any]) -> None:
    rows = [
        [name, f"{figures['disagreement']:.2f} % (< {figures['disagreement_bound']:.2f})",
         f"{figures['has_answer_disagreement']:.2f} % (< {figures['has_answer_bound']:.2f})",
         f"{figures['share_on_device']:.1f} %", f"{figures['mean_exit_layer']:.2f}"]
        for name, figures in (("now", report["before"]), ("proposed", report["after"]))
    ]  # fmt: skip
    columns = ("", "differs (bound)", "where there is an answer", "on device", "mean layer")
    print_table(columns, rows, f"{report['model']} against its own full depth")
    thresholds = report["settings"]["exit_thresholds"][: report["edge_layers"]]
    typer.echo(f"thresholds: {', '.join(f'{value:.3f}' for value in thresholds)}")
    typer.echo(
        f"from {report['records']} records ({report['sampled']} sampled confident answers, "
        f"{report['left_out']} records left out) that stand for {report['questions']:.0f} "
        f"questions; half of them tested the proposal, with confidence {report['confidence']:.2f}"
    )
