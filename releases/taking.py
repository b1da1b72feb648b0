"""Takes one release: fetched, verified, handed over, remembered; or refused for good.

In: a `Target` of `offers`. Out: a store that says what is in use. Neighbours: `installing` brings
the folder, `follower` says when, and what becomes of what may work later.

An order of steps that a death at any point cannot harm:

    fetch, assemble, rename into place     adopt     state.json     trust.json

Before `adopt` has returned the old release answers; what was begun is met again after a start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from broker.log import SafeLog
from protocol.manifest import Manifest
from releases.errors import FetchInterrupted, NotProved, ReleaseRejected
from releases.installing import Installer
from releases.offers import Offer, Offers, Target
from releases.progress import Candidate
from releases.reporting import Reporter
from releases.store import ReleaseStore

_log = SafeLog("elma.releases")


class ReleaseTaker:
    """Takes what is wanted into a store. For one thread.

    `adopt`: see `ReleaseFollower`. `is_interrupted`: whether something else is wanted by now.
    """

    def __init__(
        self,
        store: ReleaseStore,
        offers: Offers,
        installer: Installer,
        reporter: Reporter,
        adopt: Callable[[Candidate], None],
        *,
        keeps_previous: bool,
        is_interrupted: Callable[[], bool],
    ) -> None:
        self._store, self._offers, self._installer = store, offers, installer
        self._reporter, self._adopt = reporter, adopt
        self._keeps_previous, self._is_interrupted = keeps_previous, is_interrupted

    def take(self, target: Target) -> None:
        """Do what the target asks for.

        Raises ReleaseRejected, once the store has been told not to try it again; FetchInterrupted;
        another ReleaseError, OSError or ProtocolError where it may work later.
        """
        offer: Offer | None = None
        try:
            offer = self._offer_of(target)
            is_new = target.kind != "refresh"
            if is_new:
                self._reporter.downloading(offer.manifest)
            folder = self._fetch(offer.manifest)
            if is_new:
                self._hand_over(offer, folder)
            self._remember(offer)
        except ReleaseRejected as error:
            self._refuse(target, offer, error)
            raise

    def _offer_of(self, target: Target) -> Offer:
        """What is to be done is about this. The release before is named by the hash of its manifest
        in one that is fresh, and has yet to be looked at."""
        manifest, before = target.offer.manifest, target.offer.manifest.previous
        if target.kind != "previous" or before is None:
            return target.offer
        content = self._installer.fetch_blob(before.manifest, manifest.urls)
        offer = self._offers.check_previous(content, manifest)
        refusal = self._store.refusal(offer.sha256)
        if refusal is not None:
            raise ReleaseRejected(refusal)
        return offer

    def _fetch(self, manifest: Manifest) -> Path:
        return self._installer.install(
            manifest, lambda done, total: self._reporter.fetched(manifest, done, total)
        )

    def _hand_over(self, offer: Offer, folder: Path) -> None:
        """Let `adopt` prove it. The store knows while it does, for the case that we die of it."""
        manifest = offer.manifest
        if self._is_interrupted():
            raise FetchInterrupted("something newer came, or the release was withdrawn")
        self._reporter.verified(manifest)
        self._store.begin_trial(manifest.release, manifest.version, offer.sha256)
        try:
            self._adopt(Candidate(manifest, folder))
        except NotProved:
            raise  # stands in the store as a death does: what hangs is given up in the end
        except BaseException:
            self._store.end_trial()
            raise

    def _remember(self, offer: Offer) -> None:
        """It is in use; what was needed on the way, and what nobody needs any more, goes."""
        manifest = offer.manifest
        self._store.commit(manifest.release, manifest.version, offer.sha256, manifest.expires)
        trust = self._store.trust.with_used(offer.signed, manifest, offer.signer)
        self._store.save_trust(trust)
        _log.info("release_active", release=manifest.release, version=manifest.version)
        self._store.downloads.keep_only(())
        if not self._keeps_previous:
            self._store.collect()
        self._reporter.idle()

    def _refuse(self, target: Target, offer: Offer | None, error: ReleaseRejected) -> None:
        """Never again this manifest; what answers, goes on. `offer`: None for a manifest before
        this one that is not believed."""
        manifest = target.offer.manifest
        if target.kind == "previous":
            self._offers.give_up_previous(manifest)
        if offer is not None and target.kind != "refresh":
            refused = offer.manifest
            self._store.refuse(refused.release, refused.version, offer.sha256, str(error))
        if target.kind == "take":
            self._store.downloads.keep_only(())
            if self._store.installed.find(manifest.release) and not self._keeps_previous:
                self._store.collect()
        _log.error(
            "release_refused", release=manifest.release, reason=error.reason_code, why=str(error)
        )
