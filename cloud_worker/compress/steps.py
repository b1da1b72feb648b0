"""The steps of `elma compress`: each reads a model folder and writes a new one with its report.

In: a folder and the step's settings. Out: a folder that can be evaluated, calibrated, shipped or
compressed further like any other. Neighbours: `elma.commands.compress` calls these; `rounding`,
`factorising` and `cloud_worker.training` do the work.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloud_worker.compress.factorising import narrow
from cloud_worker.compress.report import (
    EXITS_COPIED,
    EXITS_HOLD,
    EXITS_MISSING,
    FolderFacts,
    StepRecord,
    read_steps,
    without_paths,
    write_report,
)
from cloud_worker.compress.text import TextSettings, count_words, read_windows
from cloud_worker.training.settings import TrainSettings
from reader.arrays import FloatArray
from reader.bottleneck import BOTTLENECK_FILE
from reader.encodings import GROUP_COLUMNS
from reader.exits import SETTINGS_FILE, ExitSettings
from reader.model_writer import write_model
from reader.storage import STORAGE_FORMATS, StorageFormat, StoredTensor, encode_mixed_rows
from reader.weights import DIGESTED_FILES, ModelTensors, load_config, resolve_model_folder

if TYPE_CHECKING:
    from cloud_worker.training.bottleneck import BottleneckSettings

Progress = Callable[[int, int], None]
BOTTLENECK = "bottleneck"
WORDS = "embeddings.word.weight"


class CompressionError(Exception):
    """A step cannot be done as it was asked for; the message says what to change."""


@dataclass(frozen=True)
class _Step:
    """The two folders of a step, and what it measured on the way."""

    source: Path
    out: Path
    measured: list[dict[str, Any]] = field(default_factory=list)


def change_precision(
    model: str,
    out: Path,
    *,
    storage: str,
    frequent_words: int = 0,
    text: TextSettings,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Store a model in another precision (a name of `STORAGE_FORMATS`); returns the step's record.

    int4 with some text rounds so that errors make up for each other (`rounding`); without text,
    and in every other precision, each entry goes to its nearest value. With `frequent_words` (not
    in a plain precision) only so many words, those that the text has most, get int4 embeddings,
    the others a bit an entry. Raises `CompressionError`, `ModelFolderError`.
    """
    if storage not in STORAGE_FORMATS:
        known = ", ".join(STORAGE_FORMATS)
        raise CompressionError(f"precision {storage!r} is not known; use one of {known}")
    chosen = STORAGE_FORMATS[storage]
    if frequent_words and (chosen.plain or not text.data):
        raise CompressionError(
            "frequent words need a packed precision (int8, int4, sparse) and --text to count in"
        )
    settings: dict[str, Any] = {"storage": storage}
    if text.data and (frequent_words or storage == "int4"):
        settings |= {"frequent_words": frequent_words, **asdict(text)}
    with _writing(model, out, "precision", settings) as step:
        opened = ModelTensors.open(step.source)
        tensors = {name: opened.read(name) for name in opened.shapes}
        encoded = _kept_codes(opened, chosen)
        if storage == "int4" and text.data:
            encoded |= _rounded(step.source, tensors, text, progress)
        if frequent_words:
            counts = count_words(step.source, text)
            encoded[WORDS] = _encode_words(tensors[WORDS], counts, frequent_words)
        write_model(
            step.out,
            opened.config,
            tensors,
            tokenizer_from=step.source,
            storage=chosen,
            encoded=encoded,
        )
        if (step.source / BOTTLENECK_FILE).is_file():  # states hardly move
            shutil.copyfile(step.source / BOTTLENECK_FILE, step.out / BOTTLENECK_FILE)
    return read_steps(out)[-1]


def narrow_embeddings(model: str, out: Path, *, width: int, text: TextSettings) -> dict[str, Any]:
    """Narrow the word embeddings to `width` (`factorising`); text says which words matter."""
    settings = {"width": width, **asdict(text)}
    with _writing(model, out, "factorise", settings) as step:
        opened = ModelTensors.open(step.source)
        if not 2 <= width <= opened.config.embedding_size:
            raise CompressionError(
                f"--width {width} is outside 2..{opened.config.embedding_size}, "
                "the width of the embeddings now"
            )
        tensors = {name: opened.read(name) for name in opened.shapes}
        windows = read_windows(step.source, text) if text.data else []
        counts = count_words(step.source, text) if text.data else np.ones(opened.config.vocab_size)
        tensors.update(narrow(tensors, width, counts, windows))
        config = replace(opened.config, embedding_size=width)
        write_model(step.out, config, tensors, tokenizer_from=step.source)
    return read_steps(out)[-1]


def drop_smallest(model: str, out: Path, *, keep: float) -> dict[str, Any]:
    """Set the smallest entries of every layer matrix to 0, so that a share `keep` is left.

    Magnitude pruning in one shot, without training: a first look at what a model can spare.
    """
    if not 0 < keep <= 1:
        raise CompressionError(f"--keep {keep} is outside 0 < keep <= 1")
    with _writing(model, out, "prune", {"method": "magnitude", "keep": keep, "steps": 0}) as step:
        opened = ModelTensors.open(step.source)
        tensors = {name: opened.read(name) for name in opened.shapes}
        for name, value in tensors.items():
            if name.startswith("groups.") and value.ndim == 2:
                dropped = value.size - round(keep * value.size)
                order = np.abs(value).reshape(-1).argpartition(max(0, dropped - 1))[:dropped]
                value.reshape(-1)[order] = 0
        write_model(step.out, opened.config, tensors, tokenizer_from=step.source)
    return read_steps(out)[-1]


def add_bottleneck(
    model: str,
    out: Path,
    settings: BottleneckSettings,
    *,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Copy a model and learn the `bottleneck` state codec for it; its answers stay what they are.

    Without layers, that of the exits' default, where a device hands over. Raises `TrainingError`.
    """
    from cloud_worker.training.bottleneck import train_bottleneck

    if not settings.layers:
        exits = ExitSettings.load(resolve_model_folder(model))
        if exits is None:
            raise CompressionError(f"{model} has no exits.json to tell a layer; give --layer")
        settings = replace(settings, layers=(exits.default_edge_layers,))
    with _writing(model, out, BOTTLENECK, asdict(settings)) as step:
        out.mkdir(parents=True, exist_ok=True)
        for name in DIGESTED_FILES:
            if (step.source / name).is_file() and name != SETTINGS_FILE:
                shutil.copyfile(step.source / name, out / name)
        reports = train_bottleneck(
            out, settings, progress=lambda done, total, _divergence: progress(done, total)
        )
        step.measured.extend(asdict(report) for report in reports)
    return read_steps(out)[-1]


def train_smaller(
    name: str,
    settings: TrainSettings,
    *,
    resume: bool = False,
    max_seconds: float,
    on_progress: Callable[[Any], None] = lambda _: None,
) -> dict[str, Any]:
    """A step that trains: pruning, spans or distillation, as `settings` say."""
    from cloud_worker.training.trainer import train

    kept = {
        key: value
        for key, value in settings.as_json().items()
        if key in ("data", "teacher", "steps", "epochs", "learning_rate", "seed", "objective")
        or (key in ("pruning", "spans", "distillation") and value is not None)
    }
    out = Path(settings.out)
    with _writing(settings.base, out, name, kept, resume=resume):
        train(settings, resume=resume, max_seconds=max_seconds, on_progress=on_progress)
        if not (out / "config.json").is_file():
            raise CompressionError(f"{out}: training ended before weights were saved; --resume")
    return read_steps(out)[-1]


@contextmanager
def _writing(
    model: str, out: Path, name: str, settings: Mapping[str, Any], *, resume: bool = False
) -> Iterator[_Step]:
    """The frame of every step: find the source, refuse to overwrite, copy exits, report."""
    source = resolve_model_folder(model)
    if source.resolve() == out.resolve() or (
        not resume and out.exists() and (not out.is_dir() or any(out.iterdir()))
    ):
        raise CompressionError(f"{out} exists already; give a new folder with --out")
    earlier, before = read_steps(source), FolderFacts.of(source)
    started = time.monotonic()
    step = _Step(source, out)
    yield step
    seconds = round(time.monotonic() - started, 1)
    exits = _copy_exits(source, out)
    if name == BOTTLENECK and exits == EXITS_COPIED:
        exits = EXITS_HOLD
    after = FolderFacts.of(out)
    record = StepRecord(
        name,
        without_paths(settings),
        source.name,
        seconds,
        before,
        after,
        exits,
        tuple(step.measured),
    )
    write_report(out, earlier, record)


def _copy_exits(source: Path, out: Path) -> str:
    """Take `exits.json` along where it still has the right number of layers."""
    if (out / SETTINGS_FILE).is_file() or not (source / SETTINGS_FILE).is_file():
        return EXITS_MISSING
    if load_config(source).layers != load_config(out).layers:
        return EXITS_MISSING
    shutil.copyfile(source / SETTINGS_FILE, out / SETTINGS_FILE)
    return EXITS_COPIED


def _kept_codes(opened: ModelTensors, wanted: StorageFormat) -> dict[str, StoredTensor]:
    """Tensors that lie on disk in the wanted encoding already: their codes are kept as they are."""
    kept: dict[str, StoredTensor] = {}
    for name in opened.shapes:
        stored = opened.stored(name)
        kind = wanted.embeddings if name == WORDS else wanted.matrices
        if stored is not None and stored.encoding == kind:
            kept[name] = stored
    return kept


def _encode_words(
    words: FloatArray, counts: NDArray[np.float64], frequent_words: int
) -> StoredTensor:
    if not 0 < frequent_words < len(words) or words.shape[1] % GROUP_COLUMNS:
        raise CompressionError(
            f"--frequent-words {frequent_words} must be within 1..{len(words) - 1}, and the "
            f"embeddings' width {words.shape[1]} a multiple of {GROUP_COLUMNS}"
        )
    frequent = np.zeros(len(words), dtype=bool)
    frequent[np.argsort(-counts, kind="stable")[:frequent_words]] = True
    return encode_mixed_rows(words, frequent)


def _rounded(
    source: Path, tensors: dict[str, FloatArray], text: TextSettings, progress: Progress
) -> dict[str, StoredTensor]:
    """Every layer matrix that int4 can hold, rounded; corrects the biases in `tensors`."""
    from cloud_worker.compress.activations import input_statistics
    from cloud_worker.compress.rounding import round_to_int4
    from reader.network_files import load_network

    inputs = input_statistics(load_network(source), read_windows(source, text), progress=progress)
    rounded: dict[str, StoredTensor] = {}
    for name, statistics in inputs.items():
        if tensors[name].size and tensors[name].shape[1] % GROUP_COLUMNS == 0:
            rounded[name], correction = round_to_int4(tensors[name], statistics)
            bias = name.replace(".weight", ".bias")
            tensors[bias] = tensors[bias] + correction
    return rounded
