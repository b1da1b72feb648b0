"""Brokers as child processes, and the verb `elma broker run`."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker import embedded, mosquitto, run
from broker.errors import BrokerMissing, BrokerSettingsError, BrokerStartFailed
from broker.run import RunningBroker, run_broker

WAIT_SECONDS = 20.0
ROOT = Path(__file__).resolve().parents[2]
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into Linux's /proc")


def is_listening(port: int) -> bool:
    """Whether anybody accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_broker_ends_with_its_block_and_its_temporary_folder_goes(broker_kind: str) -> None:
    with run_broker(broker_kind) as running:  # type: ignore[arg-type]
        assert running.is_running
        assert is_listening(running.port)
        folder = running.directory
        assert folder.is_dir()
    assert not running.is_running
    assert not is_listening(running.port)
    assert not folder.exists()
    running.stop()


@needs_proc
def test_a_broker_listens_on_loopback_only(broker: RunningBroker) -> None:
    listening = {
        (line.split()[1], line.split()[3])
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
    }
    addresses = {a.split(":")[0] for a, state in listening if a.endswith(f":{broker.port:04X}")}
    assert addresses == {"0100007F"}


def test_a_killed_broker_starts_again_on_its_port(broker: RunningBroker) -> None:
    port, first = broker.port, broker.process_id
    broker.kill()
    assert not broker.is_running
    assert not is_listening(port)
    broker.restart()
    assert (broker.port, broker.is_running) == (port, True)
    assert broker.process_id != first
    broker.restart()
    assert is_listening(port)


def test_a_port_that_is_taken_is_named(broker_kind: str, broker: RunningBroker) -> None:
    with pytest.raises(BrokerStartFailed, match=str(broker.port)):
        run_broker(broker_kind, port=broker.port)  # type: ignore[arg-type]


def test_a_port_held_by_something_else_shows_the_brokers_own_words_of_this_start(
    mosquitto_program: Path, tmp_path: Path
) -> None:
    (tmp_path / "broker.log").write_text("words of an earlier day\n", encoding="utf-8")
    with (
        socket.create_server(("127.0.0.1", 0)) as holder,
        pytest.raises(BrokerStartFailed, match=r"(?s)stop it.*Address already in use") as caught,
    ):
        run_broker("mosquitto", tmp_path, port=holder.getsockname()[1])
    assert "earlier day" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::", ""])  # noqa: S104
def test_an_address_that_others_could_reach_is_refused(host: str) -> None:
    with pytest.raises(BrokerSettingsError, match="loopback"):
        run_broker("auto", host=host)


def test_a_missing_mosquitto_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mosquitto, "find_mosquitto", lambda: None)
    with pytest.raises(BrokerMissing, match=r"apt-get install mosquitto.*embedded"):
        run_broker("mosquitto", tmp_path)


def test_without_mosquitto_auto_takes_the_embedded_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("iotcore")
    monkeypatch.setattr(mosquitto, "find_mosquitto", lambda: None)
    with run_broker("auto") as running:
        assert running.kind == "embedded"


def test_without_any_broker_both_ways_out_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mosquitto, "find_mosquitto", lambda: None)
    monkeypatch.setattr(embedded, "is_installed", lambda: False)
    for kind in ("auto", "embedded"):
        with pytest.raises(BrokerMissing, match=r"apt-get install mosquitto"):
            run_broker(kind, tmp_path)  # type: ignore[arg-type]


def test_a_broker_that_refuses_its_configuration_shows_its_log(
    mosquitto_program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mosquitto, "limit_lines", lambda _bytes: ["no_such_option 1"])
    with pytest.raises(BrokerStartFailed, match="no_such_option"):
        run_broker("mosquitto", tmp_path)


def test_a_broker_that_never_answers_is_given_up_and_ended(
    mosquitto_program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "_answers", lambda *_: False)
    monkeypatch.setattr(run, "READY_SECONDS", 0.2)
    broker = RunningBroker("mosquitto", tmp_path, "127.0.0.1", run._free_port("127.0.0.1"), 4096)
    with pytest.raises(BrokerStartFailed, match="did not answer"):
        broker.start()
    assert not broker.is_running
    assert not is_listening(broker.port)


def start_verb(*arguments: str) -> subprocess.Popen[str]:
    """`elma broker run` as its user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "elma", "broker", "run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_verb_says_where_it_listens_and_stops_on_a_signal(
    broker_kind: str, tmp_path: Path, how: signal.Signals
) -> None:
    process = start_verb("--dir", str(tmp_path), "--kind", broker_kind, "--port", "0", "--json")
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["kind"] == broker_kind
        assert ready["host"] == "127.0.0.1"
        assert is_listening(ready["port"])
        process.send_signal(how)
        assert process.wait(WAIT_SECONDS) == 0
        assert not is_listening(ready["port"])
    finally:
        process.kill()
        process.communicate()


def test_the_verb_fails_in_one_line_when_the_port_is_taken(
    broker: RunningBroker, tmp_path: Path
) -> None:
    process = start_verb("--dir", str(tmp_path / "other"), "--port", str(broker.port))
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert str(broker.port) in errors
    assert "Traceback" not in errors


@needs_proc
def test_the_verb_fails_when_its_broker_dies(
    mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    process = start_verb(
        *("--dir", str(tmp_path), "--kind", "mosquitto", "--port", str(free_port()), "--json")
    )
    try:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        subprocess.run(["kill", "-9", children[0]], check=True)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 1
        assert "ended by itself" in errors
    finally:
        process.kill()
        process.communicate()
