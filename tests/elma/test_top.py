"""`elma top`: real processes looked at, once for a script and live in a pseudo terminal."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fcntl import ioctl
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from broker.run import run_broker
from elma.top.figures import describe, quantile
from elma.top.look import Look, Silence, look_at, normal_url
from elma.top.view import draw
from elma.top.watching import Watch
from protocol.key_files import save_edge_keys, save_pool_public
from reader.exits import ExitSettings
from tests.cloud_worker.harness import Cloud, ElmaProcess, wait_until, write_toml
from tests.tiny import make_tiny_model

LAYERS = 4


def edge_look(at: float, samples: dict[Any, float], **health: Any) -> Look:
    """A look at an edge; a sample without labels is named alone."""
    named = {(key, ()) if isinstance(key, str) else key: value for key, value in samples.items()}
    return Look("http://x", at, "edge", {"name": "kitchen", "status": "ok", **health}, named)


def questions(who: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return "elma_edge_questions_total", (("resolved_by", who), ("result", "answered"))


def bucket(edge: str, name: str = "elma_edge_answer_seconds") -> Any:
    return f"{name}_bucket", (("le", edge),)


def test_a_quantile_lies_within_its_bucket_as_in_promql() -> None:
    counts = {0.1: 0.0, 0.2: 10.0, 0.4: 20.0, math.inf: 20.0}
    assert quantile(0.5, counts) == pytest.approx(0.2)
    assert quantile(0.25, counts) == pytest.approx(0.15)
    assert quantile(0.95, counts) == pytest.approx(0.38)
    assert quantile(0.95, {1.0: 0.0, math.inf: 5.0}) == 1.0  # above: the last edge that is known
    assert quantile(0.5, {1.0: 0.0, math.inf: 0.0}) is None
    assert quantile(0.5, {}) is None


def test_rates_are_of_the_time_between_the_looks() -> None:
    before = edge_look(10.0, {questions("edge"): 5.0, questions("cloud"): 1.0})
    now = edge_look(14.0, {questions("edge"): 25.0, questions("cloud"): 2.0})
    figures = describe(before, now)
    assert figures["questions_per_second"] == {"edge": 5.0, "cloud": 0.25, "none": 0.0}
    assert figures["questions_total"]["edge"] == 25.0
    assert describe(now, now)["questions_per_second"]["edge"] == 0.0


def test_a_process_that_started_again_counts_from_nothing() -> None:
    before = edge_look(10.0, {questions("edge"): 500.0, bucket("1"): 9.0, bucket("+Inf"): 9.0})
    now = edge_look(12.0, {questions("edge"): 4.0, bucket("1"): 2.0, bucket("+Inf"): 2.0})
    figures = describe(before, now)
    assert figures["questions_per_second"]["edge"] == 2.0
    assert figures["answer_seconds"] == {"p50": 0.5, "p95": 0.95, "count": 2, "is_recent": False}


def test_times_are_recent_ones_where_there_are_any() -> None:
    before = edge_look(1.0, {bucket("1"): 10.0, bucket("2"): 10.0, bucket("+Inf"): 10.0})
    now = edge_look(2.0, {bucket("1"): 10.0, bucket("2"): 20.0, bucket("+Inf"): 20.0})
    assert describe(before, now)["answer_seconds"]["p50"] == 1.5
    assert describe(before, now)["answer_seconds"]["is_recent"] is True
    assert describe(now, now)["answer_seconds"]["p50"] == 1.0


def test_layers_are_counted_one_by_one() -> None:
    name = "elma_edge_exit_layer"
    samples = {bucket("1.0", name): 3.0, bucket("2.0", name): 3.0, bucket("+Inf", name): 4.0}
    assert describe(edge_look(0.0, samples), edge_look(1.0, samples))["exit_layers"] == {
        "1": 3,
        ">2": 1,
    }


def test_an_edge_without_a_cloud_has_no_broker() -> None:
    samples = {"elma_edge_broker_connected": 0.0}
    alone = edge_look(0.0, samples, cloud=None)
    away = edge_look(0.0, samples, cloud={"connected": False})
    assert describe(alone, alone)["broker_connected"] is None
    assert describe(away, away)["broker_connected"] is False


def test_what_a_process_says_cannot_steer_the_terminal() -> None:
    look = edge_look(0.0, {}, name="\x1b[2Jkitchen", problems=["\x07bad\n"], status="\x9b1m")
    figures = describe(look, look)
    assert figures["name"] == "?[2Jkitchen"
    assert figures["problems"] == ["?bad?"]
    assert figures["status"] == "?1m"


@pytest.mark.parametrize(
    "given", ["kitchen:8571", "http://kitchen:8571", "http://kitchen:8571/", "kitchen:8571/metrics"]
)
def test_a_url_may_be_spelt_as_one_has_it(given: str) -> None:
    assert normal_url(given) == "http://kitchen:8571"


def test_a_process_that_comes_back_is_compared_with_itself() -> None:
    found: list[tuple[Look, ...] | Silence] = [
        (edge_look(1.0, {questions("edge"): 1.0}),),
        Silence("http://x", "away"),
        (edge_look(3.0, {questions("edge"): 100.0}),),
        (edge_look(5.0, {questions("edge"): 104.0}),),
    ]
    moments = iter((1.0, 2.5, 3.0, 5.0))
    watch = Watch(["http://x"], ask=lambda _url: found.pop(0), clock=lambda: next(moments))
    watch.look()
    watch.look()
    assert watch.figures() == []
    assert watch.silent == [Silence("http://x", "away", "kitchen", "edge", 1.5)]
    drawn = text_of(draw(watch.figures(), watch.silent))
    assert "kitchen (http://x): away for 2 s" in drawn
    assert "silent 2 s" in drawn
    watch.look()
    watch.look()
    assert watch.figures()[0]["questions_per_second"]["edge"] == 2.0


def text_of(drawn: Any, width: int = 80, height: int = 24) -> str:
    """What somebody with a small terminal sees."""
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(drawn)
    return console.export_text()


def test_a_fleet_fits_into_80_columns_and_what_is_wrong_comes_first() -> None:
    samples = {
        questions("edge"): 50_000.0,
        questions("cloud"): 50_000.0,
        "elma_edge_broker_connected": 0.0,
        "elma_edge_outbox_pending": 12_345.0,
        "elma_edge_waiting_questions": 256.0,
        "elma_edge_in_flight_requests": 256.0,
        **{
            bucket(edge, f"elma_edge_{name}_seconds"): 7.0
            for name in ("answer", "offload")
            for edge in ("1", "+Inf")
        },
        **{bucket(edge, "elma_edge_exit_layer"): 9.0 for edge in ("3", "+Inf")},
        ("elma_edge_release_info", (("release", "ab" * 32),)): 1.0,
    }
    looks = [
        edge_look(1.0, samples, name=name, problems=["the disk is full"])
        for name in ("a-very-long-name-of-a-device", "kitchen")
    ]
    gone = [Silence("http://y", "away", "north", "worker", 300.0)]
    lines = text_of(draw([describe(one, one) for one in looks], gone)).splitlines()
    assert lines[0] == "north (http://y): away for 5 min"
    assert lines[1] == "a-very-long-name-of-a-device: the disk is full"
    (row,) = [line for line in lines if line.startswith("kitchen  ")]
    assert row.split() == [
        *("kitchen", "no", "broker", "0.0", "0.0", "0.0", "0.0", "256", "256", "12,345"),
        *("500/950*", "500/950*"),
    ]
    assert "release abababababab: a-very-long-name-of-a-device, kitchen" in lines
    assert "ended at layer: 3 ██████████100%" in lines
    assert lines[-1].startswith("times in milliseconds; * since")
    assert any(line.startswith("north") and "silent 5 min" in line for line in lines)


def test_a_monitor_shows_its_edges_with_the_age_of_their_reports() -> None:
    reports = {"kitchen": (100.0, 5.0), "garage": (90.0, 1.0)}

    def metrics() -> str:
        lines = [f"elma_monitor_edges {len(reports)}"]
        for edge, (at, count) in reports.items():
            lines.append(f'elma_monitor_last_report_timestamp_seconds{{edge="{edge}"}} {at}')
            labels = f'edge="{edge}",resolved_by="edge",result="answered"'
            lines.append(f"elma_edge_questions_total{{{labels}}} {count}")
            lines.append(f'elma_edge_broker_connected{{edge="{edge}"}} 1')
            lines.append(f'elma_edge_outbox_pending{{edge="{edge}"}} NaN')
            lines.append(f'elma_edge_exit_layer_bucket{{edge="{edge}",le="+Inf"}} +Inf')
        return "\n".join(lines) + "\n"

    class Monitor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((metrics() if self.path == "/metrics" else "{}").encode())

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Monitor) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        watch = Watch([url], ask=lambda one: look_at(one, now=lambda: 130.0))
        watch.look()
        watch.look()  # the same reports: nothing new
        assert [one["questions_per_second"]["edge"] for one in watch.figures()] == [0.0, 0.0]
        reports["kitchen"] = (120.0, 45.0)
        del reports["garage"]
        watch.look()
        server.shutdown()
    (kitchen,) = watch.figures()
    assert (kitchen["name"], kitchen["reported_seconds_ago"]) == ("kitchen", 10.0)
    assert kitchen["questions_per_second"]["edge"] == 2.0
    (garage,) = watch.silent
    assert (garage.name, garage.why) == ("garage", "the monitor knows it no more")
    assert "10 s ago" not in text_of(draw(watch.figures(), watch.silent))
    old = [{**kitchen, "reported_seconds_ago": 61.0}]
    assert "61 s ago" in text_of(draw(old, ()))


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ({}, "status 404"),
        ({"/metrics": "<html>"}, "not with metrics"),
        ({"/metrics": "up 1\n", "/healthz": "{}"}, "neither an edge, a worker nor a monitor"),
        ({"/metrics": "elma_monitor_edges 0\n", "/healthz": "{}"}, "to which no edge reports"),
        ({"/metrics": "elma_edge_x 1\n", "/healthz": "ok"}, "no JSON"),
        ({"/metrics": "elma_edge_x 1\n", "/healthz": "[]"}, "no object"),
        ({"/metrics": "elma_edge_x 1\n", "/healthz": "[" * 200_000}, "no JSON"),
        ({"/metrics": "#" * (9 * 1024 * 1024)}, "more than"),
    ],
)
def test_whoever_else_listens_there_is_told_apart(pages: dict[str, str], why: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = pages.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            try:
                self.wfile.write((content or "").encode())
            except OSError:
                self.close_connection = True  # it had read enough

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        found = look_at(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert isinstance(found, Silence)
    assert why in found.why


def test_whoever_drips_his_answer_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elma.top.look.ANSWER_SECONDS", 0.3)
    is_over = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            while not is_over.wait(0.02):
                self.wfile.write(b"H")

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Dripping) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        found = look_at(f"http://127.0.0.1:{server.server_port}")
        is_over.set()
        server.shutdown()
    assert isinstance(found, Silence)
    assert "not within" in found.why


@dataclass(frozen=True)
class Site:
    """A worker and an edge, as processes; where they listen."""

    edge: str
    worker: str

    def ask(self, number: int) -> dict[str, Any]:
        body = {
            "question": f"who was old {number}",
            "context": "the keeper of the lighthouse was old.",
            "deadline_seconds": 30.0,
        }
        answer: dict[str, Any] = httpx.post(
            f"{self.edge}/v1/answer", json=body, timeout=60.0, trust_env=False
        ).json()
        return answer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, mosquitto_program: Path) -> Iterator[Site]:
    """Every question goes to the worker: no exit is ever certain."""
    folder = tmp_path_factory.mktemp("site")
    model = make_tiny_model(
        tmp_path_factory.mktemp("model"),
        layers=LAYERS,
        settings=ExitSettings.uncalibrated(LAYERS),
    )
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker("mosquitto", folder / "broker"))
        cloud = Cloud(folder, broker, model, stack)
        save_edge_keys(folder / "edge-secret.json", cloud.enrol("kitchen"))
        save_pool_public(folder / "pool-public.json", cloud.pool.public)
        worker = cloud.worker("north")
        settings = {
            "name": "kitchen",
            "model": str(model),
            "outbox": "outbox.sqlite3",
            "max_edge_layers": 2,
            "threads": 1,
            "http": {"port": 0},
            "broker": {"port": broker.port, "reconnect_min_seconds": 0.1},
            "offload": {
                "edge_key_file": "edge-secret.json",
                "pool_public_key_file": "pool-public.json",
            },
        }
        write_toml(folder / "edge.toml", settings)
        edge = ElmaProcess(
            ["edge", "run", "--config", str(folder / "edge.toml")], folder / "edge.log"
        )
        stack.callback(edge.stop)
        url = edge.wait_for_event("edge_listening")["url"]
        made = Site(url, worker.health_url.removesuffix("/healthz"))

        def is_connected() -> bool:
            health = httpx.get(f"{url}/healthz", trust_env=False).json()
            return bool(health["cloud"]["connected"])

        wait_until(is_connected, "the edge connected")
        yield made


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the verb to its end."""
    return subprocess.run(
        [sys.executable, "-m", "elma", "top", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass
class Asking:
    """Asks without a pause while it is entered."""

    site: Site
    count: int = 0

    def __enter__(self) -> Asking:
        self._is_asking = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: self.count, "a first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._is_asking = False
        self._thread.join(60.0)

    def _run(self) -> None:
        while self._is_asking:
            assert self.site.ask(self.count)["resolved_by"] == "cloud"
            self.count += 1


def test_once_and_json_tell_a_script_what_both_do_under_load(site: Site) -> None:
    with Asking(site):
        done = top(site.edge, site.worker, "--once", "--json", "--every", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    edge, worker = report["processes"]
    assert report["silent"] == []
    assert (edge["kind"], edge["name"], edge["status"]) == ("edge", "kitchen", "ok")
    assert (worker["kind"], worker["name"], worker["status"]) == ("worker", "north", "ok")
    assert edge["questions_per_second"]["cloud"] > 0
    assert edge["questions_per_second"]["none"] == 0
    assert worker["requests_per_second"]["answered"] > 0
    assert edge["broker_connected"] is worker["broker_connected"] is True
    assert set(edge["exit_layers"]) == {str(LAYERS)}
    for times in (edge["answer_seconds"], edge["offload_seconds"], worker["compute_seconds"]):
        assert times["is_recent"]
        assert 0 < times["p50"] <= times["p95"]
    assert edge["degraded_total"] == 0
    assert edge["outbox_pending"] is not None
    assert len(edge["release"]) == len(worker["release"]) == 1


def test_once_prints_tables_and_who_is_silent(site: Site, free_port: Callable[[], int]) -> None:
    silent = f"127.0.0.1:{free_port()}"
    done = top(site.edge, site.worker, silent, "--once", "--every", "0.1")
    assert done.returncode == 0, done.stderr
    for text in ("edge ", "kitchen", "worker ", "north", "cloud", "p50/p95", "release "):
        assert text in done.stdout
    assert f"http://{silent}: no answer" in done.stdout


def test_nobody_there_is_one_clear_line(free_port: Callable[[], int]) -> None:
    urls = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    done = top(*urls, "--once", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    for url in urls:
        assert url in done.stderr
    assert "elma edge run" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_terminal_it_says_what_to_add(site: Site) -> None:
    done = top(site.edge)
    assert done.returncode == 2
    assert "--once" in done.stderr


class Terminal:
    """A verb in a pseudo terminal, and everything that it drew."""

    def __init__(self, *arguments: str) -> None:
        self.drawn = ""
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elma", "top", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)

    def wait_for(self, text: str, after: int = 0) -> int:
        """Return once `text` was drawn at or behind a place; the place behind it."""
        end = time.monotonic() + 30.0
        while text not in self.drawn[after:]:
            assert time.monotonic() < end, f"never drawn: {text}\n{self.drawn[after:]}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.drawn += os.read(self._master, 65_536).decode("utf-8", "replace")
                except OSError:  # the other side is closed
                    assert text in self.drawn[after:], self.drawn
        return self.drawn.index(text, after) + len(text)

    def close(self) -> None:
        """End it, by force."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10.0)
        os.close(self._master)


def test_a_terminal_is_drawn_again_and_again_and_left_as_it_was(site: Site) -> None:
    terminal = Terminal(site.edge, site.worker, "--every", "0.2")
    try:
        place = terminal.wait_for("ended at layer")
        place = terminal.wait_for("ended at layer", place)
        terminal.wait_for("north", place)
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("\x1b[?1049l", place)  # back to the screen that was there before
        assert terminal.process.wait(10.0) == 0
    finally:
        terminal.close()
