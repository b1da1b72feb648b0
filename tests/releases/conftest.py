"""A broker, a publisher, and followers that tell what they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.run import RunningBroker, run_broker
from broker.session import Session
from releases.fetching import FetchRules
from releases.follower import Candidate, Progress, ReleaseFollower
from releases.settings import FollowSettings
from releases.store import ReleaseStore
from tests.releases.plant import NOW, Plant, make_folder

WAIT_SECONDS = 15.0
QUICK = {"reconnect_min_seconds": 0.05, "reconnect_max_seconds": 0.2}
QUICK_RULES = FetchRules(answer_seconds=0.4, max_asks=2, poll_seconds=0.02)


@pytest.fixture
def mosquitto(mosquitto_program: Path, tmp_path: Path) -> Iterator[RunningBroker]:
    """A fresh mosquitto."""
    with run_broker("mosquitto", tmp_path / "broker") as running:
        yield running


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """A publisher with fresh keys."""
    return Plant(tmp_path / "plant")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder."""
    return make_folder(tmp_path / "model")


@pytest.fixture
def publisher(mosquitto: RunningBroker) -> Iterator[Session]:
    """The publisher's session."""
    with Session(mosquitto.settings().model_copy(update=QUICK), "publisher") as session:
        assert session.wait_connected(WAIT_SECONDS)
        yield session


@dataclass
class Follows:
    """A follower with its session, its store and what it said."""

    follower: ReleaseFollower
    session: Session
    store: ReleaseStore
    adopted: list[Candidate] = field(default_factory=list)
    reports: list[Progress] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    router: threading.Thread | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> str:
        """The last reported state."""
        return self.reports[-1].state if self.reports else ""

    @property
    def reason(self) -> str:
        """The last reported reason."""
        return self.reports[-1].reason if self.reports else ""

    def codes(self) -> set[str]:
        """Every reason code that was reported."""
        return {one.reason_code for one in self.reports if one.reason_code}

    def route(self) -> None:
        """Hand deliveries to the follower, as an agent does."""
        while not self.stopping.is_set():
            delivery = self.session.receive(0.1)
            if delivery is not None:
                if delivery.topic.startswith("elma/v1/blob/"):
                    self.fetched.append(delivery.topic)
                assert self.follower.take(delivery)

    def stop(self) -> None:
        """Everything ends; the store is free again."""
        self.follower.stop()
        self.stopping.set()
        if self.router is not None:
            self.router.join(WAIT_SECONDS)
        self.session.stop()
        self.store.close()


@pytest.fixture
def follow(
    mosquitto: RunningBroker, plant: Plant, tmp_path: Path
) -> Iterator[Callable[..., Follows]]:
    """Starts followers; `adopt` may raise, `settings` are those of `[releases]`."""
    started: list[Follows] = []

    def start(
        store: str = "store",
        *,
        name: str = "kitchen",
        adopt: Callable[[Candidate], None] = lambda _: None,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> Follows:
        session = Session(mosquitto.settings().model_copy(update=QUICK), name)
        kept = ReleaseStore(tmp_path / store)
        reports: list[Progress] = []
        adopted: list[Candidate] = []

        def take_in(candidate: Candidate) -> None:
            adopt(candidate)
            adopted.append(candidate)

        chosen = {
            "waits_for_order": True,
            "keeps_previous": False,
            "wall_clock": lambda: NOW + 60,
            "fetch_rules": QUICK_RULES,
            "retry_seconds": (0.05, 0.2),
            **options,
        }
        follower = ReleaseFollower(
            session,
            kept,
            FollowSettings(publisher_public_key_file=plant.public_file, **(settings or {})),
            plant.public_file,
            name=name,
            adopt=take_in,
            report=reports.append,
            **chosen,
        )
        session.on_connection_change = follower.connection_changed
        session.on_subscription_refused = follower.subscription_refused
        one = Follows(follower, session, kept, adopted, reports)
        started.append(one)
        session.start()
        follower.start()
        one.router = threading.Thread(target=one.route, daemon=True)
        one.router.start()
        return one

    yield start
    for one in started:
        one.stop()
