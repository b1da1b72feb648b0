"""`elma errors`: what devices got wrong, as far as the cloud can tell.

    elma errors export kitchen.sqlite3 hall.sqlite3 --squad errors.json      for the next training
    elma errors export kitchen.sqlite3 --audit kitchen.jsonl                 for elma calibrate
    elma errors show kitchen.sqlite3

Inputs: audit files of devices (`edge_agent.audit_store`), also while their agents run. Outputs: the
disagreements as a question file in SQuAD 2.0's layout, numbers without any text for a calibration,
or a table. Neighbours: the agent's audits write the files, `elma train` and
`elma calibrate --from-audit` read what is exported.

The truth of the question file is the answer of full depth, not of a person: it teaches the early
exits what the last layer knows, and its mistakes as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.output import CommandError, JsonOption, print_json, print_status, print_table

if TYPE_CHECKING:
    from edge_agent.audit_store import StoredAudit

app = typer.Typer(
    help="Show and export where devices and the cloud disagreed.", no_args_is_help=True
)

StoresArgument = Annotated[list[Path], typer.Argument(help="Audit files (audit.store_file).")]


@app.command()
def export(
    stores: StoresArgument,
    squad: Annotated[
        Path | None,
        typer.Option(help="Write the disagreements here, SQuAD 2.0 JSON; needs audit.keep_text."),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="Write every comparison here, a line of JSON each, without any text."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write disagreements for a training, or all comparisons for a calibration."""
    if squad is None and audit is None:
        raise CommandError("give --squad or --audit, or both", exit_status=2)
    report: dict[str, Any] = {"stores": [str(store) for store in stores]}
    if audit is not None:
        report |= {"audit_file": str(audit), "records": _write_audit(_all(stores), audit)}
    if squad is not None:
        report |= {"squad_file": str(squad), **_write_squad(_all(stores), squad)}
    if as_json:
        print_json(report)
    if audit is not None:
        print_status(f"wrote {report['records']} records to {audit}; they hold no text")
    if squad is not None:
        print_status(
            f"wrote {report['questions']} questions to {squad}, in clear; "
            f"{report['without_text']} disagreements had no text, {report['repeated']} came twice"
        )


@app.command()
def show(stores: StoresArgument, as_json: JsonOption = False) -> None:
    """How often devices agreed with full depth, by release, kind and exit layer."""
    counts: dict[tuple[str, str, int], list[float]] = {}
    for stored in _all(stores):
        record = stored.record
        key = record.release, record.kind, record.exit_layer
        count = counts.setdefault(key, [0, 0, 0.0])
        count[0] += record.agreed
        count[1] += 1
        count[2] += record.weight
    rows = [
        {
            "release": release,
            "kind": kind,
            "exit_layer": layer,
            "compared": int(total),
            "agreed": int(agreed),
            "stands_for": round(weight, 1),
        }
        for (release, kind, layer), (agreed, total, weight) in sorted(counts.items())
    ]
    if as_json:
        print_json({"agreement": rows})
        return
    columns = ("release", "kind", "exit layer", "compared", "agreed", "stand for")
    cells = [[str(row["release"])[:12], *list(row.values())[1:]] for row in rows]
    print_table(columns, cells, "Answers of devices against full depth")


def _all(stores: Iterable[Path]) -> Iterator[StoredAudit]:
    from edge_agent.audit_store import AuditStoreError, read_audits

    for store in stores:
        try:
            yield from read_audits(store)
        except AuditStoreError as error:
            raise CommandError(str(error), exit_status=2) from error


def _write_audit(audits: Iterable[StoredAudit], path: Path) -> int:
    from reader.exit_traces import encode_record

    lines = [encode_record(stored.record) + "\n" for stored in audits]
    _write_private(path, "".join(lines))
    return len(lines)


def _write_squad(audits: Iterable[StoredAudit], path: Path) -> dict[str, int]:
    """Disagreements by passage; of a question that came twice, the later answer."""
    questions: dict[str, tuple[str, dict[str, Any]]] = {}
    without_text = repeated = 0
    for stored in audits:
        if stored.record.agreed:
            continue
        if stored.text is None:
            without_text += 1
            continue
        passage, question = stored.text.passage, stored.text.question
        start, end = stored.record.answer
        identifier = hashlib.sha256(f"{passage}\0{question}".encode()).hexdigest()[:24]
        repeated += identifier in questions
        questions[identifier] = (
            passage,
            {
                "id": identifier,
                "question": question,
                "is_impossible": start < 0,
                "answers": [{"text": passage[start:end], "answer_start": start}]
                if start >= 0
                else [],
            },
        )
    if not questions:
        reason = " (the devices did not keep text: audit.keep_text)" if without_text else ""
        raise CommandError(f"there is no disagreement with its text in these files{reason}")
    _write_private(path, json.dumps(_squad_document(questions.values()), ensure_ascii=False))
    return {"questions": len(questions), "without_text": without_text, "repeated": repeated}


def _squad_document(questions: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """SQuAD 2.0's layout; each passage is an article of its own."""
    passages: dict[str, list[dict[str, Any]]] = {}
    for passage, question in questions:
        passages.setdefault(passage, []).append(question)
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"passage {hashlib.sha256(passage.encode()).hexdigest()[:12]}",
                "paragraphs": [{"context": passage, "qas": asked}],
            }
            for passage, asked in passages.items()
        ],
    }


def _write_private(path: Path, text: str) -> None:
    """Write a file for its owner only: whole, or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        with suppress(FileNotFoundError):
            part.unlink()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise CommandError(f"cannot write {path}: {error.strerror}; name another file") from error
