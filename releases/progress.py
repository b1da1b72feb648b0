"""What a follower tells those around it: the release to take, and how far it is.

Out: `Candidate` for who loads it, `Progress` for reports, metrics and `ModelState`. Neighbours:
`follower` makes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.manifest import Manifest
from protocol.release_messages import MAX_REASON_CHARACTERS, ModelPhase, ModelState


@dataclass(frozen=True)
class Candidate:
    """A release that is complete and verified in `folder`, to be proved and taken into use."""

    manifest: Manifest
    folder: Path

    @property
    def release(self) -> str:
        """Its digest."""
        return self.manifest.release

    @property
    def version(self) -> int:
        """Its version."""
        return self.manifest.version


@dataclass(frozen=True)
class Progress:
    """What answers now, and what is being done about another release.

    `release` and `version`: in use (None: nothing yet). `target`, `target_version`: being fetched,
    verified, or failed with `reason` (for people) and `reason_code` (a word for metrics).
    `done_bytes` of `total_bytes` have come. `manifest_expires`: of the one in use, unix seconds.
    """

    state: ModelPhase
    release: str | None = None
    version: int | None = None
    target: str | None = None
    target_version: int | None = None
    reason: str = ""
    reason_code: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    manifest_expires: float | None = None

    def model_state(self, updated: float) -> ModelState:
        """As the message for `ModelStateTopic`, at `updated` unix seconds."""
        return ModelState(
            state=self.state,
            release=self.release,
            version=self.version,
            target=self.target,
            target_version=self.target_version,
            reason=printable(self.reason),
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            updated=updated,
            manifest_expires=self.manifest_expires,
            reason_code=self.reason_code,
        )


def printable(text: str) -> str:
    """A reason as a message may carry it: one line of bounded length."""
    line = " ".join(text.split())
    kept = "".join(one for one in line if one.isprintable())
    return kept[:MAX_REASON_CHARACTERS]
