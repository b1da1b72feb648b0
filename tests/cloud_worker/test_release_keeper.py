"""What a worker does with candidates and with what edges say; the follower is a stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.exchange import Delivery
from broker.session import Session
from cloud_worker import release_keeper, release_loading
from cloud_worker.agreement import AgreementCounter
from cloud_worker.metrics import WorkerMetrics
from cloud_worker.release_keeper import CATCH_UP_SECONDS, ReleaseKeeper
from cloud_worker.release_loading import LOAD_AGAIN_SECONDS
from cloud_worker.release_start import load_releases
from cloud_worker.settings import ReleaseSettings, WorkerSettings
from protocol.release_messages import ModelState
from protocol.topics import ModelStateTopic
from reader.model import Reader
from reader.weights import folder_digest
from releases.errors import (
    CanariesFailed,
    CannotLoad,
    NotEnoughSpace,
    ProofStarved,
    ProofTimedOut,
)
from releases.progress import Candidate, Progress
from releases.proving import CheckReport, Computing
from releases.store import ReleaseStore
from tests.cloud_worker.fakes import FakeClock, FakeSession
from tests.cloud_worker.harness import wait_until
from tests.tiny import make_tiny_model

NOBODYS = "f" * 64


class FakeFollower:
    """Hands over what a test says, and follows nothing."""

    def __init__(self, *_: Any, **given: Any) -> None:
        self.adopt, self.report = given["adopt"], given["report"]

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def take(self, _delivery: Delivery) -> bool:
        return False

    def connection_changed(self, _is_connected: bool) -> None: ...

    def subscription_refused(self, _topic_filter: str) -> None: ...

    def health(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Model:
    """A model folder and the digest of its release."""

    folder: Path
    digest: str


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """The settings' own model, and releases of the channel."""
    folder = tmp_path_factory.mktemp("models")
    made = [make_tiny_model(folder / str(seed), seed=seed) for seed in range(4)]
    return [Model(one, Reader.load(one, precision="fp32").digest) for one in made]


class Kept:
    """A keeper with a store, whose canaries pass unless a test says otherwise."""

    def __init__(self, folder: Path, own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rules = ReleaseSettings(
            publisher_public_key_file=folder / "none.json",
            folder=folder / "store",
            max_loaded=3,
            idle_seconds=100.0,
            probation_seconds=60.0,
        )
        self.settings = WorkerSettings(
            name="one", model=str(own.folder), precision="fp32", threads=1, releases=self.rules
        )
        self.checked: list[Path] = []
        self.refusal: Exception | None = None
        monkeypatch.setattr(release_keeper, "ReleaseFollower", FakeFollower)
        monkeypatch.setattr(release_loading, "check_in_child", self.check)
        self.clock, self.session, self.metrics = FakeClock(), FakeSession(), WorkerMetrics()
        self.start()

    def start(self) -> None:
        """Its first life, or the next one."""
        self.store = ReleaseStore(self.rules.folder, max_starts=self.rules.max_starts)
        self.releases = load_releases(self.settings, self.store, clock=self.clock)
        self.agreement = AgreementCounter(self.metrics.agreement)
        self.keeper = ReleaseKeeper(
            self.settings,
            self.rules,
            self.store,
            self.releases,
            cast(Session, self.session),
            self.metrics,
            self.agreement,
            clock=self.clock,
            wall_clock=self.clock,
        )

    def check(self, folder: Path, _computing: Computing, **_: Any) -> CheckReport:
        self.checked.append(folder)
        if self.refusal is not None:
            raise self.refusal
        return CheckReport(1, 0, 0.1)

    @property
    def follower(self) -> FakeFollower:
        return cast(FakeFollower, self.keeper._follower)

    def install(self, model: Model) -> Path:
        """As a follower does, before it hands over."""
        folder = self.store.installed.path_of(model.digest)
        if not folder.is_dir():
            shutil.copytree(model.folder, folder)
        return folder

    def adopt(self, model: Model, version: int = 1) -> None:
        """Hand a release over, and remember it as a follower does."""
        manifest = SimpleNamespace(release=model.digest, version=version)
        self.follower.report(Progress("verified", target=model.digest, target_version=version))
        self.follower.adopt(Candidate(cast(Any, manifest), self.install(model)))
        self.store.commit(model.digest, version, f"m{version}", 2e9)
        self.follower.report(Progress("active", release=model.digest, version=version))

    def say(self, edge: str, release: str | None) -> None:
        """What an edge says of itself."""
        state = ModelState("active", release, None, None, None, "", 0, 0, self.clock())
        topic = str(ModelStateTopic(edge))
        assert self.keeper.take(Delivery(topic, state.encode(), epoch=1, mid=1))

    def care(self) -> None:
        """Once around, as the keeper's thread goes."""
        self.keeper._go_around()

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"elma_worker_{name}", labels)


@pytest.fixture
def kept(tmp_path: Path, models: list[Model], monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    made = Kept(tmp_path, models[0], monkeypatch)
    yield made
    made.store.close()


def test_a_candidate_is_loaded_beside_what_is_there_once_it_is_proved(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[1], version=7)
    assert [folder.name for folder in kept.checked] == [models[1].digest]
    assert kept.releases.digests() == {models[0].digest, models[1].digest}
    assert kept.releases.names()[1].startswith("stable-7@")
    assert kept.value("release_loads_total") == 1


@pytest.mark.parametrize("refusal", [CanariesFailed("2 of 3"), CannotLoad("no memory")])
def test_what_is_not_proved_is_never_loaded(
    kept: Kept, models: list[Model], refusal: Exception
) -> None:
    kept.refusal = refusal
    with pytest.raises(type(refusal)):
        kept.adopt(models[1])
    assert kept.releases.digests() == {models[0].digest}


def test_a_folder_that_no_reader_comes_of_is_refused_for_good(
    kept: Kept, models: list[Model]
) -> None:
    (kept.install(models[1]) / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CannotLoad, match="cannot be loaded here"):
        kept.adopt(models[1])


def test_a_failure_is_told_until_something_newer_is_done_about_that_release(
    kept: Kept, models: list[Model]
) -> None:
    digest = models[1].digest
    failed = Progress("failed", target=digest, reason="the disk is full", reason_code="no_space")
    kept.follower.report(failed)
    kept.follower.report(failed)
    assert kept.keeper.health()["failed"] == {digest: "the disk is full"}
    assert kept.value("release_failures_total", reason="no_space") == 1
    kept.follower.report(Progress("downloading", target=digest))
    assert kept.keeper.health()["failed"] == {}
    assert kept.keeper.health()["loading"] == [digest]
    kept.store.refuse(digest, 1, "m1", "its canaries failed")
    kept.follower.report(Progress("active"))
    assert kept.keeper.health()["failed"] == {digest: "its canaries failed"}


def test_only_what_nobody_needs_makes_room(kept: Kept, models: list[Model]) -> None:
    kept.adopt(models[1])
    kept.say("kitchen", models[1].digest)
    kept.adopt(models[2], version=2)
    with pytest.raises(NotEnoughSpace, match="finds no place"):  # own, in the channel, named
        kept.adopt(models[3], version=3)
    assert models[3].digest not in {folder.name for folder in kept.checked}  # nothing in vain
    kept.say("kitchen", models[2].digest)
    kept.adopt(models[3], version=3)
    assert kept.releases.digests() == {models[place].digest for place in (0, 2, 3)}
    assert kept.store.installed.find(models[1].digest) is None
    assert kept.value("releases_retired_total", why="evicted") == 1
    kept.care()
    assert kept.value("release_info", release=models[1].digest[:12]) is None
    assert kept.value("release_info", release=models[3].digest[:12]) == 1


def test_what_is_idle_and_not_needed_goes_and_its_series_with_it(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[1])
    kept.adopt(models[2], version=2)
    held = kept.releases.find(models[1].digest)
    kept.metrics.seconds_per_token.labels(held.digest[:12]).set(1.0)
    kept.care()
    assert models[1].digest in kept.releases.digests()
    kept.clock.now += kept.rules.idle_seconds
    kept.care()
    assert kept.releases.digests() == {models[0].digest, models[2].digest}
    assert kept.value("seconds_per_token", release=held.digest[:12]) == 1.0  # still computed with
    digest = held.digest
    del held
    kept.care()
    assert kept.value("seconds_per_token", release=digest[:12]) is None
    assert kept.store.installed.digests() == (models[2].digest,)


def test_the_settings_own_model_stays_even_after_the_channel_has_left_it_behind(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[0])
    kept.adopt(models[1], version=2)
    kept.clock.now += kept.rules.idle_seconds
    kept.care()
    assert models[0].digest in kept.releases.digests()


def test_what_was_fetched_is_there_after_a_restart_and_is_proved_again(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[1])
    kept.adopt(models[2], version=2)
    kept.keeper.stop()
    kept.checked.clear()
    kept.start()
    assert kept.releases.digests() == {models[0].digest, models[2].digest}  # the channel's at once
    assert kept.keeper.is_coming(models[1].digest)
    kept.care()
    assert models[1].digest in kept.releases.digests()
    assert [folder.name for folder in kept.checked] == [models[1].digest]


def test_a_release_that_was_damaged_gives_way_at_the_start_and_may_be_fetched_again(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[1])
    kept.store.confirm()
    kept.adopt(models[2], version=2)
    kept.keeper.stop()
    (kept.rules.folder / "installed" / models[2].digest / "model.safetensors").write_bytes(b"?")
    kept.start()
    assert kept.releases.digests() == {models[0].digest, models[1].digest}
    assert kept.store.refusal("m2") is None
    assert kept.store.installed.find(models[2].digest) is None
    kept.adopt(models[2], version=2)
    assert models[2].digest in kept.releases.digests()


def test_a_release_that_cannot_be_loaded_gives_way_at_the_start_for_good(
    kept: Kept, models: list[Model], tmp_path: Path
) -> None:
    made = make_tiny_model(tmp_path / "made", seed=9)
    (made / "tokenizer.json").write_text("{}", encoding="utf-8")
    bad = Model(made, folder_digest(made))  # complete, as it was signed, and of no use
    kept.install(bad)
    kept.store.commit(bad.digest, 1, "m1", 2e9)
    kept.keeper.stop()
    kept.start()
    assert kept.releases.digests() == {models[0].digest}
    assert "cannot be loaded" in (kept.store.refusal("m1") or "")
    assert bad.digest in kept.keeper.health()["failed"]


def test_a_spoilt_file_that_the_digest_does_not_cover_costs_no_release(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[1])
    (kept.store.installed.path_of(models[1].digest) / "codecs.json").write_bytes(b"\0\0")
    kept.keeper.stop()
    kept.start()
    assert kept.releases.digests() == {models[0].digest, models[1].digest}
    assert kept.store.refusal("m1") is None


@pytest.mark.parametrize("passing", [ProofTimedOut("too busy"), ProofStarved("no memory")])
def test_what_could_not_be_proved_at_the_start_is_tried_again_later(
    kept: Kept, models: list[Model], passing: Exception
) -> None:
    kept.install(models[1])
    kept.keeper.stop()
    kept.start()
    kept.refusal = passing
    for _ in range(3):
        kept.care()
    assert len(kept.checked) == 1  # not at once
    assert kept.keeper.health()["failed"] == {models[1].digest: str(passing)}
    kept.refusal = None
    kept.clock.now += LOAD_AGAIN_SECONDS[0]
    kept.care()
    assert models[1].digest in kept.releases.digests()
    assert kept.keeper.health()["failed"] == {}


def test_what_is_refused_or_damaged_at_the_start_is_not_tried_again(
    kept: Kept, models: list[Model]
) -> None:
    for model in models[1:3]:
        kept.install(model)
    (kept.store.installed.path_of(models[2].digest) / "model.safetensors").write_bytes(b"?")
    kept.keeper.stop()
    kept.start()
    kept.refusal = CanariesFailed("2 of 3")
    for _ in range(4):
        kept.care()
        kept.clock.now += LOAD_AGAIN_SECONDS[1]
    assert [folder.name for folder in kept.checked] == [models[1].digest]
    assert kept.keeper.health()["loading"] == []


def test_a_release_is_confirmed_once_it_has_worked_for_long_enough(
    kept: Kept, models: list[Model]
) -> None:
    kept.adopt(models[1])
    kept.care()
    assert kept.store.state.probation is not None
    kept.clock.now += kept.rules.probation_seconds
    kept.care()
    assert kept.store.state.probation is None


def test_a_release_is_coming_while_it_is_fetched_and_shortly_after_the_start(
    kept: Kept, models: list[Model]
) -> None:
    assert kept.keeper.is_coming(NOBODYS)
    kept.clock.now += CATCH_UP_SECONDS
    assert not kept.keeper.is_coming(NOBODYS)
    kept.follower.report(Progress("downloading", target=models[1].digest))
    assert kept.keeper.is_coming(models[1].digest)
    assert not kept.keeper.is_coming(NOBODYS)
    kept.follower.report(Progress("failed", target=models[1].digest, reason="it failed"))
    assert not kept.keeper.is_coming(models[1].digest)


def test_a_malformed_model_state_is_ignored_and_acknowledged(kept: Kept) -> None:
    delivery = Delivery(str(ModelStateTopic("kitchen")), b"?", epoch=1, mid=1)
    assert kept.keeper.take(delivery)
    assert kept.session.acknowledged == [delivery]
    assert kept.keeper.health()["living_edges"] == 0


def test_the_thread_loads_cares_and_ends(kept: Kept, models: list[Model]) -> None:
    kept.install(models[1])
    kept.keeper.stop()
    kept.start()
    kept.keeper.start()
    wait_until(lambda: models[1].digest in kept.releases.digests(), "the release of the disk")
    kept.keeper.stop()
    assert kept.session.published[-1].topic == "elma/v1/state/one/releases"
