"""The processes that train together.

In: the variables that `torchrun` or Accelerate set. Out: who leads, and common decisions. Each
process takes every n-th batch and gradients are averaged. Neighbours: `run`, `trainer`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Team:
    """The processes that train together: one, unless a launcher set the usual variables."""

    rank: int
    size: int

    @classmethod
    def join(cls) -> Team:
        """Join the group that `torchrun` or Accelerate announced, if any."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1)
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def agrees_to_stop(self, stop: bool, device: torch.device) -> bool:
        """Whether any process wants to stop; all of them have to leave the loop together."""
        if self.size == 1:
            return stop
        votes = torch.tensor([float(stop)], device=device)
        distributed.all_reduce(votes)
        return bool(votes > 0)

    def leave(self) -> None:
        """Wait for the others and end the group."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()
