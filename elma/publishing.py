"""`elma publish`, step by step: what to publish, check it, sign it or have it signed, send it.

In: what the operator asked for. Out: a dictionary of what was done. Neighbours: `elma.commands`
has the options; `publisher` has each step; `elma.release_checks` the quality.

A publish that was interrupted is found again here: the same model, rollback or refresh goes on with
the version that was signed for it, and makes no new one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elma.release_checks import CheckOptions, Verdict, check_release
from elma.stage_text import describe_stage
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, sign_manifest
from protocol.signing import PublisherTrust, SigningKey
from publisher.errors import NoSuchVersion, SigningError
from publisher.line import Line
from publisher.making import (
    Wanted,
    blobs_of,
    choose_bases,
    draft_refresh,
    draft_release,
    draft_rollback,
    keep_signed,
)
from publisher.pruning import prune
from publisher.rollout import order_for, publish_order
from publisher.sending import clear_old, export_blobs, opened, send_release, wait_for_workers
from publisher.sent import SentLog
from publisher.store import PublisherStore, Record
from publisher.upload import Progress
from reader.codecs import LOSSES_FILE
from reader.weights import folder_digest

EXPIRES_SECONDS = 30 * 86_400.0
ROUNDING_SECONDS = 1.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Content:
    """What is to be published: one of a model folder, an old version, the current one anew."""

    folder: Path | None = None
    rollback: int | None = None
    refresh: bool = False


@dataclass(frozen=True)
class Terms:
    """What the operator says about it; `expires_seconds` is the manifest's life. None: nothing was
    said, so it is as `publisher.making` has it."""

    expires_seconds: float | None = None
    note: str | None = None
    urls: tuple[str, ...] | None = None

    def not_in(self, manifest: Manifest) -> list[str]:
        """The options that were given and that a manifest does not have so."""
        life_seconds = manifest.expires - manifest.created
        wants_life = self.expires_seconds if self.expires_seconds is not None else life_seconds
        found = {
            "--note": self.note not in (None, manifest.note),
            "--expires-days": abs(wants_life - life_seconds) > ROUNDING_SECONDS,
            "--url" if self.urls else "--no-url": self.urls not in (None, manifest.urls),
        }
        return [name for name, differs in found.items() if differs]


class Publishing:
    """One publish to one channel, over a connected line."""

    def __init__(
        self, store: PublisherStore, channel: str, trust: PublisherTrust, line: Line, say: Say
    ) -> None:
        self.store, self.channel, self.trust = store, channel, trust
        self.line, self.say = line, say
        self.figures: dict[str, Any] = {"channel": channel}

    def begun(
        self, content: Content, terms: Terms, checks: CheckOptions, key_id: str | None
    ) -> Record | None:
        """The record that an earlier run of the same wish has signed; None: a new one is needed.

        One that is published already is left as it is, whatever `terms` say, and that is told; one
        that nobody has seen is not gone on with on other terms.
        """
        state = self.store.channel(self.channel)
        wanted = self._release_of(content)
        candidates = [state.pending] if content.refresh else [state.pending, state.current]
        for record in candidates:
            if record is None or record.release != wanted:
                continue
            if key_id is not None and record.key_id != key_id:
                continue
            manifest = self.store.manifest(self.channel, record)
            lacking = terms.not_in(manifest)
            if manifest.expires <= time.time() or not self._has_codecs_of(manifest, content):
                continue
            if lacking and not record.is_published:
                continue
            what = "published already" if record.is_published else "signed already"
            self.say(f"version {record.version} of channel {self.channel} is {what}; going on")
            self._tell_not_applied(record, lacking, checks)
            return record
        return None

    def may_sign(self, key_id: str) -> None:
        """Raises SigningError for a key that no device would trust."""
        try:
            self.trust.keys().public_of(key_id)
        except ProtocolError as error:
            raise SigningError(f"key {key_id} may not sign releases: {error}") from error

    def draft(
        self, content: Content, terms: Terms, key_id: str, checks: CheckOptions
    ) -> tuple[Manifest, Verdict | None]:
        """An unsigned manifest whose blobs lie in the store. Raises ReleaseRefused and others."""
        fleet = self.line.view.picture()
        wanted = Wanted(
            self.channel,
            key_id,
            EXPIRES_SECONDS if terms.expires_seconds is None else terms.expires_seconds,
            time.time(),
            terms.note or "",
            terms.urls,
        )
        if content.rollback is not None:
            rollback = content.rollback
            return draft_rollback(self.store, wanted, rollback, fleet, self.trust), None
        if content.folder is None:
            return draft_refresh(self.store, wanted, fleet, self.trust), None
        begin = time.monotonic()
        verdict = self._check(content.folder, checks)
        checked_at = time.monotonic()
        bases = choose_bases(self.store, self.channel, content.folder, fleet, wanted.now)
        self.say(f"making blobs, with differences against {len(bases)} models")
        manifest = draft_release(
            self.store,
            Wanted(**{**vars(wanted), "f1": verdict.f1}),
            content.folder,
            verdict.checked,
            bases,
            fleet,
            self.trust,
        )
        self.figures["check_seconds"] = round(checked_at - begin, 3)
        self.figures["build_seconds"] = round(time.monotonic() - checked_at, 3)
        return manifest, verdict

    def sign(self, manifest: Manifest, key: SigningKey, verdict: Verdict | None) -> Record:
        """Sign here, and keep it. Raises SigningError."""
        signed = sign_manifest(manifest, key, self.trust.key_list)
        return keep_signed(self.store, signed, self.trust, verdict.checked if verdict else None)

    def send(self, record: Record, progress: Progress | None, *, resend: bool = False) -> None:
        """Chunks and manifest; with `resend` also what the broker should have.

        Raises ChannelTaken, UploadFailed, PublisherStoreError.
        """
        begin = time.monotonic()
        if resend:
            with SentLog(self.store.sent_log(self.line.address)) as log:
                log.forget_all(time.time())
        asserted = send_release(
            self.line, self.store, self.channel, record, self.trust, progress=progress
        )
        self.figures |= {
            "chunks_sent": asserted.uploaded.chunks_sent,
            "bytes_sent": asserted.uploaded.bytes_sent,
            "chunks_there": asserted.uploaded.chunks_there,
            "manifest_bytes": asserted.manifest_bytes,
            "upload_seconds": round(time.monotonic() - begin, 3),
        }

    def roll_out(
        self, record: Record, share: float | None, wait_seconds: float | None, reason: str
    ) -> None:
        """Wait for the workers (None: do not), then tell a share of the edges to take it.

        `share` None: what the last order said for this release, else everybody. Raises
        WorkersNotReady, RolloutError, UploadFailed.
        """
        begin = time.monotonic()
        if wait_seconds is not None:
            workers = wait_for_workers(self.line, record.release, wait_seconds, self.say)
            if not workers:
                self.say("no worker is connected: edges that take the release answer alone")
            self.figures["workers"] = workers
            self.figures["workers_seconds"] = round(time.monotonic() - begin, 3)
        fleet, now = self.line.view.picture(), time.time()
        if share is not None:
            self.figures |= describe_stage(fleet, record.release, share, now, self.say)
        order, signed = order_for(self.store, self.channel, share, reason, fleet, now)
        publish_order(self.line, self.channel, signed)
        if share is not None and order.share != share:
            self.say(
                f"the rollout stays at {100 * order.share:g} %, as it was ordered before; "
                "`elma rollout stage` changes that"
            )
        self.figures |= {"share": order.share, "paused": order.paused, "sequence": order.sequence}

    def finish(self, record: Record, export: Path | None) -> dict[str, Any]:
        """Clear what is not needed any more; the figures of everything."""
        manifest = self.store.manifest(self.channel, record)
        if export is not None:
            blobs = blobs_of(self.store, manifest)
            self.figures["exported_blobs"] = export_blobs(self.store, blobs, export)
        self.figures["chunks_cleared"] = clear_old(self.line, self.store)
        prune(self.store)
        return {**describe_manifest(manifest, record.key_id), **self.figures}

    def _tell_not_applied(self, record: Record, lacking: list[str], checks: CheckOptions) -> None:
        """Say which options of this call change nothing."""
        self.figures["not_applied"] = [*lacking, *checks.given()]
        version = f"version {record.version}"
        if lacking:
            self.say(
                f"not applied: {', '.join(lacking)}, for {version} has other terms; `elma publish "
                "--refresh` with the same options makes a version that has these"
            )
        if checks.given():
            self.say(
                f"not applied: {', '.join(checks.given())}, for {version} was checked when it was "
                "signed"
            )

    def _check(self, folder: Path, checks: CheckOptions) -> Verdict:
        current = self.store.channel(self.channel).current
        shown = opened(self.line.view.picture().manifest, self.trust)
        current_folder, current_f1 = None, shown.f1 if shown else None
        if current is not None:
            current_folder = self.store.model_folder(current.release)
            current_f1 = self.store.manifest(self.channel, current).f1
        verdict = check_release(folder, current_folder, current_f1, checks, self.say)
        for warning in verdict.warnings:
            self.say(f"warning: {warning}")
        checked = verdict.checked
        self.figures |= {
            "engines": list(checked.engines),
            "canaries": len(checked.canaries),
            "right_answers": checked.right_answers,
            "questions": checked.questions,
            "warnings": list(verdict.warnings),
        }
        return verdict

    def _release_of(self, content: Content) -> str:
        """The digest that is to be published."""
        state = self.store.channel(self.channel)
        if content.folder is not None:
            return folder_digest(content.folder)
        if content.rollback is not None:
            return state.record_of(content.rollback).release
        if state.current is None:
            raise NoSuchVersion(f"channel {self.channel} has no release to refresh in this store")
        return state.current.release

    def _has_codecs_of(self, manifest: Manifest, content: Content) -> bool:
        """Whether the folder's advice on codecs, which is no part of the digest, is that one."""
        if content.folder is None:
            return True
        path = content.folder / LOSSES_FILE
        here = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        there = next((one.sha256 for one in manifest.files if one.name == LOSSES_FILE), None)
        return here == there


def describe_manifest(manifest: Manifest, key_id: str | None = None) -> dict[str, Any]:
    """A manifest for a person or a program."""
    return {
        "channel": manifest.channel,
        "version": manifest.version,
        "release": manifest.release,
        "name": manifest.name,
        "key_id": key_id,
        "created": manifest.created,
        "expires": manifest.expires,
        "release_bytes": manifest.total_bytes,
        "f1": manifest.f1,
        "note": manifest.note,
        "urls": list(manifest.urls),
        "previous_version": manifest.previous.version if manifest.previous else None,
    }
