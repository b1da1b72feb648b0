"""The terms of a release: addresses, notes, expiry and stages are what was said, or it is told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker.exchange import Publication
from broker.session import Session
from elma.cli import app, exit_status_of
from elma.output import CommandError
from protocol.release_messages import ModelState, edge_fraction
from protocol.topics import ModelStateTopic
from publisher.errors import UploadFailed
from publisher.store import PublisherStore
from reader.weights import folder_digest
from tests.elma.desk import WAIT_SECONDS, Desk

OLD, NEW = "https://old.example.org/elma", "https://new.example.org/elma"


def known_edges(desk: Desk, *names: str) -> None:
    """Edges that were heard of."""
    speaker = Session(desk.broker.settings(), "speaker").start()
    assert speaker.wait_connected(WAIT_SECONDS)
    for name in names:
        state = ModelState("active", None, None, None, None, "", 0, 0, time.time())
        topic = str(ModelStateTopic(name))
        speaker.publish(Publication(topic, state.encode(), 1, True)).wait(WAIT_SECONDS)
    speaker.stop()


def names_from(release: str, least: float, most: float, count: int) -> list[str]:
    """Edges that join at a share between these."""
    names = (f"edge-{number}" for number in range(10_000))
    found = [one for one in names if least <= edge_fraction(one, release) < most]
    return found[:count]


def test_a_refresh_names_other_addresses_or_none(desk: Desk) -> None:
    assert desk.publish(desk.model("a"), "--url", OLD)["urls"] == [OLD]
    assert desk.publish("--refresh")["urls"] == [OLD]
    assert desk.publish("--refresh", "--url", NEW)["urls"] == [NEW]
    assert desk.publish("--refresh", "--no-url")["urls"] == []


def test_a_rollback_can_leave_a_dead_address_out(desk: Desk) -> None:
    desk.publish(desk.model("a"), "--url", OLD)
    desk.publish(desk.model("b", 1))
    assert desk.publish("--rollback", "1", "--no-url")["urls"] == []


def test_an_address_and_none_contradict_each_other(desk: Desk) -> None:
    with pytest.raises(CommandError, match="not both") as raised:
        desk.publish(desk.model("a"), "--url", OLD, "--no-url")
    assert raised.value.exit_status == 2


def test_what_a_second_publish_does_not_apply_is_said(desk: Desk) -> None:
    first = desk.publish(desk.model("a"), "--note", "the first", "--expires-days", "10")
    again = desk.publish(
        desk.model("a"),
        *("--note", "the second", "--expires-days", "20", "--url", NEW),
        *("--data", str(desk.folder / "dev.json")),
    )
    assert again["not_applied"] == ["--note", "--expires-days", "--url", "--data"]
    assert (again["version"], again["note"]) == (first["version"], "the first")
    refreshed = desk.publish("--refresh", "--note", "the second", "--expires-days", "20")
    assert refreshed["note"] == "the second"
    assert refreshed["expires"] > first["expires"] + 9 * 86_400


def test_the_same_terms_again_leave_nothing_to_say(desk: Desk) -> None:
    terms = ["--note", "the first", "--expires-days", "10", "--url", NEW]
    desk.publish(desk.model("a"), *terms)
    assert desk.publish(desk.model("a"), *terms)["not_applied"] == []
    assert desk.publish(desk.model("a"))["not_applied"] == []


def test_the_way_to_other_terms_is_named(desk: Desk) -> None:
    desk.publish(desk.model("a"))
    command = ["publish", desk.model("a"), "--as-is", "--note", "new", *desk.key, *desk.options()]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "not applied: --note" in told.stderr
    assert "elma publish --refresh" in told.stderr


def test_a_release_that_nobody_saw_is_signed_anew_on_other_terms(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise UploadFailed("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr("publisher.sending._show_manifest", breaks)
        with pytest.raises(UploadFailed):
            desk.publish(desk.model("a"), "--note", "the first")
    report = desk.publish(desk.model("a"), "--note", "the second")
    assert (report["version"], report["note"]) == (2, "the second")
    records = PublisherStore(desk.folder / "store").channel("stable").records
    assert [one.version for one in records] == [2]


def test_a_stage_says_before_it_is_set_how_many_known_edges_it_has(desk: Desk) -> None:
    release = folder_digest(Path(desk.model("a")))
    early, late = names_from(release, 0.0, 0.3, 1), names_from(release, 0.6, 0.9, 2)
    known_edges(desk, *early, *late)
    report = desk.publish(desk.model("a"), "--stage", "30%", "--no-wait")
    assert (report["edges_known"], report["edges_in_stage"]) == (3, 1)
    order = desk.run("rollout", "stage", "90%", *desk.options())
    assert (order["edges_known"], order["edges_in_stage"]) == (3, 3)


def test_a_stage_with_nobody_in_it_is_warned_of(desk: Desk) -> None:
    release = folder_digest(Path(desk.model("a")))
    late = names_from(release, 0.60, 0.61, 1)
    known_edges(desk, *late)
    desk.publish(desk.model("a"), "--stage", "10%", "--no-wait")
    told = CliRunner().invoke(app, ["rollout", "stage", "50%", *desk.options()])
    assert told.exit_code == 0, told.output
    assert "50 % is 0 of 1 known edge" in told.stderr
    assert (
        f"warning: no known edge is in this stage, so it proves nothing; {late[0]}" in told.stderr
    )
    assert "to join, at 61 %" in told.stderr
    told = CliRunner().invoke(app, ["rollout", "stage", "61%", *desk.options()])
    assert "warning" not in told.stderr


def status_of(*arguments: str) -> int:
    """The exit status of the program for these arguments."""
    done = CliRunner().invoke(app, [*arguments])
    if isinstance(done.exception, SystemExit) or done.exception is None:
        return done.exit_code
    assert isinstance(done.exception, Exception)
    return exit_status_of(done.exception)


def test_what_another_call_mends_leaves_with_2(desk: Desk) -> None:
    model, there = desk.model("a"), desk.options()
    desk.publish(model)
    missing = str(desk.folder / "missing")
    elsewhere = [*there, "--store", missing]
    wrong: dict[str, list[Any]] = {
        "no such model": ["publish", missing, *desk.key, *there],
        "no such share": ["publish", model, "--stage", "many", *desk.key, *there],
        "no such key": ["publish", model, "--key", missing, *there],
        "no such version": ["publish", "--rollback", "9", *desk.key, *there],
        "nothing there": ["publish", "--refresh", *desk.key, *there, "--channel", "beta"],
        "no such signature": ["publish", "--signature", missing, *there],
        "no such questions": [
            "publish",
            desk.model("b", 1),
            "--canaries",
            missing,
            *desk.key,
            *there,
        ],
        "nobody signs": ["publish", model, "--prepare", missing, "--key-id", "nobody", *there],
        "no trust": ["publish", model, *desk.key, *there, "--publisher-public", missing],
        "no settings": ["rollout", "status", *there, "--config", missing],
        "no store": ["rollout", "status", *elsewhere],
        "no share": ["rollout", "stage", "101%", *there],
        "no list": ["releases", "--offline", *elsewhere],
        "no prepared file": ["sign", missing, *desk.key, *desk.public],
        "nowhere to prepare": ["publish", model, "--prepare", f"{missing}/x", *there],
        "no audits": ["errors", "show", missing],
        "no such key there": ["sign", model, "--key", missing, *desk.public],
    }
    assert {why: status_of(*call) for why, call in wrong.items()} == dict.fromkeys(wrong, 2)


def test_what_failed_otherwise_leaves_with_1(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    there = desk.options()
    desk.publish(desk.model("a"))
    current = folder_digest(Path(desk.model("a")))
    monkeypatch.setattr(
        "publisher.checking.count_right", lambda reader, _: 7 if reader.digest == current else 6
    )
    assert status_of("publish", desk.model("b", 1), "--as-is", *desk.key, *there) == 1
    full = ["publish", desk.model("a"), "--prepare", "/dev/full", *there]
    assert status_of(*full) == 1, "the disk is at fault"
    desk.broker.stop()
    monkeypatch.setenv("ELMA_PUBLISHER_BROKER__CONNECT_TIMEOUT_SECONDS", "0.1")
    assert status_of("rollout", "status", *there) == 1
