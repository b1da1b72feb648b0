"""What `state.json` of a store holds, as values that do not change.

In and out: a JSON document. Neighbour: `store`, which decides what changes and when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from releases.errors import StoreError


@dataclass(frozen=True)
class Attempt:
    """A release that has yet to prove itself, and how often the process has started with it."""

    release: str
    version: int
    starts: int

    def again(self) -> Attempt:
        """One start more."""
        return replace(self, starts=self.starts + 1)


@dataclass(frozen=True)
class Refusal:
    """A version of a release that is not tried again, and why."""

    release: str
    version: int
    reason: str


@dataclass(frozen=True)
class StoreState:
    """`active` answers now; `last_good` is what to go back to; both with their version and the
    expiry of their manifest (unix seconds). `probation`: `active` has yet to prove itself. `trial`:
    the process is about to take a release, and may die of it. `orders`: release to the highest
    sequence of its rollout orders."""

    active: str | None = None
    version: int | None = None
    expires: float | None = None
    last_good: str | None = None
    last_good_version: int | None = None
    last_good_expires: float | None = None
    probation: Attempt | None = None
    trial: Attempt | None = None
    refused: tuple[Refusal, ...] = ()
    orders: Mapping[str, int] = field(default_factory=dict)

    def changed(self, **values: Any) -> StoreState:
        """The state with other values."""
        return replace(self, **values)

    def to_json(self) -> dict[str, Any]:
        """For `state.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StoreState:
        """The inverse of `to_json`; unknown fields are ignored. Raises StoreError."""
        try:
            values = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
            for name in ("probation", "trial"):
                if values.get(name) is not None:
                    values[name] = Attempt(**values[name])
            values["refused"] = tuple(Refusal(**one) for one in values.get("refused", ()))
            values["orders"] = {str(k): int(v) for k, v in values.get("orders", {}).items()}
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"state.json does not hold a store's state ({error}); remove it to begin anew: "
                "what was used stays known in trust.json"
            ) from error
