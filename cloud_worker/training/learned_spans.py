"""Adaptive attention spans while they are learned (Sukhbaatar et al. 2019).

In: a network's shape. Out: for every layer the soft limits of its heads, the penalty on their
length, and at the end whole numbers for the configuration. Neighbours: `objective` asks for the
limits, `trainer` steps and freezes, `reader.network` applies them.

A head with the real span z sees a key at distance x by m(x) = clamp((R + z - x) / R, 0, 1)
(equation 3 there), R being the ramp; the softmax is weighed by m (equation 2), which is the same
as adding log m to its input. z may fall to -R: the head's output is multiplied by
clamp((R + z) / R, 0, 1) as well, so that a head can fade away altogether.

Shapes: N heads left, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cloud_worker.training.settings import SpanSettings
from reader.config import ReaderConfig
from reader.network import HIDDEN, HeadLimits, token_distances

ROUNDING_TOKENS = 1e-3  # a span that is over a whole number by less is that number
SMALLEST_SHARE = 1e-6  # below it a key counts as hidden; log m stays finite


class LearnedSpans(nn.Module):
    """One real number a head and layer, in units of the longest window."""

    def __init__(self, config: ReaderConfig, settings: SpanSettings, *, max_tokens: int) -> None:
        """Spans start from the configuration's; a head without limit starts at `max_tokens`."""
        super().__init__()
        self.settings, self.max_tokens = settings, max_tokens
        middle = settings.ramp_tokens / 2
        self.shares = nn.ParameterList(
            nn.Parameter(
                torch.tensor(
                    [min(span - middle, max_tokens) / max_tokens for span in config.spans_of(layer)]
                )
            )
            for layer in range(1, config.layers + 1)
        )

    def limits(self, layer: int, tokens: int) -> HeadLimits:
        """The soft limits of a layer's heads for windows of `tokens`."""
        ramp = self.settings.ramp_tokens
        span = self.shares[layer - 1] * self.max_tokens  # [N]
        distance = token_distances(tokens, device=span.device)
        shown = ((ramp + span[:, None, None] - distance) / ramp).clamp(0, 1)  # [N, T, T]
        bias = shown.clamp_min(SMALLEST_SHARE).log()
        bias = torch.where(shown > SMALLEST_SHARE, bias, HIDDEN)
        return HeadLimits(bias=bias, scale=((ramp + span) / ramp).clamp(0, 1))

    def penalty(self) -> Tensor:
        """The weighted mean span in units of the longest window, a scalar; least at spans of -ramp
        (Sukhbaatar et al. 2019, section 3)."""
        shares = torch.cat(list(self.shares))
        if not len(shares):
            return torch.zeros((), device=shares.device)
        return self.settings.penalty * (shares + self._faded).mean()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep every span between `-ramp` and the longest window; call after each step."""
        for share in self.shares:
            share.clamp_(-self._faded, 1)

    @torch.no_grad()
    def mean_tokens(self) -> float:
        """The mean span over heads and layers, in tokens; faded heads count 0."""
        shares = torch.cat(list(self.shares))
        return float(shares.clamp_min(0).mean()) * self.max_tokens if len(shares) else 0.0

    @torch.no_grad()
    def whole_numbers(self, unlimited: int) -> tuple[tuple[int, ...], ...]:
        """Spans in tokens for the configuration: the hard edge lies in the middle of the ramp.

        0 where the head itself has faded by half or more, `unlimited` where it reaches the longest
        window.
        """
        return tuple(
            tuple(self._whole_number(float(share) * self.max_tokens, unlimited) for share in layer)
            for layer in self.shares
        )

    @torch.no_grad()
    def keep(self, config: ReaderConfig, kept: Sequence[Sequence[int]]) -> LearnedSpans:
        """The spans after a cut to `config`, which left these places of every layer's heads."""
        left = LearnedSpans(config, self.settings, max_tokens=self.max_tokens)
        for own, theirs, places in zip(left.shares, self.shares, kept, strict=True):
            own.copy_(theirs[list(places)])
        return left.to(self.shares[0].device)

    @property
    def _faded(self) -> float:
        return self.settings.ramp_tokens / self.max_tokens

    def _whole_number(self, span: float, unlimited: int) -> int:
        reach = span + self.settings.ramp_tokens / 2
        if reach <= 0:
            return 0
        return unlimited if reach >= self.max_tokens else max(1, math.ceil(reach - ROUNDING_TOKENS))
