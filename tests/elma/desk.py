"""An operator's desk and the devices of a channel, for tests of the verbs about releases."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from broker.exchange import Publication
from broker.run import RunningBroker
from broker.session import Session
from elma.cli import app
from protocol.messages import Presence, encode_message
from protocol.topics import ModelStateTopic, PresenceTopic
from reader.canaries import load_canaries, run_canaries
from reader.model import Reader
from releases.errors import CanariesFailed
from releases.follower import ReleaseFollower
from releases.progress import Candidate, Progress
from releases.settings import FollowSettings
from releases.store import ReleaseStore
from tests.tiny import make_tiny_model

WAIT_SECONDS = 30.0


class Desk:
    """An operator's folder: keys, models, a store, and the broker's address."""

    def __init__(self, folder: Path, broker: RunningBroker) -> None:
        self.folder, self.broker = folder, broker
        self.run("keys", "publisher", "--out", str(folder / "keys"))
        self.key = ["--key", str(folder / "keys" / "publisher-secret.json")]
        self.public = ["--publisher-public", str(folder / "keys" / "publisher-public.json")]
        self.store = ["--store", str(folder / "store")]

    def options(self, port: int | None = None) -> list[str]:
        """What every verb about releases is told."""
        broker = ["--broker-host", "127.0.0.1", "--broker-port", str(port or self.broker.port)]
        return [*self.public, *self.store, *broker]

    def model(self, name: str, seed: int = 0) -> str:
        """A tiny model folder."""
        path = self.folder / name
        return str(path if path.is_dir() else make_tiny_model(path, layers=2, seed=seed))

    def run(self, *arguments: str) -> dict[str, Any]:
        """`elma ... --json`; its document. Raises what the verb raised."""
        done = CliRunner().invoke(app, [*arguments, "--json"])
        if done.exception is not None:
            raise done.exception
        return dict(json.loads(done.stdout))

    def publish(self, *arguments: str) -> dict[str, Any]:
        """`elma publish ...` with the key; what is published is exactly the folder."""
        return self.run("publish", *arguments, "--as-is", *self.key, *self.options())


class Device:
    """The receiving end: follows the channel, proves canaries, reports its state."""

    def __init__(self, desk: Desk, name: str, *, is_broken: bool = False) -> None:
        self.name, self._is_broken = name, is_broken
        self.reports: list[Progress] = []
        self._heard = threading.Condition()
        self.session = Session(
            desk.broker.settings(),
            f"edge-{name}",
            queue_bound=256,
            birth=Publication(
                str(PresenceTopic("edge", name)), encode_message(Presence(True)), 1, True
            ),
            on_connection_change=self._changed,
        )
        self.store = ReleaseStore(desk.folder / f"device-{name}")
        public = desk.folder / "keys" / "publisher-public.json"
        self.follower = ReleaseFollower(
            self.session,
            self.store,
            FollowSettings(publisher_public_key_file=public),
            public,
            name=name,
            waits_for_order=True,
            keeps_previous=False,
            adopt=self._adopt,
            report=self._report,
        )
        self._stopping = threading.Event()
        self._pump = threading.Thread(target=self._receive)
        self.session.start()
        self.follower.start()
        self._pump.start()

    def stop(self) -> None:
        """Leave."""
        self._stopping.set()
        self.follower.stop()
        self._pump.join()
        self.session.stop()
        self.store.close()

    def wait_for(self, holds: Callable[[Progress], bool]) -> Progress:
        """The first report that holds."""
        with self._heard:
            assert self._heard.wait_for(lambda: any(map(holds, self.reports)), WAIT_SECONDS), (
                self.reports[-1:]
            )
            return next(filter(holds, self.reports))

    def wait_active(self, version: int) -> Progress:
        """The report that this version is in use."""
        return self.wait_for(lambda one: one.state == "active" and one.version == version)

    def folder(self, release: str) -> Path:
        """Where a release lies."""
        found = self.store.installed.find(release)
        assert found is not None
        return found

    def _adopt(self, candidate: Candidate) -> None:
        report = run_canaries(
            Reader.load(candidate.folder, engine="torch", precision="fp32"),
            load_canaries(candidate.folder),
        )
        if not report.has_passed or self._is_broken:
            raise CanariesFailed(report.describe() if not self._is_broken else "2 canaries failed")

    def _report(self, progress: Progress) -> None:
        with self._heard:
            self.reports.append(progress)
            self._heard.notify_all()
        payload = progress.model_state(time.time()).encode()
        if self.session.wait_connected(WAIT_SECONDS):
            self.session.publish(Publication(str(ModelStateTopic(self.name)), payload, 1, True))

    def _changed(self, is_connected: bool) -> None:
        if hasattr(self, "follower"):
            self.follower.connection_changed(is_connected)

    def _receive(self) -> None:
        while not self._stopping.is_set():
            delivery = self.session.receive(0.1)
            if delivery is not None and not self.follower.take(delivery):
                self.session.acknowledge(delivery)
