"""From a figure to whom it concerns: real Prometheus and Alertmanager, with what is committed."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.watch.__main__ import ROOT
from tests.cloud_worker.harness import wait_until
from tests.conftest import find_program
from tests.system.prometheus_server import PrometheusServer

CONFIG = ROOT / "deploy" / "prometheus" / "alertmanager.yml"
PATIENCE_SECONDS = 60.0


class Site(BaseHTTPRequestHandler):
    """A device's /metrics with one question that failed, and whoever is told."""

    server: SiteServer

    def do_GET(self) -> None:
        """A metric that Prometheus has seen at 0 before."""
        self.server.scrapes += 1
        value = int(self.server.scrapes > 2)
        series = f'elma_edge_questions_total{{result="failed",resolved_by="none"}} {value}\n'
        self._answer(series.encode())

    def do_POST(self) -> None:
        """A notification."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        alerts = [alert["labels"]["alertname"] for alert in body["alerts"]]
        self.server.told.append((self.path, alerts))
        self._answer(b"")

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class SiteServer(ThreadingHTTPServer):
    """On a free port; `told` grows with each notification: the receiver's path, the alerts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.scrapes = 0
        self.told: list[tuple[str, list[str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def site() -> Iterator[SiteServer]:
    """A running one."""
    with SiteServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10.0)


@contextmanager
def running_alertmanager(folder: Path, port: int, site: SiteServer) -> Iterator[str]:
    """The committed configuration, in a hurry, with its webhooks at the site; its URL."""
    program = find_program("prometheus-alertmanager", package="prometheus-alertmanager")
    folder.mkdir()
    text = CONFIG.read_text(encoding="utf-8")
    for before, after, times in (
        ("http://127.0.0.1:9095", site.url, 2),
        ("group_wait: 5m", "group_wait: 1s", 1),
        ("group_wait: 30s", "group_wait: 1s", 1),
    ):
        assert text.count(before) == times
        text = text.replace(before, after)
    (folder / "alertmanager.yml").write_text(text, encoding="utf-8")
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
        try:
            return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(is_ready, "Alertmanager ready")
        yield url
    finally:
        process.kill()
        process.wait(10.0)


def test_a_failed_question_pages_somebody(
    prometheus_program: Path, site: SiteServer, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with running_alertmanager(tmp_path / "alertmanager", free_port(), site) as alertmanager:
        targets = {
            "edges": [(site.url, {"edge": "kitchen"})],
            "alertmanagers": [(alertmanager, {})],
            "workers": [],
            "publishers": [],
        }
        with PrometheusServer(prometheus_program, tmp_path / "prometheus", free_port(), targets):
            wait_until(
                lambda: ("/page", ["ElmaQuestionsFailed"]) in site.told,
                "the page",
                PATIENCE_SECONDS,
            )


def test_what_follows_from_another_alert_is_not_told(
    site: SiteServer, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """The last one to come shows that those before it, of the same kind, were held back."""
    with running_alertmanager(tmp_path / "alertmanager", free_port(), site) as url:
        looping = {"job": "elma-worker", "instance": "north"}
        tell(url, ("ElmaNoWorker", "page", {}), ("ElmaCrashLoop", "page", looping))
        wait_until(lambda: len(site.told) == 2, "both pages", PATIENCE_SECONDS)
        tell(
            url,
            ("ElmaDegraded", "page", {}),
            ("ElmaTargetDown", "ticket", looping),
            ("ElmaTargetDown", "ticket", {**looping, "instance": "south"}),
            ("ElmaCanaryFailures", "page", {}),
        )
        wait_until(lambda: len(site.told) == 4, "what follows from nothing", PATIENCE_SECONDS)
    assert sorted(site.told) == [
        ("/page", ["ElmaCanaryFailures"]),
        ("/page", ["ElmaCrashLoop"]),
        ("/page", ["ElmaNoWorker"]),
        ("/ticket", ["ElmaTargetDown"]),
    ]


def tell(url: str, *alerts: tuple[str, str, dict[str, str]]) -> None:
    """Alerts as Prometheus sends them: name, severity, other labels."""
    body = [
        {"labels": {"alertname": name, "severity": severity, **labels}}
        for name, severity, labels in alerts
    ]
    response = httpx.post(f"{url}/api/v2/alerts", json=body, trust_env=False)
    assert response.status_code == 200, response.text


def test_every_alert_has_a_receiver_by_its_severity() -> None:
    amtool = find_program("amtool", package="prometheus-alertmanager")
    for severity in ("page", "ticket"):
        command = [amtool, "config", "routes", "test", f"--config.file={CONFIG}"]
        done = subprocess.run(
            [*command, f"severity={severity}", "alertname=ElmaAny"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout.strip()) == (0, severity), done.stderr
