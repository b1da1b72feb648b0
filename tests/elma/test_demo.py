"""`elma demo` on the shipped model: three real processes, and nothing left of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

WAIT_SECONDS = 120.0


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_the_demonstration_shows_everything_it_promises(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if broker == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    with running_demo(tmp_path, "--json", "--broker", broker) as demo:
        output, errors = demo.communicate(timeout=WAIT_SECONDS)

    assert demo.returncode == 0, errors
    document: dict[str, Any] = json.loads(output)
    assert document["ok"] is True
    assert document["failures"] == []
    assert document["broker"] == broker
    asked, alone = document["questions"], document["without_worker"]
    assert len(asked) >= 6
    assert [row["id"] for row in asked] == [row["id"] for row in alone]
    assert {row["kind"] for row in asked} == {"easy", "hard", "unanswerable", "long"}
    assert {row["resolved_by"] for row in asked} == {"edge", "cloud"}
    assert all(row["bytes_sent"] > 0 for row in asked if row["resolved_by"] == "cloud")
    assert {row["resolved_by"] for row in alone} == {"edge"}
    assert {row["id"] for row in alone if row["degraded"]} == {
        row["id"] for row in asked if row["resolved_by"] == "cloud"
    }
    assert_nothing_is_left(tmp_path)


def test_an_interrupted_demonstration_leaves_no_process_and_no_key(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        wait_for(lambda: len(processes_of(tmp_path)) >= 3, "three processes")
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=WAIT_SECONDS)
    assert demo.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert_nothing_is_left(tmp_path)


def test_serve_leaves_an_edge_that_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--serve") as demo:
        assert demo.stderr is not None
        lines = iter(demo.stderr.readline, "")
        url = next(
            line.split("answers at ")[1].split()[0] for line in lines if "answers at" in line
        )
        body = {"question": "Who was it?", "context": "It was Ada Lovelace, the countess."}
        answer = httpx.post(f"{url}/v1/answer", json=body, timeout=60.0, trust_env=False)
        assert answer.status_code == 200
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=WAIT_SECONDS)
    assert demo.returncode == 0
    assert "exit layer" in output
    assert "the device goes on alone" in output
    assert_nothing_is_left(tmp_path)


def test_a_model_that_is_not_there_ends_it_with_the_log_of_who_missed_it(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--model", str(tmp_path / "no-model")) as demo:
        output, errors = demo.communicate(timeout=WAIT_SECONDS)
    assert demo.returncode == 1
    assert output == ""
    assert "no-model" in errors
    assert "ended with status" in errors
    assert_nothing_is_left(tmp_path)


@contextmanager
def running_demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`elma demo` with its temporary files under `folder`, so that they can be looked for."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "elma", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        yield demo
    finally:
        demo.kill()
        demo.communicate()


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that name `folder`."""
    listing = subprocess.run(
        ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True, timeout=30
    )
    return [line for line in listing.stdout.splitlines() if f"{folder}/elma-demo-" in line]


def assert_nothing_is_left(folder: Path) -> None:
    wait_for(lambda: not processes_of(folder), "the end of all processes")
    assert list(folder.glob("elma-demo-*")) == []


def wait_for(condition: Any, what: str) -> None:
    """Poll until the condition holds; fails after `WAIT_SECONDS`."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_SECONDS:.0f} seconds for {what}"
        time.sleep(0.05)
