"""kill -9 of a device that follows, at random instants: only what lacks is fetched again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.run import RunningBroker
from broker.session import Session
from protocol.topics import BlobTopic
from reader.weights import folder_digest
from releases.store import ReleaseStore
from tests.releases.plant import Plant, announce, make_folder, upload

ROOT = Path(__file__).resolve().parents[2]
LIVES = 5
WINDOW = 4


def chunks_on_disk(store: Path) -> set[str]:
    """Topics of the complete chunks."""
    return {
        str(BlobTopic(path.parent.name, int(path.name)))
        for path in (store / "downloads").glob("*/*")
        if path.name.isdigit()
    }


def live(command: list[str], seconds: float | None, log: Path) -> list[str]:
    """One life of the device: killed after `seconds`, or once it is active. Returns its lines."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        began: float | None = None
        while time.monotonic() < deadline:
            lines = log.read_text().splitlines()
            if any(line.startswith("active") for line in lines):
                break
            if began is None and lines:
                began = time.monotonic()
            if seconds is not None and began is not None and time.monotonic() - began >= seconds:
                break
            assert process.poll() is None, "the child died by itself"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return log.read_text().splitlines()


@pytest.mark.parametrize("seed", [11])
def test_a_device_that_is_killed_at_random_instants_ends_with_the_whole_release(
    plant: Plant, mosquitto: RunningBroker, publisher: Session, tmp_path: Path, seed: int
) -> None:
    model = make_folder(tmp_path / "model", tensors=12)
    manifest = plant.manifest(model, 1)
    upload(publisher, plant)
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    store = tmp_path / "store"
    command = [sys.executable, "-m", "tests.releases.child_follows"]
    command += [str(mosquitto.port), str(store), str(plant.public_file), "1500000"]
    generator = random.Random(seed)
    came_after_all = 0
    for life in range(LIVES + 1):
        had = chunks_on_disk(store)
        seconds = None if life == LIVES else generator.uniform(0.1, 0.6)
        lines = live(command, seconds, tmp_path / f"life{life}")
        came = {line for line in lines if line.startswith("elma/v1/blob/")}
        came_after_all += len(came)
        assert not came & had, "a chunk that was on the disk was fetched again"
        for folder in (store / "installed").glob("*"):
            if not folder.name.endswith(".partial"):
                assert folder_digest(folder) == folder.name, "a half release is in sight"
    with ReleaseStore(store) as kept:
        assert kept.active == manifest.release
        assert kept.installed.digests() == (manifest.release,)
        assert kept.trust.used
    total = sum(blob.chunk_count for blob in plant.references.values())
    assert came_after_all <= total + LIVES * WINDOW
