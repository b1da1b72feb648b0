"""How measurements of a reader look on the terminal, for `elma evaluate` and `elma calibrate`.

In: the reports that the verbs print as JSON otherwise. Out: tables and sentences on stdout.
Neighbours: `cloud_worker.training` measures, `elma.output` draws tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from elma.output import print_table
from elma.question_halves import Half

if TYPE_CHECKING:
    from cloud_worker.training.codec_evaluation import CodecTable

_METRIC_COLUMNS = ("F1", "exact", "HasAns F1", "HasAns exact", "NoAns F1")


def print_evaluation(report: dict[str, Any]) -> None:
    """Every exit, the policy, and the policy with a worker behind it: a row each."""
    policy = report["policy"]
    rows: list[list[object]] = [
        [f"exit {metrics['layer']}", *_metric_cells(metrics), f"{metrics['layer']:.2f}"]
        for metrics in report["exits"]
    ]
    rows.append(["policy", *_metric_cells(policy), f"{policy['mean_exit_layer']:.2f}"])
    helped = report["with_worker"]
    rows.append(["with a worker", *_metric_cells(helped), f"{helped['mean_layers_run']:.2f}"])
    title = (
        f"{report['model']} on {report['data']} ({report['half']}): "
        f"{report['questions']} questions in {report['seconds']:.0f} s"
    )
    print_table(("", *_METRIC_COLUMNS, "mean layer"), rows, title)
    histogram = ", ".join(f"{layer}: {n}" for layer, n in policy["exit_histogram"].items() if n)
    typer.echo(f"criterion {policy['criterion']}; questions by exit layer: {histogram}")
    typer.echo(
        f"answered on the device (at most {policy['max_edge_layers']} layers): "
        f"{100 * policy['edge_share']:.1f} %"
    )


def print_codecs(table: CodecTable, edge_layers: int) -> None:
    """What each state codec costs and loses: a row each."""
    rows: list[list[object]] = [
        [
            row.codec,
            f"{row.f1:.2f}",
            f"{row.f1_loss:+.2f}",
            row.changed,
            f"{row.bytes_a_question:,.0f}",
            f"{row.bytes_a_token:.1f}",
        ]
        for row in table.rows
    ]
    columns = ("codec", "F1", "loss", "other answers", "bytes a question", "a token")
    title = (
        f"{table.questions} questions handed over after layer {edge_layers} "
        f"({table.windows} windows, {table.tokens} tokens)"
    )
    print_table(columns, rows, title)


def print_calibration(report: dict[str, Any]) -> None:
    """Both halves at full depth and by policy, and what was promised of the policy."""
    rows: list[list[object]] = []
    for half in (Half.CALIBRATION.value, Half.REPORT.value):
        full, policy = report[half]["full_depth"], report[half]["policy"]
        layers = len(report["settings"]["exit_thresholds"])
        errors = report[half]["calibration_error"]
        rows.append(
            [f"{half}: full depth", *_metric_cells(full), f"{layers:.2f}", "", "",
             f"{errors['full_depth_before']:.3f} > {errors['full_depth_after']:.3f}"]
        )  # fmt: skip
        rows.append(
            [f"{half}: policy", *_metric_cells(policy), f"{policy['mean_exit_layer']:.2f}",
             f"{report[half]['f1_drop']:.2f} (< {report[half]['f1_drop_bound']:.2f})",
             f"{100 * policy['edge_share']:.1f} %",
             f"{errors['policy_before']:.3f} > {errors['policy_after']:.3f}"]
        )  # fmt: skip
    columns = ("", *_METRIC_COLUMNS, "mean layer", "F1 drop (bound)", "on device", "ECE")
    print_table(columns, rows, f"{report['model']} on {report['data']}")
    promise = report["certificate"]
    tuned = "tuned on other articles" if promise["own_tuning_questions"] else "tuned on the same"
    typer.echo(
        f"criterion {promise['criterion']}: F1 drop at most {promise['f1_drop_bound']:.2f} "
        f"(wanted {promise['max_f1_drop']:.2f}), on answerable questions "
        f"{promise['has_answer_drop_bound']:.2f} (wanted {promise['max_has_answer_drop']:.2f}), "
        f"with confidence {promise['confidence']:.2f}, "
        f"tested on {promise['questions']} questions, {tuned}"
    )


def _metric_cells(metrics: dict[str, Any]) -> list[str]:
    """The cells of a table row under `_METRIC_COLUMNS`."""
    names = ("f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_f1")
    return [f"{metrics[name]:.2f}" if name in metrics else "" for name in names]
