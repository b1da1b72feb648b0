"""What a rollout waits for is said; and beside a service nobody throws it out of the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from elma.bench.links import Link, ShapingProxy
from elma.cli import app
from elma.output import CommandError
from protocol.release_messages import edge_fraction
from publisher.beside import SOCKET_FILE, hear_service
from publisher.errors import PublisherStoreError, StoreBusy
from publisher.service import run_service
from publisher.settings import load_settings
from reader.weights import folder_digest
from tests.elma.desk import WAIT_SECONDS, Desk
from tests.publisher.conftest import Members, edge_state

HOUR_SECONDS = 3_600.0


@pytest.fixture
def members(desk: Desk) -> Iterator[Members]:
    """Somebody who speaks for edges and workers."""
    speaker = Members(desk.broker)
    yield speaker
    speaker.stop()


def status(desk: Desk, *options: str) -> dict[str, Any]:
    """`elma rollout status --json`."""
    return desk.run("rollout", "status", *desk.options(), *options)


def text(desk: Desk, *verb: str) -> str:
    """What a verb says to a person, its lines one after the other."""
    told = CliRunner().invoke(app, [*verb, *desk.options()])
    assert told.exit_code == 0, told.output
    return told.stdout


def names_below(release: str, share: float, count: int) -> list[str]:
    """Edges that are in a stage."""
    names = (f"edge-{number}" for number in range(10_000))
    found = [one for one in names if edge_fraction(one, release) < share]
    return found[:count]


def test_status_says_which_stage_whose_reports_and_until_when(desk: Desk, members: Members) -> None:
    release = folder_digest(Path(desk.model("a")))
    done, busy, away = names_below(release, 0.05, 3)
    desk.publish(desk.model("a"), "--stage", "5%")
    begun = time.time()
    members.edge(done, edge_state("active", release, version=1))
    loading = edge_state("downloading", None, target=release, done_bytes=40, total_bytes=100)
    members.edge(busy, loading)
    members.edge(away, edge_state("init", None))
    members.worker("late", loading=(release,))
    waits = status(desk)["waits"]
    assert (waits["stage"], waits["next_stage"], waits["is_paused"]) == (0.05, 0.25, False)
    assert (waits["edges_known"], waits["edges_in_stage"]) == (3, 3)
    assert waits["edges_undecided"] == {busy: "downloading, 40 %", away: "has not begun"}
    assert waits["workers_without"] == {"late": "loading"}
    assert abs(waits["until"] - begun - HOUR_SECONDS) < WAIT_SECONDS
    assert waits["publishers_online"] == []
    told = text(desk, "rollout", "status")
    assert "3 of 3 known edges" in told
    assert f"{busy} downloading, 40 %" in told
    assert "worker late has not loaded it: loading" in told
    assert "minutes more), and for late to load it; then goes on to 25 %" in told
    assert "no rollout service is connected" in told


def test_a_pause_and_the_last_stage_wait_for_nothing_of_the_fleet(desk: Desk) -> None:
    desk.publish(desk.model("a"))
    assert "the last stage" in text(desk, "rollout", "status")
    desk.run("rollout", "pause", "--reason", "a strange noise", *desk.options())
    waits = status(desk)["waits"]
    assert (waits["is_paused"], waits["pause_reason"]) == (True, "a strange noise")
    assert "waits for `elma rollout resume`" in text(desk, "rollout", "status")


def test_who_only_asks_is_no_service_whatever_its_account(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.publish(desk.model("a"), "--stage", "5%")
    monkeypatch.setenv("ELMA_PUBLISHER_BROKER__USERNAME", "somebody")
    assert status(desk)["waits"]["publishers_online"] == []


def test_no_two_columns_of_a_table_have_one_name(desk: Desk, members: Members) -> None:
    desk.publish(desk.model("a"))
    release = folder_digest(Path(desk.model("a")))
    members.edge("kitchen", edge_state("active", release, version=1))
    members.worker("one", release)
    headings = [
        [name.strip() for name in line.split("┃") if name.strip()]
        for line in text(desk, "releases").splitlines()
        if "┃" in line
    ]
    assert len(headings) == 3
    assert all(len(names) == len(set(names)) for names in headings)
    explained = CliRunner().invoke(app, ["releases", "--help"]).stdout
    for word in ("signed by", "expires in", "state", "runs", "goes to"):
        assert word in explained


class Beside:
    """A rollout service with the account `main`, in this process, and its settings file."""

    def __init__(self, desk: Desk, port: int) -> None:
        self.desk, self.port = desk, port
        self.config = desk.folder / "publisher.toml"
        self.config.write_text(
            f"""
            store = "{desk.folder / "store"}"
            publisher_public_key_file = "{desk.folder / "keys" / "publisher-public.json"}"
            [rollout]
            check_seconds = 0.05
            stages = ["5%", "50%", "100%"]
            [http]
            port = {port}
            [broker]
            port = {desk.broker.port}
            username = "main"
            """
        )
        self.store = desk.folder / "store"
        self._stop = threading.Event()
        settings = load_settings(self.config)
        self._thread = threading.Thread(target=run_service, args=(settings, self._stop))

    def start(self) -> None:
        """Return once it is connected."""
        self._thread.start()
        deadline = time.monotonic() + WAIT_SECONDS
        while not getattr(hear_service(self.store, "stable"), "is_connected", False):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while self.assertions() < 1:
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(WAIT_SECONDS)

    def assertions(self) -> float:
        """How often it has had to make the channel whole: once more after each new connection."""
        metrics = urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode()
        name = "elma_publisher_assertions_total "
        return float(next(one for one in metrics.splitlines() if one.startswith(name)).split()[1])

    def run(self, *verb: str) -> dict[str, Any]:
        """A verb with the service's own account."""
        return self.desk.run(*verb, "--config", str(self.config))


@pytest.fixture
def beside(desk: Desk, free_port: Callable[[], int]) -> Iterator[Beside]:
    """A service that holds a release at 5 %."""
    desk.publish(desk.model("a"), "--stage", "5%")
    service = Beside(desk, free_port())
    service.start()
    yield service
    service.stop()


def test_with_the_services_account_nobody_throws_it_out(beside: Beside) -> None:
    before = hear_service(beside.store, "stable")
    for _ in range(3):
        found = beside.run("rollout", "status")
    listed = beside.run("releases")["channels"]["stable"]
    after = hear_service(beside.store, "stable")
    assert before is not None
    assert after is not None
    assert before.account == "main"
    assert "the rollout service of this machine" in found["told_by"]
    assert found["shown"]["version"] == listed["shown"]["version"] == 1
    assert found["waits"]["publishers_online"] == ["main"]
    assert found["waits"]["next_stage"] == 0.5, "the service's own stages"
    assert beside.assertions() == 1


def test_another_broker_than_the_services_is_asked_itself(beside: Beside, desk: Desk) -> None:
    assert "the rollout service" in status(desk)["told_by"]
    with ShapingProxy(desk.broker.port, Link("another", 1e9, 0.0)) as proxy:
        elsewhere = desk.run("rollout", "status", *desk.options(proxy.port))
        its_account = beside.run("rollout", "status", "--broker-port", str(proxy.port))
    assert elsewhere["told_by"] == "the broker"
    assert elsewhere["waits"]["publishers_online"] == ["main"]
    assert "the rollout service" in its_account["told_by"]


def test_an_order_beside_the_service_is_shown_by_it(beside: Beside, desk: Desk) -> None:
    order = beside.run("rollout", "pause", "--reason", "a strange noise")
    assert order["paused"]
    heard = hear_service(beside.store, "stable")
    assert heard is not None
    assert heard.fleet.order is not None
    manifest = heard.fleet.manifest
    assert manifest is not None
    beside.stop()
    shown = status(desk)["rollout"]
    assert (shown["paused"], shown["sequence"]) == (True, order["sequence"])


def test_a_publish_with_the_services_account_is_refused_and_with_another_is_not(
    beside: Beside, desk: Desk
) -> None:
    command = ["publish", desk.model("b", 1), "--as-is", *desk.key]
    with pytest.raises(CommandError, match="would throw it out") as raised:
        beside.run(*command)
    assert raised.value.exit_status == 2
    assert "enroll-publisher" in str(raised.value)
    assert desk.publish(desk.model("b", 1), "--force")["version"] == 2


def test_a_second_service_for_the_same_channel_is_refused(beside: Beside) -> None:
    settings = load_settings(beside.config, {"http": {"port": 0}})
    at_once = threading.Event()
    at_once.set()
    with pytest.raises(StoreBusy, match="steers channel stable"):
        run_service(settings, at_once)


def test_a_service_that_has_gone_is_not_asked(beside: Beside, desk: Desk) -> None:
    socket_file = beside.store / "stable" / SOCKET_FILE
    mode = socket_file.stat().st_mode & 0o077
    beside.stop()
    assert mode == 0
    assert hear_service(beside.store, "stable") is None
    assert status(desk)["told_by"] == "the broker"


def test_a_socket_that_a_killed_service_left_is_in_nobodys_way(
    beside: Beside, desk: Desk, free_port: Callable[[], int]
) -> None:
    socket_file = beside.store / "stable" / SOCKET_FILE
    kept = desk.folder / "kept.sock"
    socket_file.rename(kept)  # so the service cannot take it away when it ends
    beside.stop()
    kept.rename(socket_file)
    assert status(desk)["told_by"] == "the broker"
    again = Beside(desk, free_port())
    again.start()
    again.stop()


def test_a_service_that_speaks_otherwise_is_named(beside: Beside, monkeypatch: Any) -> None:
    monkeypatch.setattr("publisher.beside.RolloutService._document", lambda _: {"pid": 1})
    with pytest.raises(PublisherStoreError, match="restart it"):
        hear_service(beside.store, "stable")


def test_a_service_without_its_broker_says_so(
    beside: Beside, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELMA_PUBLISHER_BROKER__CONNECT_TIMEOUT_SECONDS", "0.1")
    desk.broker.stop()
    deadline = time.monotonic() + WAIT_SECONDS
    while getattr(hear_service(beside.store, "stable"), "is_connected", True):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(CommandError, match="has no connection to broker"):
        beside.run("rollout", "status")
