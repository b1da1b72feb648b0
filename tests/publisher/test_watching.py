"""The rollout service: stages by the clock, pauses by evidence, and goes on after every restart."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.run import RunningBroker
from protocol.manifest import Manifest
from protocol.release_messages import MAX_COUNT, RolloutOrder, edge_fraction
from protocol.topics import ManifestTopic, RolloutTopic
from publisher.errors import PublisherSettingsError, RolloutError
from publisher.fleet import Fleet
from publisher.judging import excuse_failures, judge
from publisher.line import Line
from publisher.making import Wanted, draft_refresh
from publisher.metrics import PublisherMetrics
from publisher.rollout import (
    Wish,
    current_order,
    give_order,
    next_stage,
    order_for,
    parse_share,
    parse_stages,
    publish_order,
)
from publisher.settings import PublisherSettings, RolloutSettings, load_settings
from publisher.store import PublisherStore
from publisher.watching import Watcher
from tests.publisher.conftest import (
    WAIT_SECONDS,
    Members,
    Publisher,
    agreements,
    edge_state,
    forget_everything,
    worker_report,
)

HOLD_SECONDS = 100.0
OpenLine = Callable[..., Line]


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Rollout:
    """A published release at its first stage, a line, and a service that looks when told to."""

    def __init__(
        self, publisher: Publisher, line: Line, broker: RunningBroker, **bounds: Any
    ) -> None:
        self.publisher, self.line = publisher, line
        self.clock, self.metrics = Clock(), PublisherMetrics()
        self.old = publisher.published(publisher.model("a"))
        self.manifest = publisher.published(publisher.model("b", 1))
        self.settings = PublisherSettings(
            store=publisher.store.folder,
            broker=broker.settings(),
            rollout=RolloutSettings(hold_seconds=HOLD_SECONDS, **bounds),
        )
        self.give(share=0.05)

    def give(self, **wish: Any) -> None:
        """An order by hand."""
        store, fleet = self.publisher.store, self.line.view.picture()
        _, signed = give_order(store, "stable", Wish(**wish), fleet, self.clock.now)
        publish_order(self.line, "stable", signed)

    def watcher(self, **options: Any) -> Watcher:
        """A service that has just been started."""
        return Watcher(
            self.settings,
            PublisherStore(self.publisher.store.folder),
            self.publisher.trust,
            self.line,
            self.metrics,
            wall_clock=self.clock,
            **options,
        )

    def order(self) -> RolloutOrder:
        """The order in force, as the store has it."""
        state = self.publisher.store.channel("stable")
        record = state.current
        assert record is not None
        order = current_order(state, self.publisher.store.manifest("stable", record))
        assert order is not None
        return order

    def shown_order(self) -> RolloutOrder | None:
        """The order that the broker retains."""
        shown = self.line.view.picture().order
        return None if shown is None else shown.open(self.manifest.rollout_public)

    def chosen_edge(self, share: float = 0.05) -> str:
        """An edge of the first stage."""
        names = (f"edge-{number}" for number in range(10_000))
        return next(one for one in names if edge_fraction(one, self.manifest.release) < share)

    def sees(self, holds: Callable[[Fleet], bool]) -> None:
        """Wait until the view has it."""
        assert self.line.view.wait_for(holds, WAIT_SECONDS)


@pytest.fixture
def rollout(publisher: Publisher, open_line: OpenLine, mosquitto: RunningBroker) -> Rollout:
    """A release that is at 5 %."""
    return Rollout(publisher, open_line(name="main"), mosquitto)


def failed(manifest: Manifest, code: str = "canaries") -> Any:
    """An edge that could not take a release."""
    return edge_state(
        "failed",
        None,
        target=manifest.release,
        target_version=manifest.version,
        reason="3 of 16 canaries failed",
        reason_code=code,
    )


def test_stages_go_on_after_they_were_held(rollout: Rollout) -> None:
    watcher = rollout.watcher()
    shares = []
    for _ in range(4):
        watcher.step()
        shares.append(rollout.order().share)
        rollout.clock.now += HOLD_SECONDS + 1
    assert shares == [0.05, 0.25, 1.0, 1.0]
    rollout.sees(lambda _: getattr(rollout.shown_order(), "share", None) == 1.0)


def test_a_service_that_was_killed_goes_on_with_the_same_hold(rollout: Rollout) -> None:
    rollout.watcher().step()
    rollout.clock.now += HOLD_SECONDS / 2
    rollout.watcher().step()
    assert rollout.order().share == 0.05
    rollout.clock.now += HOLD_SECONDS / 2 + 1
    rollout.watcher().step()
    assert rollout.order().share == 0.25


def test_a_stage_without_evidence_is_not_left(rollout: Rollout, members: Members) -> None:
    edge = rollout.chosen_edge()
    members.edge(edge, edge_state("active", rollout.old.release, version=1))
    rollout.sees(lambda fleet: edge in fleet.edges)
    watcher = rollout.watcher()
    rollout.clock.now += HOLD_SECONDS + 1
    watcher.step()
    assert rollout.order().share == 0.05
    members.edge(edge, edge_state("active", rollout.manifest.release, version=2))
    rollout.sees(lambda fleet: fleet.edges[edge].version == 2)
    watcher.step()
    assert rollout.order().share == 0.25


def test_the_next_stage_waits_for_a_worker_that_came_late(
    rollout: Rollout, members: Members
) -> None:
    members.worker("late", rollout.old.release)
    rollout.sees(lambda fleet: "late" in fleet.workers)
    watcher = rollout.watcher()
    rollout.clock.now += HOLD_SECONDS + 1
    watcher.step()
    assert rollout.order().share == 0.05
    members.worker("late", rollout.old.release, rollout.manifest.release)
    rollout.sees(lambda fleet: len(fleet.workers["late"].loaded) == 2)
    watcher.step()
    assert rollout.order().share == 0.25


def test_canary_failures_pause_it_with_their_reason(rollout: Rollout, members: Members) -> None:
    members.edge("kitchen", failed(rollout.manifest))
    rollout.sees(lambda fleet: "kitchen" in fleet.edges)
    watcher = rollout.watcher()
    watcher.step()
    order = rollout.order()
    assert order.paused
    assert "1 of 1 edges failed" in order.reason
    assert "canaries" in order.reason
    assert rollout.metrics.pauses.labels("failures")._value.get() == 1
    rollout.clock.now += 10 * HOLD_SECONDS
    watcher.step()
    assert rollout.order() == order


def test_what_an_edge_will_try_again_pauses_nothing(rollout: Rollout, members: Members) -> None:
    members.edge("kitchen", failed(rollout.manifest, "no_space"))
    members.edge("cellar", failed(rollout.manifest, "fetch"))
    rollout.sees(lambda fleet: len(fleet.edges) == 2)
    rollout.watcher().step()
    assert not rollout.order().paused


def test_few_failures_among_many_edges_pause_nothing(rollout: Rollout) -> None:
    edges = {f"e{n}": edge_state("active", rollout.manifest.release, version=2) for n in range(99)}
    edges["bad"] = failed(rollout.manifest)
    store, bounds = rollout.publisher.store, rollout.settings.rollout
    few = judge(store, "stable", Fleet(edges=edges), bounds, rollout.clock.now)
    edges |= {"bad2": failed(rollout.manifest), "bad3": failed(rollout.manifest)}
    many = judge(store, "stable", Fleet(edges=edges), bounds, rollout.clock.now)
    assert not few.against
    assert many.against


def test_a_resumed_rollout_is_not_paused_by_what_was_seen(
    rollout: Rollout, members: Members
) -> None:
    members.edge("kitchen", failed(rollout.manifest))
    rollout.sees(lambda fleet: "kitchen" in fleet.edges)
    watcher = rollout.watcher()
    watcher.step()
    excuse_failures(rollout.publisher.store, "stable", rollout.line.view.picture())
    rollout.give(paused=False, reason="resumed")
    watcher.step()
    assert not rollout.order().paused
    members.edge("cellar", failed(rollout.manifest))
    rollout.sees(lambda fleet: "cellar" in fleet.edges)
    watcher.step()
    assert rollout.order().paused


def test_drift_of_an_exit_pauses_it(rollout: Rollout, members: Members) -> None:
    counts = (
        *agreements(rollout.old.release, (5, "audit", 960, 1000)),
        *agreements(rollout.manifest.release, (5, "audit", 800, 1000)),
    )
    members.worker("one", rollout.old.release, rollout.manifest.release, agreement=counts)
    rollout.sees(lambda fleet: "one" in fleet.workers)
    rollout.watcher().step()
    order = rollout.order()
    assert order.paused
    assert "exit 5 (audit): agreement 0.800 of 1000, was 0.960 of 1000" in order.reason
    assert rollout.metrics.pauses.labels("drift")._value.get() == 1


def test_drift_within_the_bound_pauses_nothing(rollout: Rollout) -> None:
    counts = (
        *agreements(rollout.old.release, (5, "audit", 960, 1000)),
        *agreements(rollout.manifest.release, (5, "audit", 945, 1000)),
    )
    fleet = Fleet(workers={"one": worker_report("one", agreement=counts)})
    bounds = rollout.settings.rollout
    assert not judge(rollout.publisher.store, "stable", fleet, bounds, time.time()).against


def test_a_lost_broker_gets_everything_back(rollout: Rollout, mosquitto: RunningBroker) -> None:
    watcher = rollout.watcher()
    watcher.step()
    mosquitto.kill()
    forget_everything(mosquitto)
    mosquitto.start()
    rollout.sees(lambda fleet: fleet.manifest is None)
    rollout.line.wait_ready(WAIT_SECONDS)
    watcher.step()
    rollout.sees(lambda fleet: fleet.manifest is not None and fleet.order is not None)
    assert rollout.metrics.assertions._value.get() == 2


def test_a_manifest_is_renewed_by_who_has_the_key(rollout: Rollout) -> None:
    rollout.clock.now = rollout.manifest.expires - 86_400.0
    rollout.watcher().step()
    before = rollout.order()
    assert before.version == 2
    rollout.watcher(key=rollout.publisher.key).step()
    order = rollout.order()
    assert (order.version, order.release, order.share) == (3, before.release, before.share)
    assert order.expires > rollout.manifest.expires


def test_a_refresh_keeps_a_pause(rollout: Rollout) -> None:
    rollout.give(paused=True, reason="by hand")
    publisher = rollout.publisher
    wanted = Wanted("stable", publisher.key.key_id, 1e6, rollout.clock.now)
    renewed = draft_refresh(publisher.store, wanted, Fleet(), publisher.trust)
    record = publisher.sign(renewed)
    with publisher.store.change("stable") as state:
        state.mark_published(record)
    order, _ = order_for(publisher.store, "stable", None, "renewed", Fleet(), rollout.clock.now)
    assert (order.version, order.paused, order.share) == (3, True, 0.05)


def test_orders_count_on_beyond_what_the_channel_shows(rollout: Rollout) -> None:
    rollout.sees(lambda fleet: fleet.order is not None)
    with rollout.publisher.store.change("stable") as state:
        state.order = None  # a store that was restored from an older copy
    rollout.give(share=0.1)
    assert rollout.order().sequence == 2


def test_a_new_rollout_key_counts_anew_and_keeps_share_and_pause(rollout: Rollout) -> None:
    rollout.give(paused=True, reason="by hand")
    publisher = rollout.publisher
    before = rollout.order()
    publisher.store.rotate_rollout_key()
    with pytest.raises(RolloutError, match="another rollout key"):
        rollout.give(share=1.0)
    wanted = Wanted("stable", publisher.key.key_id, 1e6, rollout.clock.now)
    record = publisher.sign(draft_refresh(publisher.store, wanted, Fleet(), publisher.trust))
    with publisher.store.change("stable") as state:
        state.mark_published(record)
    order, _ = order_for(publisher.store, "stable", None, "renewed", Fleet(), rollout.clock.now)
    assert (order.share, order.paused) == (before.share, True)
    assert order.sequence == 1


def test_a_key_whose_numbers_are_used_up_is_named_with_the_way_out(rollout: Rollout) -> None:
    key = rollout.publisher.store.rollout_key()
    last = replace(rollout.order(), sequence=MAX_COUNT).sign(key)
    with rollout.publisher.store.change("stable") as state:
        state.order = last
    with pytest.raises(RolloutError, match="rotate-key"):
        rollout.give(share=1.0)


def test_another_stores_key_steers_nothing(rollout: Rollout) -> None:
    (rollout.publisher.store.folder / "rollout-secret.json").unlink()
    with pytest.raises(RolloutError, match="another rollout key"):
        rollout.give(share=1.0)


def test_no_release_no_order(publisher: Publisher) -> None:
    with pytest.raises(RolloutError, match="no published release"):
        give_order(publisher.store, "stable", Wish(1.0), Fleet(), time.time())


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("100%", 1.0), ("0", 0.0)]
)
def test_shares_are_read(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "5", "-1%", "101%", "five", "nan"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(PublisherSettingsError):
        parse_share(text)


def test_stages_grow() -> None:
    stages = parse_stages(["5%", "25%", "100%"])
    assert [next_stage(stages, share) for share in (0.0, 0.05, 0.1, 1.0)] == [
        0.05,
        0.25,
        0.25,
        None,
    ]
    with pytest.raises(PublisherSettingsError, match="grow"):
        parse_stages(["25%", "5%"])


def test_settings_come_from_file_and_environment(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "publisher.toml"
    path.write_text('store = "here"\n[rollout]\nstages = ["10%", "100%"]\n')
    monkeypatch.setenv("ELMA_PUBLISHER_ROLLOUT__HOLD_SECONDS", "7")
    settings = load_settings(path, {"channel": "beta"})
    assert settings.store == tmp_path / "here"
    assert settings.rollout.shares == (0.1, 1.0)
    assert (settings.rollout.hold_seconds, settings.channel) == (7.0, "beta")
    monkeypatch.setenv("ELMA_PUBLISHER_STORES", "x")
    with pytest.raises(PublisherSettingsError, match="no setting"):
        load_settings(path)


def test_the_example_shows_the_defaults(tmp_path: Any) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "publisher.toml"
    path = tmp_path / "publisher.toml"
    path.write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    shown, default = load_settings(path), PublisherSettings()
    assert (shown.rollout, shown.http, shown.broker) == (
        default.rollout,
        default.http,
        default.broker,
    )
    assert (shown.name, shown.channel, shown.store.name) == ("main", "stable", default.store.name)
    named = set(tomllib.loads(path.read_text(encoding="utf-8"))["rollout"])
    assert named == set(RolloutSettings.model_fields)


def test_an_order_that_was_cleared_is_shown_again(rollout: Rollout, members: Members) -> None:
    watcher = rollout.watcher()
    watcher.step()
    rollout.sees(lambda fleet: fleet.order is not None and fleet.manifest is not None)
    members.say(RolloutTopic("stable"), b"")
    rollout.sees(lambda fleet: fleet.order is None)
    watcher.step()
    rollout.sees(lambda fleet: fleet.order is not None)


def test_garbage_in_place_of_the_manifest_is_replaced(rollout: Rollout, members: Members) -> None:
    watcher = rollout.watcher()
    watcher.step()
    rollout.sees(lambda fleet: fleet.manifest is not None)
    members.say(ManifestTopic("stable"), b"garbage")
    rollout.sees(lambda fleet: fleet.manifest is None)
    watcher.step()
    rollout.sees(lambda fleet: fleet.manifest is not None)
