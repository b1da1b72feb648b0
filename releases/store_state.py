"""What `state.json` of a store holds, as values that do not change, and how they become others.

In and out: a JSON document. Neighbour: `store`, which decides what changes and when.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from broker.log import SafeLog
from protocol.checks import is_digest
from releases.errors import StoreError
from releases.files import read_json, translated

ORDERS_KEPT = 64
REFUSALS_KEPT = 64
BROKEN_SUFFIX = ".broken"
_log = SafeLog("elma.releases")


@dataclass(frozen=True)
class Attempt:
    """A release that has yet to prove itself, and how often the process has started with it.

    `manifest` is the sha256 (hex) of the manifest's signed bytes, as `trust.payload_sha256`.
    """

    release: str
    version: int
    manifest: str
    starts: int

    def again(self) -> Attempt:
        """One start more."""
        return replace(self, starts=self.starts + 1)


@dataclass(frozen=True)
class Refusal:
    """A manifest that is not tried again, and why. Another one of the same version may be."""

    release: str
    version: int
    manifest: str
    reason: str


@dataclass(frozen=True)
class StoreState:
    """`active` answers now; `last_good` is what to go back to; both with the version, the sha256
    and the expiry (unix seconds) of their manifest. `probation`: `active` has yet to prove itself.
    `trial`: the process is about to take a release, and may die of it. `orders`: release and
    rollout key to the highest sequence of its orders."""

    active: str | None = None
    version: int | None = None
    manifest: str | None = None
    expires: float | None = None
    last_good: str | None = None
    last_good_version: int | None = None
    last_good_manifest: str | None = None
    last_good_expires: float | None = None
    probation: Attempt | None = None
    trial: Attempt | None = None
    refused: tuple[Refusal, ...] = ()
    orders: Mapping[str, int] = field(default_factory=dict)

    def changed(self, **values: Any) -> StoreState:
        """The state with other values."""
        return replace(self, **values)

    def refusing(self, refusal: Refusal) -> StoreState:
        """With a manifest more that is not tried again."""
        kept = [one for one in self.refused if one.manifest != refusal.manifest]
        return replace(self, refused=tuple([*kept, refusal][-REFUSALS_KEPT:]), trial=None)

    def refusing_active(self, reason: str) -> StoreState:
        """With the release in use refused, if there is one."""
        if self.active is None or self.version is None or self.manifest is None:
            return self
        return self.refusing(Refusal(self.active, self.version, self.manifest, reason))

    def gone_back(self, *, has_last_good: bool) -> StoreState:
        """With the last good release in use, or none where its folder is gone."""
        return replace(
            self,
            active=self.last_good if has_last_good else None,
            version=self.last_good_version if has_last_good else None,
            manifest=self.last_good_manifest if has_last_good else None,
            expires=self.last_good_expires if has_last_good else None,
            last_good=None,
            last_good_version=None,
            last_good_manifest=None,
            last_good_expires=None,
            probation=None,
        )

    def committed(self, release: str, version: int, manifest: str, expires: float) -> StoreState:
        """With `release` in use. Another one than before begins its probation, and the one before
        is the last good one, unless it was on probation itself."""
        now = replace(self, version=version, manifest=manifest, expires=expires, trial=None)
        if release == self.active:
            return now
        now = replace(now, active=release, probation=Attempt(release, version, manifest, 0))
        if self.active is None or self.probation is not None:
            return now
        return replace(
            now,
            last_good=self.active,
            last_good_version=self.version,
            last_good_manifest=self.manifest,
            last_good_expires=self.expires,
        )

    def with_order(self, name: str, sequence: int) -> StoreState:
        """With the highest sequence of the orders of `name`; the longest unheard of is dropped."""
        orders = {other: number for other, number in self.orders.items() if other != name}
        orders[name] = sequence
        return replace(self, orders=dict(list(orders.items())[-ORDERS_KEPT:]))

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
            values["orders"] = dict(values.get("orders", {}))
            state = cls(**values)
            state._check()
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"state.json does not hold a store's state: {error}") from error
        return state

    def _check(self) -> None:
        """Raise ValueError for a value of another kind than its field says."""
        for release in (self.active, self.last_good):
            _require(release is None or _is_digest(release), "release")
        for manifest in (self.manifest, self.last_good_manifest):
            _require(manifest is None or isinstance(manifest, str), "manifest")
        for version in (self.version, self.last_good_version):
            _require(version is None or _is_count(version), "version")
        for expires in (self.expires, self.last_good_expires):
            _require(expires is None or _is_time(expires), "expires")
        for attempt in (self.probation, self.trial):
            _require(attempt is None or _is_count(attempt.starts), "starts")
        for one in (self.probation, self.trial, *self.refused):
            if one is not None:
                _require(_is_digest(one.release) and _is_count(one.version), "attempt or refusal")
                _require(isinstance(one.manifest, str), "manifest")
        for refusal in self.refused:
            _require(isinstance(refusal.reason, str), "reason")
        _require(all(_is_count(number) for number in self.orders.values()), "orders")


def read_state(path: Path) -> StoreState:
    """The state in a file. A broken one is put aside: what was used stays known in trust.json, and
    what is installed need not be fetched again. Raises StoreError where that cannot be done."""
    try:
        document = read_json(path)
        return StoreState() if document is None else StoreState.from_json(document)
    except StoreError as error:
        broken = path.with_name(path.name + BROKEN_SUFFIX)
        with translated(f"{path} is broken and cannot be put aside"):
            path.replace(broken)
        _log.error("release_state_broken", kept_as=str(broken), why=str(error))
        return StoreState()


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and is_digest(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(f"{what} is no such thing")
