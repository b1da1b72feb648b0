"""`elma publish` and its kin on a real mosquitto, with devices that follow the channel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.exchange import Publication
from broker.session import Session
from elma.bench.links import Link, ShapingProxy
from elma.output import CommandError
from protocol.messages import Presence, encode_message
from protocol.release_messages import WorkerReleases
from protocol.topics import PresenceTopic, WorkerReleasesTopic
from publisher.errors import (
    ChannelTaken,
    PublisherStoreError,
    ReleaseRefused,
    SigningError,
    WorkersNotReady,
)
from publisher.packing import pack
from publisher.store import PublisherStore
from reader.canaries import load_canaries
from reader.codecs import LOSSES_FILE
from reader.model import Reader
from reader.weights import folder_digest
from tests.elma.desk import WAIT_SECONDS, Desk, Device


def test_one_publish_reaches_a_fresh_device(desk: Desk, device: Callable[..., Device]) -> None:
    kitchen = device("kitchen")
    model = desk.model("a")
    report = desk.publish(model, "--note", "the first")
    kitchen.wait_active(1)
    release = folder_digest(Path(model))
    assert report["release"] == release
    assert folder_digest(kitchen.folder(release)) == release
    assert load_canaries(kitchen.folder(release))
    assert (report["version"], report["share"], report["engines"]) == (1, 1.0, ["torch fp32"])


def test_the_same_publish_again_makes_no_new_version(desk: Desk) -> None:
    first = desk.publish(desk.model("a"))
    again = desk.publish(desk.model("a"))
    assert (first["version"], again["version"]) == (1, 1)
    assert again["chunks_sent"] == 0
    assert again["sequence"] == first["sequence"]


def test_an_update_and_a_rollback_arrive(desk: Desk, device: Callable[..., Device]) -> None:
    kitchen = device("kitchen")
    desk.publish(desk.model("a"))
    kitchen.wait_active(1)
    desk.publish(desk.model("b", 1))
    kitchen.wait_active(2)
    back = desk.publish("--rollback", "1")
    progress = kitchen.wait_active(3)
    assert progress.release == folder_digest(Path(desk.model("a")))
    assert back["chunks_sent"] == 1
    assert "version 1" in back["note"]


def test_a_refresh_arrives_without_a_download(desk: Desk, device: Callable[..., Device]) -> None:
    kitchen = device("kitchen")
    desk.publish(desk.model("a"), "--expires-days", "1")
    before = kitchen.wait_active(1)
    desk.publish("--refresh")
    after = kitchen.wait_active(2)
    assert before.manifest_expires is not None
    assert after.manifest_expires is not None
    assert after.manifest_expires > before.manifest_expires + 86_400
    assert after.release == before.release


def test_a_stage_takes_its_share_only(desk: Desk, device: Callable[..., Device]) -> None:
    kitchen = device("kitchen")
    desk.publish(desk.model("a"), "--stage", "0%")
    status = desk.run("rollout", "status", *desk.options())
    assert status["rollout"]["share"] == 0.0
    assert all(one.release is None for one in kitchen.reports)
    desk.run("rollout", "stage", "100%", *desk.options())
    kitchen.wait_active(1)


def test_a_paused_rollout_goes_on_when_resumed(desk: Desk, device: Callable[..., Device]) -> None:
    desk.publish(desk.model("a"), "--stage", "0%")
    desk.run("rollout", "pause", "--reason", "a strange noise", *desk.options())
    desk.run("rollout", "stage", "100%", *desk.options())
    kitchen = device("kitchen")
    status = desk.run("rollout", "status", *desk.options())
    assert status["rollout"]["paused"]
    assert all(one.release is None for one in kitchen.reports)
    order = desk.run("rollout", "resume", *desk.options())
    assert (order["paused"], order["share"]) == (False, 1.0)
    kitchen.wait_active(1)


def test_the_same_publish_again_moves_neither_a_stage_nor_a_pause(desk: Desk) -> None:
    desk.publish(desk.model("a"), "--stage", "50%")
    desk.run("rollout", "pause", "--reason", "a strange noise", *desk.options())
    again = desk.publish(desk.model("a"), "--stage", "100%")
    assert (again["share"], again["paused"]) == (0.5, True)
    assert desk.run("rollout", "status", *desk.options())["rollout"]["paused"]


def test_workers_that_are_all_away_hold_a_release_back(desk: Desk) -> None:
    speaker = Session(desk.broker.settings(), "speaker")
    speaker.start()
    assert speaker.wait_connected(WAIT_SECONDS)
    report = WorkerReleases("one", (), (), (), (), time.time())
    topic = str(WorkerReleasesTopic("one"))
    speaker.publish(Publication(topic, report.encode(), 1, True)).wait(WAIT_SECONDS)
    with pytest.raises(WorkersNotReady, match="one was lately"):
        desk.publish(desk.model("a"))
    assert desk.publish(desk.model("a"), "--no-wait")["share"] == 1.0
    speaker.stop()


def test_a_prepared_release_is_signed_elsewhere(desk: Desk, device: Callable[..., Device]) -> None:
    kitchen = device("kitchen")
    unsigned = str(desk.folder / "one.unsigned")
    desk.run("publish", desk.model("a"), "--as-is", "--prepare", unsigned, *desk.options())
    assert all(one.release is None for one in kitchen.reports)
    shown = desk.run("sign", unsigned, *desk.key, *desk.public)
    assert shown["release"] == folder_digest(Path(desk.model("a")))
    assert {"name", "bytes", "sha256"} == set(shown["files"][0])
    desk.run("publish", "--signature", shown["signed_file"], *desk.options())
    kitchen.wait_active(1)


def test_a_changed_manifest_is_not_published(desk: Desk) -> None:
    unsigned = desk.folder / "one.unsigned"
    desk.run("publish", desk.model("a"), "--prepare", str(unsigned), *desk.options())
    signed = Path(desk.run("sign", str(unsigned), *desk.key, *desk.public)["signed_file"])
    content = bytearray(signed.read_bytes())
    content[content.index(b"stable") + 3] ^= 1  # "stacle"
    signed.write_bytes(bytes(content))
    with pytest.raises((SigningError, CommandError)):
        desk.run("publish", "--signature", str(signed), *desk.options())
    assert PublisherStore(desk.folder / "store").channel("stable").records == []


def test_a_worse_release_is_refused_unless_forced(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.publish(desk.model("a"))
    worse, current = Path(desk.model("b", 1)), folder_digest(Path(desk.model("a")))
    monkeypatch.setattr(
        "publisher.checking.count_right", lambda reader, _: 7 if reader.digest == current else 6
    )
    with pytest.raises(ReleaseRefused, match=r"6 of 8 .* the current release answers 7"):
        desk.publish(str(worse))
    forced = desk.publish(str(worse), "--force")
    assert forced["version"] == 2
    assert "by force" in forced["warnings"][0]


def test_f1_is_measured_on_the_same_questions(desk: Desk) -> None:
    data = desk.folder / "dev.json"
    text = "the lighthouse was built in the old city by the river and the keeper was first"
    articles = [
        {
            "title": f"article {number}",
            "paragraphs": [
                {
                    "context": text,
                    "qas": [
                        {
                            "id": f"{number}",
                            "question": "what was built?",
                            "answers": [{"text": text, "answer_start": 0}],
                        }
                    ],
                }
            ],
        }
        for number in range(4)
    ]
    data.write_text(json.dumps({"data": articles}))
    options = ["--data", str(data), "--canaries", str(data)]
    first = desk.publish(desk.model("a"), *options, "--force")
    second = desk.publish(desk.model("b", 1), *options, "--force")
    assert first["questions"] == 4
    assert first["f1"] != second["f1"]
    assert any("F1" in one for one in second["warnings"]) == (second["f1"] < first["f1"])


def test_a_model_that_cannot_be_run_is_refused(desk: Desk) -> None:
    broken = Path(desk.model("a"))
    (broken / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ReleaseRefused, match="cannot be run"):
        desk.publish(str(broken))


def test_failures_and_their_reasons_show(desk: Desk, device: Callable[..., Device]) -> None:
    device("kitchen").follower.progress()
    cellar = device("cellar", is_broken=True)
    desk.publish(desk.model("a"))
    cellar.wait_for(lambda one: one.state == "failed")
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found = desk.run("releases", *desk.options())["channels"]["stable"]
        if found["counts"]["active"] and found["counts"]["failed"]:
            break
    assert found["counts"] == {"active": 1, "under_way": 0, "failed": 1, "waiting": 0}
    first = found["edges"][0]
    assert (first["edge"], first["reason_code"]) == ("cellar", "canaries")
    assert "2 canaries failed" in first["reason"]
    assert found["versions"][0]["state"] == "current"
    against = desk.run("rollout", "status", *desk.options())["against"]
    assert "1 of 2 edges failed" in against[0]


def test_edges_are_told_nothing_before_the_workers_are_ready(desk: Desk) -> None:
    speaker = Session(desk.broker.settings(), "worker-one").start()
    assert speaker.wait_connected(WAIT_SECONDS)
    online = Publication(
        str(PresenceTopic("worker", "one")), encode_message(Presence(True)), 1, True
    )
    speaker.publish(online).wait(WAIT_SECONDS)
    with pytest.raises(WorkersNotReady, match="one says nothing about releases"):
        desk.publish(desk.model("a"), "--wait-seconds", "0.1")
    shown = desk.run("releases", *desk.options())["channels"]["stable"]
    assert shown["shown"]["version"] == 1
    assert shown["rollout"] is None
    assert desk.publish(desk.model("a"), "--no-wait")["share"] == 1.0
    speaker.stop()


def test_a_killed_publish_is_finished_by_the_same_command(
    desk: Desk, device: Callable[..., Device]
) -> None:
    kitchen = device("kitchen")
    model, store = desk.model("a"), PublisherStore(desk.folder / "store")
    with ShapingProxy(desk.broker.port, Link("slow", 1.5e6, 0.0)) as proxy:
        log = store.sent_log(f"127.0.0.1:{proxy.port}")
        command = ["publish", model, "--as-is", *desk.key, *desk.options(proxy.port), "--no-wait"]
        process = subprocess.Popen(
            [sys.executable, "-m", "elma", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + WAIT_SECONDS
        while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert store.channel("stable").current is None
        had = len(log.read_text().splitlines())
        report = desk.run(*command)
    kitchen.wait_active(1)
    assert report["version"] == 1
    assert report["chunks_there"] >= had >= 1
    assert report["chunks_sent"] >= 1


def test_blobs_are_exported_for_content_networks(desk: Desk) -> None:
    web = desk.folder / "web"
    report = desk.publish(
        desk.model("a"), "--export", str(web), "--url", "https://models.example.org/elma"
    )
    assert report["exported_blobs"] == len(list(web.iterdir())) > 3
    assert report["urls"] == ["https://models.example.org/elma"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["model", "--refresh"], ["--rollback", "1", "--signature", "x"]],
)
def test_a_call_names_one_thing_to_publish(desk: Desk, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="one thing to publish"):
        desk.publish(*arguments)


def test_a_release_needs_a_signature(desk: Desk) -> None:
    with pytest.raises(CommandError, match="--prepare"):
        desk.run("publish", desk.model("a"), *desk.options())


def test_a_store_tells_its_versions_without_a_broker(desk: Desk) -> None:
    desk.publish(desk.model("a"), "--note", "the first")
    desk.broker.stop()
    found = desk.run("releases", "--offline", *desk.options())["channels"]["stable"]
    assert [one["note"] for one in found["versions"]] == ["the first"]


def test_a_folder_of_plain_floats_goes_out_packed_and_the_same_each_time(desk: Desk) -> None:
    model = desk.model("a")
    first = desk.run("publish", model, *desk.key, *desk.options())
    assert first["release"] != folder_digest(Path(model))
    again = desk.run("publish", model, *desk.key, *desk.options())
    assert (again["version"], again["release"]) == (first["version"], first["release"])
    packed = next((desk.folder / "store" / "packed").glob("*/a"))
    assert folder_digest(packed) == first["release"]
    assert Reader.load(packed, engine="torch").config == Reader.load(model, engine="torch").config


def test_new_codec_losses_reach_a_folder_that_was_packed_before(desk: Desk) -> None:
    model = Path(desk.model("a"))
    (model / LOSSES_FILE).write_text("old")
    packed = pack(model, desk.folder / "packed")
    (model / LOSSES_FILE).write_text("new")
    assert pack(model, desk.folder / "packed") == packed
    assert (packed / LOSSES_FILE).read_text() == "new"
    (model / LOSSES_FILE).unlink()
    assert not (pack(model, desk.folder / "packed") / LOSSES_FILE).exists()


def test_a_stale_store_steers_no_release_of_another(desk: Desk) -> None:
    desk.publish(desk.model("a"))
    store = desk.folder / "store"
    stale = store.rename(desk.folder / "stale")
    desk.publish(desk.model("b", 1))
    store.rename(desk.folder / "newer")
    stale.rename(store)
    with pytest.raises(ChannelTaken, match="made later and elsewhere"):
        desk.run("rollout", "stage", "50%", *desk.options())


def test_what_only_reads_or_steers_makes_no_store(desk: Desk) -> None:
    desk.publish(desk.model("a"))
    typo = str(desk.folder / "typo")
    for verb in (["releases", "--offline"], ["rollout", "status"], ["rollout", "pause"]):
        with pytest.raises(PublisherStoreError, match="no publisher's store"):
            desk.run(*verb, *desk.options(), "--store", typo)
    assert not Path(typo).exists()


@pytest.mark.parametrize("url", ["javascript:x", "http://example.org/blobs", "https://"])
def test_an_address_that_no_device_would_ask_is_refused(desk: Desk, url: str) -> None:
    with pytest.raises(CommandError, match="https addresses only"):
        desk.publish(desk.model("a"), "--url", url)
