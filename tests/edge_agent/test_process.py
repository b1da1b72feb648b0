"""The edge agent as a real process: killed, restarted, stopped, and wrongly configured."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.run import RunningBroker
from broker.settings import BrokerSettings
from edge_agent.errors import ListenError, OutboxInUse, SettingsError
from edge_agent.outbox import Outbox
from edge_agent.service import listen, make_agent
from protocol.messages import Accepted
from protocol.sealing import OpenedRequest
from reader.model import Reader
from tests.edge_agent.conftest import EDGE, PASSAGE, QUESTION, Keys, edge_settings, wait_until
from tests.edge_agent.fake_worker import FakeWorker, answers

ROOT = Path(__file__).resolve().parents[2]
SECRET_PASSAGE = "zanzibar was built by quetzalcoatl"


class EdgeProcess:
    """`elma edge run` as a child; `log` holds what it wrote to stderr so far."""

    def __init__(self, config: Path, *options: str) -> None:
        self.log = ""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "elma", "--log-level", "debug", "--log-format", "json"),
                *("edge", "run", "--config", str(config), *options),
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        wait_until(lambda: "edge_listening" in self.log or self._process.poll() is not None, 60.0)
        self.url = next(
            (event["url"] for event in self.events() if event.get("event") == "edge_listening"), ""
        )

    def events(self) -> list[dict[str, Any]]:
        """The log lines so far."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def end(self, how: signal.Signals) -> int:
        """Send a signal and wait; the exit status."""
        self._process.send_signal(how)
        status = self._process.wait(30.0)
        self._reading.join(10.0)
        return status

    def exit_status(self) -> int:
        """The exit status of a process that ends by itself."""
        status = self._process.wait(30.0)
        self._reading.join(10.0)
        return status

    def close(self) -> None:
        """Kill what is left."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10.0)

    def post(self, request_id: str, **fields: Any) -> httpx.Response:
        body = {"question": QUESTION, "context": PASSAGE, "request_id": request_id, **fields}
        return httpx.post(f"{self.url}/v1/answer", json=body, timeout=60.0)

    def get(self, request_id: str) -> httpx.Response:
        return httpx.get(f"{self.url}/v1/answers/{request_id}", timeout=30.0)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Ends every process of the test."""
    with ExitStack() as stack:
        yield stack


def write_config(
    folder: Path, model_folder: Path, broker: RunningBroker | None, keys: Keys, **settings: Any
) -> Path:
    """An `edge.toml` for a test; its paths are relative to its folder."""
    lines = [
        f'name = "{EDGE}"',
        f'model = "{model_folder}"',
        'outbox = "outbox.sqlite3"',
        "threads = 1",
        *(f"{key} = {value}" for key, value in settings.items()),
        "[http]",
        "port = 0",
    ]
    if broker is not None:
        lines.insert(0, "max_edge_layers = 2")
        lines += [
            "[broker]",
            f"port = {broker.port}",
            "reconnect_min_seconds = 0.1",
            "[offload]",
            f'edge_key_file = "{keys.edge_file.name}"',
            f'pool_public_key_file = "{keys.pool_file.name}"',
            'codec = "fp32"',
        ]
    config = folder / "edge.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    return config


def test_an_edge_that_is_killed_finishes_its_questions_after_a_restart(
    mosquitto: RunningBroker,
    model_folder: Path,
    reader: Reader,
    keys: Keys,
    tmp_path: Path,
    processes: ExitStack,
) -> None:
    held: list[tuple[OpenedRequest, str]] = []
    may_answer = threading.Event()

    def first_holds(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        if may_answer.is_set():
            answers(worker, request, topic)
        else:
            worker.say(request, topic, Accepted(60.0, worker.name))
            held.append((request, topic))

    ids = [f"q{number}" for number in range(6)]
    config = write_config(tmp_path, model_folder, mosquitto, keys)
    with (
        FakeWorker(mosquitto.settings(), reader, keys.pool, keys.edge, first_holds) as worker,
        ThreadPoolExecutor(len(ids)) as pool,
    ):
        first = EdgeProcess(config)
        processes.callback(first.close)
        asked = [pool.submit(first.post, name, context=SECRET_PASSAGE) for name in ids]
        wait_until(lambda: len(held) == len(ids))
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        for future in asked:
            with pytest.raises(httpx.HTTPError):
                future.result()
        may_answer.set()
        second = EdgeProcess(config)
        processes.callback(second.close)
        for request, topic in held:  # answers to the first life come late
            worker.say(request, topic, worker.resume(request))
        wait_until(lambda: all(second.get(name).status_code == 200 for name in ids))
        found = {name: second.get(name).json() for name in ids}
        # The same question again: the stored answer, not a second one.
        assert second.post("q0", context=SECRET_PASSAGE).json() == found["q0"]
        assert second.end(signal.SIGTERM) == 0
    lines = [event for event in second.events() if event.get("event") == "question"]
    assert sorted(event["request_id"] for event in lines) == ids
    assert {event["generation"] for event in lines} == {1}
    for name in ids:
        assert found[name]["request_id"] == name
        start, end = found[name]["start"], found[name]["end"]
        assert found[name]["answer"] == SECRET_PASSAGE[max(start, 0) : max(end, 0)]
    for process in (first, second):
        assert "zanzibar" not in process.log.lower()
        assert "quetzalcoatl" not in process.log.lower()


def test_a_stop_answers_the_question_in_hand_and_ends_with_status_0(
    mosquitto: RunningBroker,
    model_folder: Path,
    reader: Reader,
    keys: Keys,
    tmp_path: Path,
    processes: ExitStack,
) -> None:
    may_answer = threading.Event()

    def slow(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        worker.say(request, topic, Accepted(60.0, worker.name))
        assert may_answer.wait(30.0)
        worker.say(request, topic, worker.resume(request))

    config = write_config(tmp_path, model_folder, mosquitto, keys)
    with (
        FakeWorker(mosquitto.settings(), reader, keys.pool, keys.edge, slow) as worker,
        ThreadPoolExecutor(2) as pool,
    ):
        process = EdgeProcess(config)
        processes.callback(process.close)
        asked = pool.submit(process.post, "q1")
        wait_until(lambda: worker.requests == ["q1"])
        ending = pool.submit(process.end, signal.SIGTERM)
        may_answer.set()
        assert asked.result().json()["resolved_by"] == "cloud"
        assert ending.result() == 0


def test_a_question_that_a_stop_cannot_wait_for_is_kept_for_the_next_start(
    mosquitto: RunningBroker,
    model_folder: Path,
    reader: Reader,
    keys: Keys,
    tmp_path: Path,
    processes: ExitStack,
) -> None:
    def holds(worker: FakeWorker, request: OpenedRequest, topic: str) -> None:
        worker.say(request, topic, Accepted(60.0, worker.name))

    config = write_config(tmp_path, model_folder, mosquitto, keys, shutdown_seconds=0.5)
    with (
        FakeWorker(mosquitto.settings(), reader, keys.pool, keys.edge, holds) as worker,
        ThreadPoolExecutor(1) as pool,
    ):
        first = EdgeProcess(config)
        processes.callback(first.close)
        asked = pool.submit(first.post, "q1", deadline_seconds=50.0)
        wait_until(lambda: worker.requests == ["q1"])
        assert first.end(signal.SIGTERM) == 0
        assert asked.result().status_code == 503
    # No worker is left: the device finishes what it had promised.
    second = EdgeProcess(config)
    processes.callback(second.close)
    wait_until(lambda: second.get("q1").status_code == 200)
    assert second.get("q1").json()["degraded"] is True


def test_another_process_cannot_use_the_outbox_of_a_running_agent(
    model_folder: Path, keys: Keys, tmp_path: Path, processes: ExitStack
) -> None:
    process = EdgeProcess(write_config(tmp_path, model_folder, None, keys))
    processes.callback(process.close)
    with pytest.raises(OutboxInUse, match="another running agent"):
        Outbox(tmp_path / "outbox.sqlite3")
    assert process.post("q1").status_code == 200


@pytest.mark.parametrize(
    ("options", "expected"),
    [(("--codec", "zip"), "offload.codec"), (("--model", "no-such-model"), "no-such-model")],
)
def test_wrong_settings_end_the_process_with_one_clear_line(
    options: tuple[str, ...],
    expected: str,
    model_folder: Path,
    keys: Keys,
    tmp_path: Path,
) -> None:
    process = EdgeProcess(write_config(tmp_path, model_folder, None, keys), *options)
    assert process.exit_status() != 0
    assert expected in process.log
    assert "Traceback" not in process.log


def test_a_key_of_another_edge_and_an_address_of_another_machine_are_refused(
    model_folder: Path, keys: Keys, tmp_path: Path
) -> None:
    broker = BrokerSettings()
    with pytest.raises(SettingsError, match="the key of edge 'kitchen'"):
        make_agent(edge_settings(model_folder, tmp_path, keys, broker, name="cellar"))
    elsewhere = edge_settings(model_folder, tmp_path, keys, None, http={"host": "192.0.2.1"})
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        listen(elsewhere)
