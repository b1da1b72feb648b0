"""A publisher for the tests of the edge: real manifests, orders and chunks on a real broker.

Output: retained messages, and `states`, the model states that edges published.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from broker.errors import PublishError
from broker.exchange import Outcome, Publication, Subscription
from broker.session import Session
from broker.settings import BrokerSettings
from protocol.key_files import save_publisher_public
from protocol.manifest import CHUNK_BYTES, Manifest, sign_manifest
from protocol.release_messages import ModelState, RolloutOrder
from protocol.signing import KeyList, PublisherTrust, SigningKey
from protocol.topics import (
    BlobTopic,
    ManifestTopic,
    RolloutTopic,
    model_state_subscription,
)
from reader.canaries import CanaryQuestion, encode_canaries, make_canaries
from reader.model import Reader
from reader.weights import folder_digest, load_config
from releases.architecture import architecture_of
from releases.blob_folder import BlobFolder
from releases.building import build_contents

CHANNEL = "stable"
CANARY_QUESTIONS = [
    CanaryQuestion(
        f"when was the tower number {number} built",
        f"the tower number {number} was built in {1500 + number} by the king of the city.",
    )
    for number in range(4)
]


def canaries_of(*readers: Reader) -> bytes:
    """A `canaries.json` that these readers pass."""
    first, *others = readers
    return encode_canaries(make_canaries(first, CANARY_QUESTIONS, others, count=3))


class Press:
    """Publishes releases of one channel; used as a context manager."""

    def __init__(self, broker: BrokerSettings, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        root, self._key = SigningKey.make("root"), SigningKey.make("k1")
        self._rollout = SigningKey.make("rollout")
        self._keys = KeyList(1, {"k1": self._key.public}).sign(root)
        self.public_file = folder / "publisher-public.json"
        save_publisher_public(self.public_file, PublisherTrust(root.public, self._keys))
        self._blobs = BlobFolder(folder / "blobs")
        self._session = Session(
            broker,
            "press",
            subscriptions=[Subscription(model_state_subscription())],
            queue_bound=1_000,
        )
        self.states: list[ModelState] = []
        self._sequence = 0

    def __enter__(self) -> Press:
        self._session.start()
        assert self._session.wait_connected(10.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._session.stop()

    def publish(
        self, model: Path, version: int, canaries: bytes, bases: Sequence[Path] = ()
    ) -> str:
        """Everything of a release, and the order that all take it; returns its digest."""
        contents = build_contents(model, canaries, blobs=self._blobs, bases=bases)
        for blob in contents.blobs:
            for chunk in range(blob.chunk_count):
                content = self._blobs.read_range(
                    blob.sha256, chunk * CHUNK_BYTES, blob.chunk_length(chunk)
                )
                self._retain(str(BlobTopic(blob.sha256, chunk)), content)
        now, release = time.time(), folder_digest(model)
        manifest = Manifest(
            CHANNEL,
            version,
            release,
            model.name,
            now,
            now + 3_600.0,
            architecture_of(load_config(model)),
            contents.files,
            self._rollout.public,
        )
        signed = sign_manifest(manifest, self._key, self._keys)
        self._retain(str(ManifestTopic(CHANNEL)), signed.encode())
        self._sequence += 1
        order = RolloutOrder(
            CHANNEL, release, version, self._sequence, 1.0, False, "", now, now + 3_600.0
        )
        self._retain(str(RolloutTopic(CHANNEL)), order.sign(self._rollout).encode())
        return release

    def last_state(self, wait_seconds: float = 0.05) -> ModelState | None:
        """The newest model state that came."""
        while (delivery := self._session.receive(wait_seconds)) is not None:
            self._session.acknowledge(delivery)
            self.states.append(ModelState.decode(delivery.payload))
        return self.states[-1] if self.states else None

    def _retain(self, topic: str, payload: bytes) -> None:
        give_up_at = time.monotonic() + 20.0
        while True:
            try:
                receipt = self._session.publish(Publication(topic, payload, retain=True))
            except PublishError:
                assert time.monotonic() < give_up_at, "the broker does not take the release"
                time.sleep(0.01)
                continue
            assert receipt.wait(10.0) in (Outcome.ACKNOWLEDGED, Outcome.NO_SUBSCRIBER)
            return
