"""A device and its releases, over a real broker: taken, refused, given back, and told of."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.run import RunningBroker
from edge_agent.outbox import Outbox
from edge_agent.questions import Question
from reader.model import Reader
from reader.weights import folder_digest
from releases.errors import NotEnoughSpace
from releases.follower import ReleaseFollower
from releases.proving import CheckReport, check_in_child
from releases.store import ReleaseStore
from tests.edge_agent.conftest import (
    PASSAGE,
    QUESTION,
    Keys,
    RunningEdge,
    StartEdge,
    wait_until,
)
from tests.edge_agent.press import Press, canaries_of
from tests.edge_agent.test_process import EdgeProcess, write_config
from tests.tiny import add_bottleneck, make_tiny_model

SILENT_CLOUD = {"cloud_wait_seconds": 0.0, "accept_seconds": 0.1, "max_attempts": 1}


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another reader than the one that the device begins with."""
    return make_tiny_model(tmp_path_factory.mktemp("new") / "new", layers=6, groups=3, seed=5)


@pytest.fixture(scope="module")
def new_reader(new_folder: Path) -> Reader:
    return Reader.load(new_folder)


@pytest.fixture
def press(mosquitto: RunningBroker, tmp_path: Path) -> Any:
    with Press(mosquitto.settings(), tmp_path / "press") as made:
        yield made


def follow(press: Press, folder: Path, **rules: Any) -> dict[str, Any]:
    """The table [releases] of a device."""
    return {
        "publisher_public_key_file": press.public_file,
        "folder": folder / "releases",
        "probation_seconds": 600.0,
        **rules,
    }


def releases_of(edge: RunningEdge) -> dict[str, Any]:
    found: dict[str, Any] = edge.get("/healthz").json()["releases"]
    return found


def test_a_device_without_weights_gets_its_first_release_and_answers_what_waited(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite3")
    outbox.accept(Question("waited", QUESTION, PASSAGE, 1, 1.0, 5.0))
    outbox.close()
    edge = start_edge(
        mosquitto.settings(),
        model="none",
        releases=follow(press, tmp_path, probation_seconds=0.1),
        offload=SILENT_CLOUD,
    )
    health = edge.get("/healthz").json()
    assert (health["status"], health["model"]) == ("ok", None)
    assert edge.get("/readyz").status_code == 503
    refused = edge.post({"question": QUESTION, "context": PASSAGE})
    assert refused.status_code == 503
    assert refused.json()["error"] == "not_accepting"
    assert "no release yet" in refused.json()["reason"]
    assert edge.get("/v1/answers/waited").status_code == 202
    wait_until(lambda: press.last_state() is not None)

    release = press.publish(new_folder, 7, canaries_of(new_reader))
    wait_until(lambda: edge.get("/readyz").status_code == 200, 60.0)
    wait_until(lambda: edge.get("/v1/answers/waited").status_code == 200)
    assert edge.get("/v1/answers/waited").json()["release"] == release
    answer = edge.ask()
    assert (answer["release"], answer["model"]) == (release, f"stable-7@{release[:12]}")
    wait_until(lambda: releases_of(edge)["on_probation"] is None)

    wait_until(lambda: (state := press.last_state()) is not None and state.state == "active")
    state = press.last_state()
    assert state is not None
    assert (state.release, state.version, state.reason) == (release, 7, "")
    assert {"init", "downloading", "verified"} <= {each.state for each in press.states}
    assert edge.metric("elma_edge_release_info", release=release) == 1
    assert edge.metric("elma_edge_release_state", state="active") == 1
    assert edge.metric("elma_edge_release_version") == 7
    assert edge.metric("elma_edge_download_bytes_total") > 0
    assert edge.metric("elma_edge_release_changes_total") == 1


def test_a_release_that_fails_its_canaries_changes_nothing_and_the_reason_is_told(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    reader: Reader,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
) -> None:
    edge = start_edge(mosquitto.settings(), releases=follow(press, tmp_path), offload=SILENT_CLOUD)
    own = canaries_of(reader)
    assert own != canaries_of(new_reader)
    refused = press.publish(new_folder, 2, own)  # another's answers are expected of it
    wait_until(lambda: releases_of(edge)["state"] == "failed", 60.0)
    told = releases_of(edge)
    assert told["reason_code"] == "canaries"
    assert (told["target"], told["target_version"]) == (refused, 2)
    assert edge.ask()["release"] == reader.digest
    assert edge.metric("elma_edge_canary_failures_total") == 1
    assert edge.metric("elma_edge_release_failures_total", reason="canaries") == 1
    wait_until(lambda: (state := press.last_state()) is not None and state.state == "failed")
    state = press.last_state()
    assert state is not None
    assert "canaries failed" in state.reason
    assert (state.target, state.release) == (refused, reader.digest)


def test_a_release_whose_reader_fails_in_use_is_given_back_and_no_question_is_lost(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    reader: Reader,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its canaries pass, and then the questions of real life break it."""
    poisoned: list[str] = []
    split = Reader.split

    def breaks_later(self: Reader, question: str, passage: str) -> Any:
        if self.digest == new_reader.digest and question == QUESTION and poisoned:
            monkeypatch.setattr(self.engine, "embed", None)
        return split(self, question, passage)

    monkeypatch.setattr(Reader, "split", breaks_later)
    edge = start_edge(mosquitto.settings(), releases=follow(press, tmp_path), offload=SILENT_CLOUD)
    release = press.publish(new_folder, 2, canaries_of(new_reader))
    wait_until(lambda: edge.ask(question="when was it built")["release"] == release, 60.0)
    poisoned.append(release)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(edge.ask, request_id=f"q{number}") for number in range(8)]
        assert {future.result()["release"] for future in asked} == {reader.digest}
    told = releases_of(edge)
    assert (told["state"], told["reason_code"]) == ("failed", "inference")
    assert (told["target"], told["on_probation"]) == (release, None)
    assert edge.metric("elma_edge_release_returns_total") == 1
    assert edge.metric("elma_edge_release_failures_total", reason="inference") == 1
    assert edge.metric("elma_edge_questions_total", result="failed", resolved_by="none") == 0
    wait_until(lambda: (state := press.last_state()) is not None and state.state == "failed")


def test_an_agent_that_dies_on_probation_comes_back_with_what_it_had(
    press: Press,
    mosquitto: RunningBroker,
    model_folder: Path,
    reader: Reader,
    keys: Keys,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, model_folder, mosquitto, keys)
    with config.open("a", encoding="utf-8") as file:
        file.write(
            "\ncloud_wait_seconds = 0.0\naccept_seconds = 0.1\nmax_attempts = 1\n"
            f'[releases]\npublisher_public_key_file = "{press.public_file}"\n'
            'folder = "releases"\nmax_starts = 1\nprobation_seconds = 600.0\n'
        )
    release = press.publish(new_folder, 3, canaries_of(new_reader))
    with ExitStack() as processes:

        def start() -> EdgeProcess:
            process = EdgeProcess(config)
            processes.callback(process.close)
            return process

        first = start()
        wait_until(lambda: "release_active" in first.log, 60.0)
        assert first.post("q1").json()["release"] == release
        first.end(signal.SIGKILL)
        second = start()  # the one start that it has
        assert second.post("q2").json()["release"] == release
        second.end(signal.SIGKILL)
        third = start()
        assert third.post("q3").json()["release"] == reader.digest
        given_up = [event for event in third.events() if event["event"] == "release_given_up"]
        assert [event["release"] for event in given_up] == [release]
        wait_until(lambda: _has_failed(press, release))
        assert third.end(signal.SIGTERM) == 0


def _has_failed(press: Press, release: str) -> bool:
    state = press.last_state()
    if state is None or state.state != "failed":
        return False
    assert (state.target, state.target_version) == (release, 3)
    assert "never worked long enough" in state.reason
    return True


def test_a_stop_during_the_check_is_no_crash_of_the_release(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "hangs"
    program.write_text("#!/bin/sh\nexec sleep 100\n", encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setattr("releases.proving.sys.executable", str(program))
    edge = start_edge(mosquitto.settings(), releases=follow(press, tmp_path), offload=SILENT_CLOUD)
    press.publish(new_folder, 2, canaries_of(new_reader))
    wait_until(lambda: releases_of(edge)["state"] == "verified")
    assert edge.ask()["resolved_by"] == "edge"  # it answers while it checks
    edge.agent.stop()
    with ReleaseStore(tmp_path / "releases") as store:
        assert (store.state.trial, store.state.refused) == (None, ())


def test_a_release_without_the_codec_of_the_settings_is_refused_and_says_so(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    model_folder: Path,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    shutil.copytree(model_folder, own)
    add_bottleneck(own, layer=2)
    edge = start_edge(
        mosquitto.settings(),
        model=str(own),
        releases=follow(press, tmp_path),
        offload={**SILENT_CLOUD, "codec": "bottleneck"},
    )
    press.publish(new_folder, 2, canaries_of(new_reader))
    wait_until(lambda: releases_of(edge)["state"] == "failed", 60.0)
    assert releases_of(edge)["reason_code"] == "cannot_load"
    assert "has no bottleneck" in releases_of(edge)["reason"]
    assert edge.ask()["release"] == folder_digest(own)
    assert edge.metric("elma_edge_readers_held") == 1


def test_a_first_release_whose_reader_fails_fails_its_questions_and_stays(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
) -> None:
    """There is nothing to go back to: no question may wait for what does not come."""
    edge = start_edge(
        mosquitto.settings(), model="none", releases=follow(press, tmp_path), offload=SILENT_CLOUD
    )
    release = press.publish(new_folder, 1, canaries_of(new_reader))
    wait_until(lambda: edge.get("/readyz").status_code == 200, 60.0)
    edge.agent.local.reader.engine.embed = None  # type: ignore[assignment,method-assign]
    response = edge.post({"question": QUESTION, "context": PASSAGE})
    assert (response.status_code, response.json()["error"]) == (500, "failed")
    assert edge.agent.local.reader.digest == release


def test_a_release_that_is_damaged_between_its_proof_and_its_load_is_fetched_again(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged: list[Path] = []

    def check(folder: Path, *given: Any, **named: Any) -> CheckReport:
        report = check_in_child(folder, *given, **named)
        if not damaged:
            weights = folder / "model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1  # loads, and is no longer what was signed
            weights.write_bytes(content)
            damaged.append(weights)
        return report

    monkeypatch.setattr("edge_agent.release_life.check_in_child", check)
    defaults = ReleaseFollower.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "retry_seconds", (0.1, 1.0))
    edge = start_edge(mosquitto.settings(), releases=follow(press, tmp_path), offload=SILENT_CLOUD)
    release = press.publish(new_folder, 2, canaries_of(new_reader))
    wait_until(lambda: edge.ask()["release"] == release, 60.0)
    assert damaged
    assert folder_digest(tmp_path / "releases" / "installed" / release) == release


def test_a_full_disk_keeps_no_agent_from_its_end(
    press: Press,
    mosquitto: RunningBroker,
    start_edge: StartEdge,
    new_folder: Path,
    new_reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = press.publish(new_folder, 2, canaries_of(new_reader))
    rules = follow(press, tmp_path)
    first = start_edge(mosquitto.settings(), releases=rules, offload=SILENT_CLOUD)
    wait_until(lambda: releases_of(first)["on_probation"] == release, 60.0)
    first.agent.stop()
    second = start_edge(mosquitto.settings(), releases=rules, offload=SILENT_CLOUD)
    assert releases_of(second)["on_probation"] == release  # a start that is to be forgiven
    monkeypatch.setattr("releases.store.write_json", _full)
    second.agent.stop()


def _full(*_: object) -> None:
    raise NotEnoughSpace("no space left")
