"""Says what a follower is doing, and does not say it too often.

In: what happens. Out: `Progress` to whoever was given as `report`. Neighbours: `follower` tells,
`progress` has the value. For one thread, except `progress`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.log import SafeLog
from protocol.manifest import Manifest
from protocol.release_messages import ModelPhase
from releases.errors import ReleaseError
from releases.offers import Target
from releases.progress import Progress
from releases.store import ReleaseStore

PROGRESS_SECONDS = 2.0
"""Between two reports that differ only in bytes."""
_log = SafeLog("elma.releases")


class Reporter:
    """Reports to `report`, whose failures stay its own."""

    def __init__(
        self, store: ReleaseStore, report: Callable[[Progress], None], clock: Callable[[], float]
    ) -> None:
        self._store, self._report, self._clock = store, report, clock
        self._told_at = -PROGRESS_SECONDS
        self.progress = self._made("init" if store.active is None else "active")

    def idle(self) -> None:
        """Nothing is under way; what is in use answers."""
        self._tell(self._made("init" if self._store.active is None else "active"))

    def downloading(self, manifest: Manifest) -> None:
        """A release begins to be fetched."""
        self._tell(self._about("downloading", manifest))

    def verified(self, manifest: Manifest) -> None:
        """It is complete, and has yet to prove itself."""
        done, total = self.progress.done_bytes, self.progress.total_bytes
        self._tell(self._about("verified", manifest, done_bytes=done, total_bytes=total))

    def fetched(self, manifest: Manifest, done_bytes: int, total_bytes: int) -> None:
        """Bytes have come; reported now and then."""
        progress = self._about(
            "downloading", manifest, done_bytes=done_bytes, total_bytes=total_bytes
        )
        if self._clock() - self._told_at >= PROGRESS_SECONDS:
            self._tell(progress)
        else:
            self.progress = progress

    def failed(self, error: Exception, target: Target | None = None) -> None:
        """Something about `target` failed, or a manifest was refused that is none."""
        release: str | None = None
        version: int | None = None
        if target is not None:
            manifest = target.offer.manifest
            before = manifest.previous if target.kind == "previous" else None
            release, version = manifest.release, manifest.version
            if before is not None:
                release, version = before.release, before.version
        self._tell(
            self._made(
                "failed",
                target=release,
                target_version=version,
                reason=str(error) or type(error).__name__,
                reason_code=error.reason_code if isinstance(error, ReleaseError) else "failed",
            )
        )

    def _about(self, state: ModelPhase, manifest: Manifest, **values: Any) -> Progress:
        return self._made(state, target=manifest.release, target_version=manifest.version, **values)

    def _made(self, state: ModelPhase, **values: Any) -> Progress:
        now = self._store.state
        return Progress(
            state, release=now.active, version=now.version, manifest_expires=now.expires, **values
        )

    def _tell(self, progress: Progress) -> None:
        self.progress, self._told_at = progress, self._clock()
        try:
            self._report(progress)
        except Exception:
            _log.exception("release_report_failed")
