"""Keys, a store, a real mosquitto, and a fleet that a test speaks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.exchange import Publication
from broker.run import RunningBroker, run_broker
from broker.session import Session
from protocol.manifest import Manifest, sign_manifest
from protocol.messages import Presence, encode_message
from protocol.release_messages import Agreement, ModelState, WorkerReleases
from protocol.signing import KeyList, PublisherTrust, SigningKey
from protocol.topics import ModelStateTopic, PresenceTopic, WorkerReleasesTopic
from publisher.checking import Checked
from publisher.fleet import Fleet
from publisher.line import Line
from publisher.making import Wanted, draft_release, keep_signed
from publisher.store import PublisherStore, Record
from reader.canaries import Canary
from tests.tiny import make_tiny_model

WAIT_SECONDS = 15.0
CANARY = Canary("who was it?", "it was the keeper", 7, 17, "the keeper", ("the keeper",))
CHECKED = Checked((CANARY,), ("torch fp32",), 1, 1)
MONTH_SECONDS = 30 * 86_400.0


class Publisher:
    """A signing key, its trust, a store, and a few tiny models to publish."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.key = SigningKey.make("root"), SigningKey.make("publisher-1")
        keys = KeyList(1, {self.key.key_id: self.key.public})
        self.trust = PublisherTrust(self.root.public, keys.sign(self.root))
        self.store = PublisherStore(folder / "store")

    def model(self, name: str, seed: int = 0) -> Path:
        """A tiny model folder, made once."""
        path = self.folder / name
        return path if path.is_dir() else make_tiny_model(path, layers=2, seed=seed)

    def draft(self, model: Path, fleet: Fleet | None = None, **wanted: Any) -> Manifest:
        """An unsigned release of a model."""
        terms = Wanted("stable", self.key.key_id, MONTH_SECONDS, time.time())
        terms = Wanted(**{**vars(terms), **wanted})
        return draft_release(self.store, terms, model, CHECKED, [], fleet or Fleet(), self.trust)

    def sign(self, manifest: Manifest, key: SigningKey | None = None) -> Record:
        """Sign and keep a manifest."""
        signed = sign_manifest(manifest, key or self.key, self.trust.key_list)
        return keep_signed(self.store, signed, self.trust, CHECKED)

    def published(self, model: Path, **wanted: Any) -> Manifest:
        """A release that counts as published, without any broker."""
        manifest = self.draft(model, **wanted)
        record = self.sign(manifest)
        with self.store.change("stable") as state:
            state.mark_published(record)
        return manifest


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A publisher with an empty store."""
    return Publisher(tmp_path)


@pytest.fixture
def mosquitto(mosquitto_program: Path, tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh mosquitto."""
    with run_broker("mosquitto", tmp_path / "broker") as running:
        yield running


@pytest.fixture
def open_line(mosquitto: RunningBroker) -> Iterator[Callable[..., Line]]:
    """Opens lines to the broker, complete with what it retains."""
    lines: list[Line] = []

    def connect(**options: Any) -> Line:
        quick = {"reconnect_min_seconds": 0.05, "reconnect_max_seconds": 0.2}
        settings = mosquitto.settings().model_copy(update=quick)
        line = Line(settings, "stable", **options)
        lines.append(line.__enter__())
        line.wait_ready(WAIT_SECONDS)
        return line

    yield connect
    for line in lines:
        line.__exit__(None, None, None)


class Members:
    """Speaks at the broker for edges and workers."""

    def __init__(self, broker: RunningBroker) -> None:
        self._session = Session(broker.settings(), "members")
        self._session.start()
        assert self._session.wait_connected(WAIT_SECONDS)

    def stop(self) -> None:
        """Leave."""
        self._session.stop()

    def say(self, topic: object, payload: bytes) -> None:
        """Publish, retained."""
        self._session.publish(Publication(str(topic), payload, 1, True)).wait(WAIT_SECONDS)

    def edge(self, name: str, state: ModelState) -> None:
        """An edge is online in this state."""
        self.say(PresenceTopic("edge", name), encode_message(Presence(True)))
        self.say(ModelStateTopic(name), state.encode())

    def worker(self, name: str, *loaded: str, **fields: Any) -> None:
        """A worker is online and has these releases."""
        report = worker_report(name, *loaded, **fields)
        self.say(PresenceTopic("worker", name), encode_message(Presence(True)))
        self.say(WorkerReleasesTopic(name), report.encode())


@pytest.fixture
def members(mosquitto: RunningBroker) -> Iterator[Members]:
    """Somebody who speaks for edges and workers."""
    speaker = Members(mosquitto)
    yield speaker
    speaker.stop()


def forget_everything(broker: RunningBroker) -> None:
    """What a dead broker had saved is lost."""
    for path in broker.directory.rglob("*.db"):
        path.unlink()


def edge_state(state: str, release: str | None, **fields: Any) -> ModelState:
    """What an edge says of itself now."""
    empty: dict[str, Any] = {
        "version": None,
        "target": None,
        "target_version": None,
        "reason": "",
        "done_bytes": 0,
        "total_bytes": 0,
        "updated": time.time(),
    }
    return ModelState(state=state, release=release, **{**empty, **fields})  # type: ignore[arg-type]


def worker_report(name: str, *loaded: str, **fields: Any) -> WorkerReleases:
    """What a worker says of itself now."""
    empty: dict[str, Any] = {"loading": (), "failed": (), "agreement": (), "updated": time.time()}
    return WorkerReleases(worker=name, loaded=loaded, **{**empty, **fields})


def agreements(release: str, *counts: tuple[int, str, int, int]) -> tuple[Agreement, ...]:
    """Counts of (layer, kind, agreed, total)."""
    return tuple(Agreement(release, *one) for one in counts)  # type: ignore[arg-type]
