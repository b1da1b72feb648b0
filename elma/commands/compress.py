"""`elma compress`: a model folder in, a smaller or faster one out.

Each step writes a new folder with `compression.json` (what was asked for, bytes, zeros and shapes
before and after; the list grows from step to step), so steps compose: the folder of one is the
model of the next. The steps that train are in `compress_training`, the comparison of folders is in
`compress_table`. Neighbours: `cloud_worker.compress.steps` does the work.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from elma.commands import compress_table, compress_training
from elma.commands.compress_result import print_step
from elma.commands.training_options import (
    ModelOutOption,
    SeedOption,
    TorchThreadsOption,
    use_threads,
)
from elma.options import ModelArgument
from elma.output import JsonOption
from elma.progress import progress_bar

app = typer.Typer(
    help="Make a model smaller or faster: each step writes a new folder with its report.",
    no_args_is_help=True,
)
TextOption = Annotated[
    list[str] | None,
    typer.Option(help="SQuAD JSON with training questions for the step to look at; repeatable."),
]
WindowsOption = Annotated[int, typer.Option(min=1, help="How many windows of that text.")]


class Precision(StrEnum):
    """How weights lie on disk; the first three load in transformers."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    SPARSE_INT8 = "sparse-int8"
    SPARSE_FLOAT16 = "sparse-float16"


@app.command("precision", short_help="Store weights in fewer bits: float16, int8, int4, sparse.")
def precision(
    model: ModelArgument,
    out: ModelOutOption,
    to: Annotated[Precision, typer.Option(help="How to store the weights.")],
    frequent_words: Annotated[
        int,
        typer.Option(min=0, help="Only so many words get int4 embeddings, others 1 bit; 0: all."),
    ] = 0,
    text: TextOption = None,
    windows: WindowsOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Store weights in fewer bits; seconds, or a minute with --text.

    int8, int4 and sparse keep word embeddings in int4. --text lets int4 round so that errors make
    up for each other (GPTQ), which costs a third of plain rounding's loss. sparse stores zeros in
    one bit: for folders of `prune --structure weights`.
    """
    from cloud_worker.compress.steps import change_precision
    from cloud_worker.compress.text import TextSettings

    with progress_bar("reading text") as progress:
        record = change_precision(
            model,
            out,
            storage=to.value,
            frequent_words=frequent_words,
            text=TextSettings(tuple(text or ()), windows),
            progress=progress,
        )
    print_step(out, record, as_json)


@app.command("factorise", short_help="Narrow the word embeddings (ALBERT's factorisation).")
def factorise(
    model: ModelArgument,
    out: ModelOutOption,
    width: Annotated[int, typer.Option(min=2, help="Width of the word embeddings from now on.")],
    text: TextOption = None,
    windows: WindowsOption = 2000,
    as_json: JsonOption = False,
) -> None:
    """Narrow the word embeddings by their principal components (ALBERT's factorised embedding).

    --text says which words are frequent and fits the mapping to the hidden width; without it all
    words count the same, and the loss is far greater. `distill` afterwards gets most of it back.
    """
    from cloud_worker.compress.steps import narrow_embeddings
    from cloud_worker.compress.text import TextSettings

    settings = TextSettings(tuple(text or ()), windows)
    print_step(out, narrow_embeddings(model, out, width=width, text=settings), as_json)


@app.command("bottleneck", short_help="Learn the state codec that sends a tenth of the bytes.")
def bottleneck(
    model: ModelArgument,
    out: ModelOutOption,
    data: Annotated[list[str], typer.Option(help="SQuAD JSON to learn from; repeatable.")],
    layer: Annotated[
        list[int] | None,
        typer.Option(help="Where a device hands over; repeatable. Default: the exits' own layer."),
    ] = None,
    windows: WindowsOption = 1500,
    steps: Annotated[int, typer.Option(min=0, help="Of distillation; 0 keeps the start.")] = 200,
    threads: TorchThreadsOption = 0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Learn narrow projections for the states that a device hands over (the `bottleneck` codec).

    The reader's own answers do not change.
    """
    from cloud_worker.compress.steps import add_bottleneck
    from cloud_worker.training.bottleneck import BottleneckSettings

    use_threads(threads)
    settings = BottleneckSettings(
        data=tuple(data), layers=tuple(layer or ()), windows=windows, steps=steps, seed=seed
    )
    with progress_bar("distilling", "steps") as progress:
        record = add_bottleneck(model, out, settings, progress=progress)
    print_step(out, record, as_json)


compress_training.register(app)
compress_table.register(app)
