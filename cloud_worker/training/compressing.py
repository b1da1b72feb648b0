"""A run's compression while it goes: pruning and attention spans, from schedule to smaller network.

In: the network before, during and after every step. Out: at two moments of the run, a `Cut` to make
real and whole-number spans for the configuration. Neighbours: `pruning` and `learned_spans` do the
work, `trainer` owns the network and replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor
from torch.optim import Adam

from cloud_worker.training.cutting import Cut
from cloud_worker.training.learned_spans import LearnedSpans
from cloud_worker.training.optimizing import (
    load_optimizer,
    load_states,
    optimizer_tensors,
    tensors_under,
)
from cloud_worker.training.pruning import KeptZeros, Pruner
from cloud_worker.training.schedules import step_at
from cloud_worker.training.settings import TrainSettings
from reader.config import ReaderConfig
from reader.network import AlbertReader


class Compression:
    """What is being learned besides the network's own weights."""

    def __init__(self, network: AlbertReader, settings: TrainSettings, steps: int) -> None:
        """`network` is on its device already; `steps` is the whole run's length."""
        self._settings, self._steps = settings, steps
        self.pruner = Pruner(network, settings.pruning, steps) if settings.pruning else None
        self._zeros = self._find_zeros(network)
        self.spans: LearnedSpans | None = None
        self._span_optimizer: Adam | None = None
        if settings.spans:
            device = network.embeddings.word.weight.device
            spans = LearnedSpans(network.config, settings.spans, max_tokens=settings.max_tokens)
            self._set_spans(spans.to(device))

    def before_step(self, step: int) -> None:
        """Put the masked weights in place."""
        if self.pruner:
            self.pruner.mask(step)

    def after_backward(self, step: int) -> None:
        """Put the weights back, mask their gradients, and step scores and spans."""
        if self.pruner:
            self.pruner.unmask(step)
        if self._zeros:
            self._zeros.mask_gradients()
        if self.spans is not None and self._span_optimizer is not None:
            if step >= step_at(self.spans.settings.begin_share, self._steps):
                self._span_optimizer.step()
                self.spans.clamp()
            self._span_optimizer.zero_grad(set_to_none=True)

    def ends_pruning(self, step: int) -> bool:
        """Whether the masks become final before this step."""
        return self.pruner is not None and step >= self.pruner.end

    def ends_spans(self, step: int) -> bool:
        """Whether the spans become whole numbers before this step."""
        if self.spans is None:
            return False
        return step >= step_at(self.spans.settings.freeze_share, self._steps)

    def finish_pruning(
        self, network: AlbertReader, step: int, companions: Iterable[Mapping[str, Tensor]]
    ) -> Cut:
        """Make the masks final: what to cut. Single weights become 0 at once, in `network` and in
        `companions` (tensors named like its parameters), and stay so."""
        nothing = Cut.nothing(network.config)
        if self.pruner is None:
            return nothing
        self.pruner.finish(step)
        cut = self.pruner.cut()
        if cut is None:
            for tensors in (dict(network.named_parameters()), *companions):
                self.pruner.zero(tensors)
        self.pruner = None
        self._zeros = self._find_zeros(network)
        return cut or nothing

    def finish_spans(self, config: ReaderConfig) -> tuple[ReaderConfig, Cut]:
        """The configuration with whole-number spans, and the cut of heads that see nothing."""
        if self.spans is None:
            return config, Cut.nothing(config)
        spans = self.spans.whole_numbers(config.max_positions)
        self._set_spans(None)
        limited = any(span < config.max_positions for row in spans for span in row)
        config = replace(config, spans=spans if limited else ())
        seeing = [
            {
                place
                for layer in range(1, config.layers + 1)
                if config.group_of(layer) == group
                for place, span in enumerate(config.spans_of(layer))
                if span > 0
            }
            for group in range(config.groups)
        ]
        return config, replace(
            Cut.nothing(config), heads=tuple(tuple(sorted(places)) for places in seeing)
        )

    def cut(self, network: AlbertReader, config: ReaderConfig, cut: Cut) -> None:
        """Follow a cut of a network of `config`, of which `network` is left."""
        self._zeros = self._find_zeros(network)
        if self.spans is None or self._span_optimizer is None:
            return
        kept = [list(cut.heads[config.group_of(layer)]) for layer in range(1, config.layers + 1)]
        moments = {
            number: {
                part: value[kept[number]] if value.dim() else value for part, value in state.items()
            }
            for number, state in self._span_optimizer.state_dict()["state"].items()
        }
        self._set_spans(self.spans.keep(network.config, kept))
        load_states(self._span_optimizer, moments)

    def sparsity(self, config: ReaderConfig) -> float:
        """The share of the layers' weights, as built, that is gone or masked."""
        unit, head = 2 * config.hidden_size, 4 * config.hidden_size * config.head_size
        groups = range(config.groups)
        left = sum(
            unit * config.inner_of(group) + head * len(config.heads_of(group)) for group in groups
        )
        built = config.groups * (unit * config.intermediate_size + head * config.heads)
        masked = self.pruner or self._zeros
        return 1 - left / built * (1 - (masked.sparsity() if masked else 0.0))

    def mean_span_tokens(self, config: ReaderConfig) -> float:
        """Over all heads that are left and all layers; no span is longer than the windows are."""
        if self.spans is not None:
            return self.spans.mean_tokens()
        layers = range(1, config.layers + 1)
        spans = [
            min(span, self._settings.max_tokens) for n in layers for span in config.spans_of(n)
        ]
        return sum(spans) / max(1, len(spans))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        tensors: dict[str, Tensor] = {}
        if self.pruner:
            tensors.update({f"pruner.{name}": value for name, value in self.pruner.state().items()})
            tensors.update(optimizer_tensors("scores", self.pruner.optimizer))
        if self.spans is not None and self._span_optimizer is not None:
            tensors.update({f"spans.{n}": value for n, value in self.spans.state_dict().items()})
            tensors.update(optimizer_tensors("span_moments", self._span_optimizer))
        return tensors

    def load(self, network: AlbertReader, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state` with `network` as it was then; what is no longer there is over."""
        pruner, spans = tensors_under("pruner.", tensors), tensors_under("spans.", tensors)
        if self.pruner and pruner:
            self.pruner.load(pruner)
            load_optimizer(self.pruner.optimizer, tensors_under("scores.", tensors))
        else:
            self.pruner = None
        self._zeros = self._find_zeros(network)
        if self.spans is not None and self._span_optimizer is not None and spans:
            self.spans.load_state_dict(spans)
            load_optimizer(self._span_optimizer, tensors_under("span_moments.", tensors))
        else:
            self._set_spans(None)

    def _find_zeros(self, network: AlbertReader) -> KeptZeros | None:
        """What an earlier pruning left at 0, unless single weights are being chosen just now."""
        choosing = self.pruner is not None and self.pruner.settings.structure == "weights"
        return None if choosing else KeptZeros(network)

    def _set_spans(self, spans: LearnedSpans | None) -> None:
        self.spans, self._span_optimizer = spans, None
        if spans is not None:
            self._span_optimizer = Adam(spans.parameters(), lr=spans.settings.learning_rate)
