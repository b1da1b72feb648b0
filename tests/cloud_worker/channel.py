"""A publisher for the worker's tests, of `protocol`, `releases` and `broker` alone.

In: model folders. Out: their chunks and signed manifests as retained messages of a broker. Each
test makes its keys anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from broker.exchange import Outcome, Publication, Subscription
from broker.run import RunningBroker
from broker.session import Session
from protocol.key_files import save_publisher_public
from protocol.manifest import CHUNK_BYTES, BlobRef, Manifest, PreviousRelease, sign_manifest
from protocol.release_messages import ModelState, WorkerReleases
from protocol.signing import KeyList, PublisherTrust, SigningKey
from protocol.topics import BlobTopic, ManifestTopic, ModelStateTopic, WorkerReleasesTopic
from reader.canaries import CanaryQuestion, encode_canaries, make_canaries
from reader.model import Reader
from releases.architecture import architecture_of
from releases.blob_folder import BlobFolder, blob_reference
from releases.building import build_contents
from tests.cloud_worker.harness import WAIT_SECONDS, wait_until

PASSAGE = "the old lighthouse is north of the river and the keeper was in the tower that was built"
QUESTIONS = ("where is the lighthouse", "who was in the tower", "what is north of the river")
HOUR_SECONDS = 3_600.0


class Channel:
    """The channel `stable` of a broker, with the keys that a worker trusts."""

    def __init__(self, folder: Path, broker: RunningBroker, stack: ExitStack) -> None:
        self.key, self._root = SigningKey.make("signing-1"), SigningKey.make("root")
        self._key_list = KeyList(1, {self.key.key_id: self.key.public}).sign(self._root)
        self._rollout = SigningKey.make("rollout-1")
        self.public_file = folder / "publisher-public.json"
        save_publisher_public(self.public_file, PublisherTrust(self._root.public, self._key_list))
        self._blobs = BlobFolder(folder / "blobs")
        self._version = 0
        self.last: tuple[Manifest, BlobRef] | None = None
        self.session = Session(
            broker.settings(),
            "publisher",
            subscriptions=[Subscription(str(WorkerReleasesTopic(name))) for name in ("one", "two")],
        )
        stack.callback(self.session.stop)
        self.session.start()
        assert self.session.wait_connected(WAIT_SECONDS)
        self.heard: list[WorkerReleases] = []

    def settings(self, store: str = "store", **more: Any) -> dict[str, Any]:
        """The table `[releases]` of a worker that follows this channel."""
        places = {"publisher_public_key_file": str(self.public_file), "folder": store}
        return {**places, **more}

    def publish(self, model: Path, *, canaries_of: Path | None = None) -> str:
        """Chunks, then the manifest; the release's digest. The one before it is its previous."""
        reader = Reader.load(model, precision="fp32")
        judge = reader if canaries_of is None else Reader.load(canaries_of, precision="fp32")
        asked = [CanaryQuestion(question, PASSAGE) for question in QUESTIONS]
        contents = build_contents(
            model, encode_canaries(make_canaries(judge, asked)), blobs=self._blobs
        )
        self._version += 1
        now = time.time()
        previous = None
        if self.last is not None:
            before, blob = self.last
            previous = PreviousRelease(before.release, before.version, blob)
        manifest = Manifest(
            channel="stable",
            version=self._version,
            release=reader.digest,
            name=model.name,
            created=now,
            expires=now + HOUR_SECONDS,
            architecture=architecture_of(reader.config),
            files=contents.files,
            rollout_public=self._rollout.public,
            previous=previous,
        )
        signed = sign_manifest(manifest, self.key, self._key_list).encode()
        self._blobs.put(signed)
        for blob in (*contents.blobs, *([] if previous is None else [previous.manifest])):
            self._upload(blob)
        self._retain(str(ManifestTopic("stable")), signed)
        self.last = manifest, blob_reference(signed)
        return reader.digest

    def withdraw(self) -> None:
        """Clear the retained manifest."""
        self._retain(str(ManifestTopic("stable")), b"")

    def say(self, edge: str, release: str, *, age_seconds: float = 0.0) -> None:
        """What an edge would say of the release that it uses."""
        state = ModelState(
            "active", release, 1, None, None, "", 0, 0, updated=time.time() - age_seconds
        )
        self._retain(str(ModelStateTopic(edge)), state.encode())

    def wait_for(self, worker: str, release: str, seconds: float = 60.0) -> WorkerReleases:
        """What a worker says, once it says that it has a release."""
        return self._wait(worker, f"{worker} loads {release[:12]}", seconds, loaded=release)

    def wait_for_failure(self, worker: str, release: str) -> str:
        """Why a worker does not have a release."""
        report = self._wait(worker, f"{worker} fails {release[:12]}", 60.0, failed=release)
        return dict(report.failed)[release]

    def latest(self, worker: str) -> WorkerReleases | None:
        """What a worker said last."""
        self.heard += self._arrived()
        return next((one for one in reversed(self.heard) if one.worker == worker), None)

    def _wait(self, worker: str, what: str, seconds: float, **wanted: str) -> WorkerReleases:
        def look() -> WorkerReleases | None:
            report = self.latest(worker)
            if report is None:
                return None
            found = {"loaded": report.loaded, "failed": dict(report.failed)}
            return report if all(one in found[key] for key, one in wanted.items()) else None

        report = wait_until(look, what, seconds)
        assert isinstance(report, WorkerReleases)
        return report

    def _arrived(self) -> Iterator[WorkerReleases]:
        while (delivery := self.session.receive(0.0)) is not None:
            self.session.acknowledge(delivery)
            yield WorkerReleases.decode(delivery.payload)

    def _upload(self, blob: BlobRef) -> None:
        for chunk in range(blob.chunk_count):
            content = self._blobs.read_range(
                blob.sha256, chunk * CHUNK_BYTES, blob.chunk_length(chunk)
            )
            self._retain(str(BlobTopic(blob.sha256, chunk)), content)

    def _retain(self, topic: str, payload: bytes) -> None:
        receipt = self.session.publish(Publication(topic, payload, retain=True))
        outcome = receipt.wait(WAIT_SECONDS)
        assert outcome in (Outcome.ACKNOWLEDGED, Outcome.NO_SUBSCRIBER), topic
