"""`elma monitor`: real edges report over a real broker, Prometheus' own reader reads what is shown.

Who lies about others, or sends bytes that are no report, changes nothing but a counter.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from broker.exchange import Delivery, Publication
from broker.run import RunningBroker, run_broker
from broker.session import Session
from broker.settings import BrokerSettings
from elma.monitor import service
from elma.monitor.errors import MonitorListenError, MonitorSettingsError
from elma.monitor.fleet import ReportedFleet
from elma.monitor.service import Monitor, run_monitor
from elma.monitor.settings import MonitorSettings, load_settings
from protocol.key_files import save_edge_keys, save_pool_public
from protocol.keys import EdgeKeys, PoolKeys
from protocol.metrics_messages import Family, MetricsReport, Sample
from protocol.wire import Kind, encode_frame
from tests.broker.secured import make_site, serving
from tests.cloud_worker.harness import ElmaProcess, wait_until, write_toml
from tests.tiny import make_tiny_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "monitor.toml"
PENDING = "elma_edge_outbox_pending"
Shown = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def gauge(value: float, name: str = PENDING, interval_seconds: float = 60.0) -> MetricsReport:
    """A report of one number."""
    return MetricsReport(interval_seconds, (Family(name, "gauge", (Sample("", (), value),)),))


def delivery(edge: str, payload: bytes | MetricsReport, **changes: Any) -> Delivery:
    """What the session would hand over."""
    content = payload if isinstance(payload, bytes) else payload.encode()
    return replace(Delivery(f"elma/v1/metrics/{edge}", content, epoch=1, mid=0, qos=0), **changes)


def read(text: str) -> Shown:
    """Every sample that Prometheus would take; a failure where a metric is described twice."""
    families = list(text_string_to_metric_families(text))
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Fleet:
    """A fleet with a clock, and what it shows."""

    def __init__(self, *, max_edges: int = 10, max_samples: int = 1_000) -> None:
        self.clock = Clock()
        self.reported = ReportedFleet(
            missed_intervals=3.0,
            max_edges=max_edges,
            max_samples=max_samples,
            is_connected=lambda: True,
            dropped_total=lambda: 0,
            clock=self.clock,
            wall_clock=lambda: 1_700_000_000.0,
        )

    def take(self, edge: str, payload: bytes | MetricsReport, **changes: Any) -> str:
        return self.reported.take(delivery(edge, payload, **changes))

    def shown(self) -> Shown:
        return read(generate_latest(self.reported.registry).decode())

    def pending(self) -> dict[str, float]:
        """What each edge is shown to have pending."""
        return {
            dict(labels)["edge"]: value
            for (name, labels), value in self.shown().items()
            if name == PENDING
        }

    def count(self, result: str) -> float:
        return self.shown()["elma_monitor_messages_total", (("result", result),)]


def test_the_last_report_of_each_edge_is_shown_under_its_name() -> None:
    fleet = Fleet()
    for edge, value in (("kitchen", 1.0), ("cellar", 2.0), ("kitchen", 3.0)):
        assert fleet.take(edge, gauge(value)) == "taken"
    assert fleet.pending() == {"kitchen": 3.0, "cellar": 2.0}
    shown = fleet.shown()
    assert shown["elma_monitor_edges", ()] == 2
    assert shown["elma_monitor_samples", ()] == 2
    at = shown["elma_monitor_last_report_timestamp_seconds", (("edge", "cellar"),)]
    assert at == 1_700_000_000.0


def test_counters_and_histograms_are_shown_as_what_they_are() -> None:
    fleet = Fleet()
    buckets = [Sample("_bucket", (("le", edge),), 2.0) for edge in ("0.1", "+Inf")]
    families = (
        Family("elma_edge_questions", "counter", (Sample("_total", (("result", "a"),), 7.0),)),
        Family(
            "elma_edge_answer_seconds",
            "histogram",
            (*buckets, Sample("_count", (), 2.0), Sample("_sum", (), 0.1)),
        ),
    )
    fleet.take("kitchen", MetricsReport(60.0, families))
    text = generate_latest(fleet.reported.registry).decode()
    assert "# TYPE elma_edge_questions_total counter" in text
    assert "# TYPE elma_edge_answer_seconds histogram" in text
    shown = fleet.shown()
    assert shown["elma_edge_questions_total", (("edge", "kitchen"), ("result", "a"))] == 7.0
    infinite = (("edge", "kitchen"), ("le", "+Inf"))
    assert shown["elma_edge_answer_seconds_bucket", infinite] == 2.0


def test_an_edge_that_is_silent_for_three_of_its_intervals_is_shown_no_more() -> None:
    fleet = Fleet()
    fleet.take("kitchen", gauge(1.0, interval_seconds=10.0))
    fleet.take("cellar", gauge(1.0, interval_seconds=60.0))
    fleet.clock.now += 29.0
    assert set(fleet.pending()) == {"kitchen", "cellar"}
    fleet.clock.now += 2.0
    assert set(fleet.pending()) == {"cellar"}
    assert fleet.shown()["elma_monitor_samples", ()] == 1


def test_edges_past_the_bound_find_no_place_until_one_is_gone() -> None:
    fleet = Fleet(max_edges=2)
    for edge in ("a", "b", "c"):
        fleet.take(edge, gauge(1.0, interval_seconds=10.0))
    fleet.take("b", gauge(2.0))  # who is known goes on
    assert fleet.pending() == {"a": 1.0, "b": 2.0}
    assert fleet.count("no_place") == 1
    fleet.clock.now += 31.0
    assert fleet.take("c", gauge(3.0)) == "taken"


def test_samples_past_the_bound_are_not_taken_and_the_report_before_stays() -> None:
    fleet = Fleet(max_samples=3)
    fleet.take("a", gauge(1.0))
    fleet.take("b", gauge(1.0))
    samples = tuple(Sample("", (("layer", str(number)),), 1.0) for number in range(3))
    large = MetricsReport(60.0, (Family("elma_edge_large", "gauge", samples),))
    assert fleet.take("b", large) == "no_place"
    assert fleet.pending() == {"a": 1.0, "b": 1.0}
    assert fleet.take("c", gauge(1.0)) == "taken"


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"payload": b""}, "malformed"),
        ({"payload": b"ELMA" + bytes(40)}, "malformed"),
        ({"payload": gauge(1.0).encode()[:-1]}, "malformed"),
        ({"payload": encode_frame(Kind.PRESENCE, {"online": True})}, "malformed"),
        ({"payload": encode_frame(Kind.METRICS, {"families": []})}, "malformed"),
        ({"payload": bytes(1024 * 1024)}, "malformed"),
        ({"topic": "elma/v1/metrics/kit chen"}, "malformed"),
        ({"topic": "elma/v1/state/kitchen/model"}, "malformed"),
        ({"retained": True}, "retained"),
    ],
)
def test_what_is_no_report_changes_nothing_but_a_counter(
    changes: dict[str, Any], result: str
) -> None:
    fleet = Fleet()
    fleet.take("kitchen", gauge(1.0))
    before = fleet.shown()
    assert fleet.take("kitchen", **({"payload": gauge(2.0)} | changes)) == result
    after = fleet.shown()
    counted = ("elma_monitor_messages_total", (("result", result),))
    assert after.pop(counted) == before.pop(counted) + 1
    assert of_reports(after) == of_reports(before)


def of_reports(shown: Shown) -> Shown:
    """Without what the monitor's own process says of itself, which changes all the time."""
    own = ("_created", "elma_monitor_process_")
    return {key: value for key, value in shown.items() if not any(one in key[0] for one in own)}


def test_an_edge_that_calls_a_metric_something_else_hides_nobody() -> None:
    fleet = Fleet()
    sample = Sample("_count", (), 1.0)
    fleet.take("aaa-liar", MetricsReport(60.0, (Family(PENDING, "histogram", (sample,)),)))
    fleet.take("kitchen", gauge(1.0))
    fleet.take("cellar", gauge(2.0))
    assert fleet.pending() == {"kitchen": 1.0, "cellar": 2.0}
    assert not any(name == f"{PENDING}_count" for name, _ in fleet.shown())


def test_text_in_a_label_stays_in_its_label() -> None:
    fleet = Fleet()
    nasty = 'x"} 1 # \\n elma_edge_forged 9'
    family = Family("elma_edge_release_info", "gauge", (Sample("", (("release", nasty),), 1.0),))
    fleet.take("kitchen", MetricsReport(60.0, (family,)))
    shown = fleet.shown()
    assert shown["elma_edge_release_info", (("edge", "kitchen"), ("release", nasty))] == 1.0
    assert not any("forged" in name for name, _ in shown)


@pytest.fixture
def mosquitto(mosquitto_program: Path, tmp_path: Path) -> Iterator[RunningBroker]:
    """A running mosquitto."""
    with run_broker("mosquitto", tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Ends every process of the test."""
    with ExitStack() as stack:
        yield stack


def start(processes: ExitStack, arguments: list[str], log_file: Path) -> ElmaProcess:
    process = ElmaProcess(arguments, log_file)
    processes.callback(process.stop)
    return process


def scrape(url: str) -> Shown:
    return read(httpx.get(url, timeout=10.0, trust_env=False).text)


def steady(shown: Shown) -> Shown:
    """Without times of creation, which no report has, and values that change by themselves."""
    return {
        (name, labels): 0.0 if name.startswith("elma_edge_process_") else value
        for (name, labels), value in shown.items()
        if not name.endswith("_created")
    }


def test_a_real_edge_is_seen_through_a_real_broker_and_gone_after_it_stops(
    mosquitto: RunningBroker, tmp_path: Path, processes: ExitStack
) -> None:
    save_edge_keys(tmp_path / "edge.json", EdgeKeys.make("kitchen"))
    save_pool_public(tmp_path / "pool.json", PoolKeys.make("p1").public)
    broker = {"port": mosquitto.port, "reconnect_min_seconds": 0.1}
    edge_toml, monitor_toml = tmp_path / "edge.toml", tmp_path / "monitor.toml"
    edge_settings = {
        "name": "kitchen",
        "model": str(make_tiny_model(tmp_path / "tiny")),
        "outbox": "outbox.sqlite3",
        "threads": 1,
        "http": {"port": 0},
        "broker": broker,
        "offload": {"edge_key_file": "edge.json", "pool_public_key_file": "pool.json"},
        "metrics": {"report_seconds": 1.0},
    }
    write_toml(edge_toml, edge_settings)
    write_toml(monitor_toml, {"name": "eye", "broker": broker, "http": {"port": 0}})
    monitor = start(processes, ["monitor", "--config", str(monitor_toml)], tmp_path / "monitor.log")
    edge = start(processes, ["edge", "run", "--config", str(edge_toml)], tmp_path / "edge.log")
    url = monitor.wait_for_event("monitor_listening")["url"]
    edge_url = edge.wait_for_event("edge_listening")["url"]
    body = {"question": "who was old", "context": "the keeper was old.", "deadline_seconds": 2.0}
    assert httpx.post(f"{edge_url}/v1/answer", json=body, timeout=60.0).status_code == 200

    def is_the_same() -> bool:
        shown = steady(scrape(url))
        expected = {
            (name, tuple(sorted((("edge", "kitchen"), *labels)))): value
            for (name, labels), value in steady(scrape(f"{edge_url}/metrics")).items()
        }
        return len(expected) > 50 and expected.items() <= shown.items()

    wait_until(is_the_same, "everything that the edge shows, through the monitor")
    with Session(mosquitto.settings(), "liar") as liar:
        assert liar.wait_connected(10.0)
        liar.publish(Publication("elma/v1/metrics/kitchen", b"\xff" * 100, qos=0))
        counted = ("elma_monitor_messages_total", (("result", "malformed"),))
        wait_until(lambda: scrape(url)[counted] == 1, "the hostile bytes to be counted")
        assert is_the_same()
    edge.signal(signal.SIGTERM)
    assert edge.wait() == 0
    wait_until(lambda: scrape(url)["elma_monitor_edges", ()] == 0, "the edge to be forgotten")
    assert not any(name.startswith("elma_edge_") for name, _ in scrape(url))
    health = httpx.get(url.replace("/metrics", "/healthz"), trust_env=False)
    assert (health.status_code, health.json()) == (200, {"status": "ok", "connected": True})
    monitor.signal(signal.SIGTERM)
    assert monitor.wait() == 0


def test_a_monitor_that_hears_no_more_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(MonitorSettings(broker=BrokerSettings(port=1)))
    hangs, may_end = threading.Event(), threading.Event()

    def hang(_: float) -> None:
        hangs.set()
        may_end.wait(60.0)

    monkeypatch.setattr(monitor._session, "receive", hang)
    monitor.start()
    try:
        assert hangs.wait(60.0)
        assert monitor.is_alive  # not for long enough; and that nobody answers is no reason
        monkeypatch.setattr(service, "STUCK_SECONDS", 0.0)
        assert not monitor.is_alive
    finally:
        may_end.set()
        monitor.stop()


def test_on_a_secured_broker_an_edge_reports_as_itself_only(
    mosquitto_program: Path,
    tmp_path: Path,
    processes: ExitStack,
    free_port: Callable[[], int],
) -> None:
    site = make_site(tmp_path, free_port())

    def broker_as(member: str) -> dict[str, Any]:
        key = site.cards / f"{member}.key"
        key.chmod(0o600)
        return {
            "port": site.folder.port,
            "tls_ca_file": str(site.cards / "server-authority.pem"),
            "tls_certificate_file": str(site.cards / f"{member}.pem"),
            "tls_key_file": str(key),
        }

    config = tmp_path / "monitor.toml"
    settings = {"name": "eye", "broker": broker_as("monitor-eye"), "http": {"port": 0}}
    write_toml(config, settings)
    with serving(site):
        monitor = start(processes, ["monitor", "--config", str(config)], tmp_path / "monitor.log")
        url = monitor.wait_for_event("monitor_listening")["url"]
        connected = ("elma_monitor_broker_connected", ())
        wait_until(lambda: scrape(url)[connected] == 1, "the monitor connected")
        with Session(BrokerSettings(**broker_as("edge-kitchen")), "edge-kitchen") as kitchen:
            assert kitchen.wait_connected(10.0)
            for edge, value in (("garage", 9.0), ("kitchen", 1.0)):
                content = gauge(value).encode()
                kitchen.publish(Publication(f"elma/v1/metrics/{edge}", content, qos=0))
            own = (PENDING, (("edge", "kitchen"),))
            wait_until(lambda: scrape(url).get(own) == 1.0, "the edge's own report")
            assert scrape(url)["elma_monitor_edges", ()] == 1


def test_a_monitor_lives_through_the_broker_s_absence(
    mosquitto_program: Path,
    tmp_path: Path,
    processes: ExitStack,
    free_port: Callable[[], int],
) -> None:
    options = ["--port", "0", "--broker-port", str(free_port())]
    monitor = start(processes, ["monitor", *options], tmp_path / "monitor.log")
    url = monitor.wait_for_event("monitor_listening")["url"]
    assert scrape(url)["elma_monitor_broker_connected", ()] == 0
    health = httpx.get(url.replace("/metrics", "/healthz"), trust_env=False)
    assert (health.status_code, health.json()["connected"]) == (200, False)


def test_a_taken_port_is_an_error_at_once(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = MonitorSettings(http={"port": taken.getsockname()[1]})  # type: ignore[arg-type]
        with pytest.raises(MonitorListenError, match=r"http\.port"):
            run_monitor(settings)


def test_the_example_shows_every_setting_and_the_defaults_as_they_are() -> None:
    assert load_settings(EXAMPLE).model_dump() == MonitorSettings().model_dump()
    shown = EXAMPLE.read_text(encoding="utf-8")
    for name in (*MonitorSettings.model_fields, "port", "tls_key_file", "password_file"):
        assert f"{name} = " in shown or f"[{name}]" in shown, name


def test_a_wrong_setting_and_a_misspelt_variable_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "monitor.toml").write_text("max_edge = 5", encoding="utf-8")
    with pytest.raises(MonitorSettingsError, match="max_edge"):
        load_settings(tmp_path / "monitor.toml")
    monkeypatch.setenv("ELMA_MONITOR_MAX_EDGES", "7")
    assert load_settings().max_edges == 7
    monkeypatch.setenv("ELMA_MONITOR_NAEM", "x")
    with pytest.raises(MonitorSettingsError, match="ELMA_MONITOR_NAEM"):
        load_settings()
