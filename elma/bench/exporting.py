"""What the peers load: the same weights as a Hugging Face folder, and as ONNX graphs.

In: a model folder of ours. Out, in a folder that is thrown away:

    hugging_face/            float32, as `transformers` saves it
    onnx_fp32/               exported by `torch.onnx` from `AlbertForQuestionAnswering`
    onnx_int8/               `onnxruntime.quantization.quantize_dynamic` with its defaults
    onnx_int8_per_channel/   the same with a scale for each channel, which loses less

Neighbours: `edge` calls it, `contestants` loads the folders.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elma.extras import require_extra

GRAPH_FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class PeerFolders:
    """Where each peer finds its weights; the ONNX folders are None where they were left out."""

    hugging_face: Path
    onnx_fp32: Path | None
    onnx_int8: Path | None
    onnx_int8_per_channel: Path | None


def require_onnx() -> None:
    """Raise `ExtraMissing` (a CommandError) when onnx or ONNX Runtime is not installed."""
    require_extra("onnx", "a comparison with ONNX Runtime (--without-onnx leaves it out)")


def make_peers(model_folder: Path, out: Path, *, with_onnx: bool) -> PeerFolders:
    """Write what the peers load. Raises `ExtraMissing`, `ModelFolderError`."""
    hugging_face = make_hugging_face_folder(model_folder, out / "hugging_face")
    if not with_onnx:
        return PeerFolders(hugging_face, None, None, None)
    require_onnx()
    fp32 = export_graph(hugging_face, out / "onnx_fp32")
    return PeerFolders(
        hugging_face,
        fp32,
        quantise_graph(fp32, out / "onnx_int8"),
        quantise_graph(fp32, out / "onnx_int8_per_channel", per_channel=True),
    )


def make_hugging_face_folder(model_folder: Path, out: Path) -> Path:
    """The weights of any model folder in float32, with what `transformers` wants beside them."""
    from reader.network_files import load_network, save_network
    from reader.storage import FLOAT32

    network = load_network(model_folder)
    save_network(network, out, tokenizer_from=model_folder, storage=FLOAT32)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": network.config.max_positions,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer) + "\n", encoding="utf-8")
    _add_template(out / "tokenizer.json")
    return out


def _add_template(tokenizer_file: Path) -> None:
    """Let a tokenizer put `[CLS]` and `[SEP]` around a pair, where its file leaves that to us."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    if tokenizer.post_processor is not None:
        return
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(tokenizer_file))


def export_graph(hugging_face: Path, out: Path) -> Path:
    """The float32 graph with a free number of windows and tokens."""
    import torch
    from transformers import AlbertForQuestionAnswering
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AlbertForQuestionAnswering.from_pretrained(hugging_face)
    model.train(False)
    example = {name: torch.ones((1, 16), dtype=torch.int64) for name in INPUTS}
    axes: dict[str, dict[int, str]] = {
        name: {0: "windows", 1: "tokens"} for name in (*INPUTS, "start_logits", "end_logits")
    }
    out.mkdir(parents=True, exist_ok=True)
    with _quiet():
        torch.onnx.export(
            _wrap(model),
            tuple(example.values()),
            str(out / GRAPH_FILE),
            input_names=list(INPUTS),
            output_names=["start_logits", "end_logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    shutil.copyfile(hugging_face / "tokenizer.json", out / "tokenizer.json")
    return out


def quantise_graph(fp32: Path, out: Path, *, per_channel: bool = False) -> Path:
    """Dynamic int8 with the defaults of ONNX Runtime, as its own guide shows, or a scale for each
    channel of a matrix instead of one for all."""
    import reader.engines.silent_onnxruntime  # noqa: F401, I001 - before any other import of it
    from onnxruntime.quantization import quantize_dynamic

    out.mkdir(parents=True, exist_ok=True)
    with _quiet():
        quantize_dynamic(fp32 / GRAPH_FILE, out / GRAPH_FILE, per_channel=per_channel)
    shutil.copyfile(fp32 / "tokenizer.json", out / "tokenizer.json")
    return out


def _wrap(model: Any) -> Any:
    """The two logits alone: a graph has no use for the class that `transformers` returns."""
    from torch import Tensor, nn

    class Logits(nn.Module):
        """Ids, mask and types in; start and end logits `[B, T]` out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
            found = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
            return found.start_logits, found.end_logits

    return Logits().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print progress and warn of things that concern nobody here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
