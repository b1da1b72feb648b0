"""`elma ask`: one question, answered by a running edge agent or, without one, in this process.

Input: a question and a passage. Output: the answer on stdout, or with `--json` the answer's JSON
exactly as the edge agent's HTTP interface gives it. Neighbours: `elma.asking` does the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elma.options import MODEL_HELP, EngineOption, PrecisionOption
from elma.output import CommandError, JsonOption, print_json, print_status


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("ask")(ask)


def ask(
    context_of_call: typer.Context,
    question: Annotated[str, typer.Argument(help="The question, in words.")],
    file: Annotated[
        Path | None, typer.Option(help="UTF-8 file with the passage; - reads standard input.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="The passage itself.")] = None,
    edge: Annotated[
        str | None,
        typer.Option(envvar="ELMA_EDGE_URL", help="Ask the edge agent at this URL and no other."),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Answer in this process, without an agent.")
    ] = False,
    model: Annotated[
        str, typer.Option(envvar="ELMA_MODEL", help=f"For --local. {MODEL_HELP}")
    ] = "elma-small",
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    top_k: Annotated[int, typer.Option(min=1, max=20, help="How many answers.")] = 1,
    deadline_seconds: Annotated[
        float | None, typer.Option(min=0.001, help="How long to wait; the agent's own if absent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about a passage.

    Without --edge and --local the agent on this machine is asked; if there is none, the answer is
    found in this process, and stderr says so.
    """
    from elma.asking import DEFAULT_EDGE_URL, Asked, NoEdgeThere, ask_edge, ask_here

    if local and edge is not None:
        raise CommandError("--local and --edge exclude each other; give one", exit_status=2)
    if not local:
        _refuse_local_options(context_of_call)

    def answer_here() -> dict[str, Any]:
        return ask_here(asked, model, engine=engine, precision=precision)

    asked = Asked(question, _read_passage(file, context), top_k, deadline_seconds)
    if local:
        answer = answer_here()
    elif edge is not None:
        answer = ask_edge(asked, edge)
    else:
        try:
            answer = ask_edge(asked, DEFAULT_EDGE_URL)
        except NoEdgeThere:
            print_status(f"no edge agent at {DEFAULT_EDGE_URL}; answering in this process")
            answer = answer_here()
    if as_json:
        print_json(answer)
    else:
        _print_answer(answer)


def _refuse_local_options(call: typer.Context) -> None:
    """An agent answers with its own model; what only this process heeds must not look heeded.

    From the environment they are for those calls that are local.
    """
    for name in ("model", "engine", "precision"):
        source = call.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise CommandError(
                f"--{name} is for --local: an edge agent answers with its own; "
                f"add --local, or leave --{name} out",
                exit_status=2,
            )


def _read_passage(file: Path | None, context: str | None) -> str:
    if (file is None) == (context is None):
        raise CommandError("give the passage by --file or by --context", exit_status=2)
    if context is not None:
        return context
    assert file is not None  # noqa: S101 - for the type checker; the line above made sure
    try:
        data = typer.get_binary_stream("stdin").read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise CommandError(f"passage {file}: {error.strerror}", exit_status=2) from error
    except UnicodeDecodeError as error:
        raise CommandError(
            f"passage {file} is not UTF-8 (byte {error.start}); convert it first", exit_status=2
        ) from error


def _print_answer(answer: dict[str, Any]) -> None:
    for found in answer.get("answers") or [answer]:
        text = " ".join(found["answer"].split()) or "(no answer in this passage)"
        typer.echo(f"{text}    {found['score']:.0%}" if "answers" in answer else text)
    print_status(
        f"score {answer['score']:.0%}, exit after layer {answer['exit_layer']}, resolved by "
        f"{answer['resolved_by']}{' (degraded)' if answer['degraded'] else ''}, "
        f"{answer['latency_ms']:.0f} ms, {answer['bytes_sent']} bytes sent"
    )
