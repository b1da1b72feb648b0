"""`elma compress table`: model folders side by side, a row each.

Input: model folders and a question file. Output: a Markdown table on stdout and, on request, in a
document; a JSON file of the rows. Neighbours: `cloud_worker.compress.table` measures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elma.options import EngineOption, PrecisionOption
from elma.output import JsonOption, print_json, print_status


def register(app: typer.Typer) -> None:
    """Add the verb to `elma compress`."""
    app.command("table", short_help="Measure model folders side by side.")(table)


def table(
    models: Annotated[list[str], typer.Argument(help="Model folders, a row each, in this order.")],
    data: Annotated[Path, typer.Option(help="SQuAD JSON; the report half of it is measured.")],
    rows_file: Annotated[
        Path, typer.Option("--rows", help="JSON of rows; those that stand there are kept.")
    ] = Path("compression_table.json"),
    write: Annotated[
        Path | None, typer.Option(help="A document to put the table into, between its markers.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Fit exits where a folder has none of its own."),
    ] = False,
    timed_questions: Annotated[int, typer.Option(min=1, help="Asked one at a time.")] = 100,
    limit: Annotated[int, typer.Option(min=0, help="Questions of each half; 0 takes all.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the reader.")] = 1,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure model folders side by side: F1, bytes, memory, time, mean exit layer.

    Each row takes some minutes in a process of its own; an interrupted run goes on where it was.
    """
    from cloud_worker.compress import table as rows_of
    from cloud_worker.compress.measuring import RowRequest
    from reader.weights import resolve_model_folder

    known, rows = rows_of.read_rows(rows_file), []
    for number, model in enumerate(models, start=1):
        folder = str(resolve_model_folder(model))
        request = RowRequest(
            folder, str(data), calibrate, timed_questions, limit, threads, engine, precision
        )
        row = rows_of.find_row(known, request)
        if row is None:
            print_status(f"{number} of {len(models)}: {folder}")
            row = rows_of.measure_in_a_process(request)
            known = [*known, row]
            rows_of.write_rows(rows_file, known)
        rows.append(row)
    if write is not None:
        rows_of.write_between_markers(write, rows_of.markdown(rows))
    if as_json:
        print_json({"rows": rows})
    else:
        typer.echo(rows_of.markdown(rows))
