"""Chunks, manifest, workers, order on a real mosquitto: whole after every interruption."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from broker.run import RunningBroker
from protocol.manifest import Manifest, sign_manifest
from protocol.messages import Presence, encode_message
from protocol.signing import SigningKey
from protocol.topics import PresenceTopic
from publisher.errors import ChannelTaken, PublisherStoreError, UploadFailed, WorkersNotReady
from publisher.fleet import Fleet
from publisher.line import Line
from publisher.making import Wanted, blobs_of, draft_rollback
from publisher.rollout import Wish, give_order, publish_order
from publisher.sending import (
    assert_channel,
    clear_old,
    export_blobs,
    kept_blobs,
    opened,
    send_release,
    wait_for_workers,
)
from publisher.sent import SentLog
from publisher.store import PublisherStore
from publisher.upload import RENEW_SECONDS, chunks_of, upload
from tests.publisher.conftest import (
    WAIT_SECONDS,
    Members,
    Publisher,
    agreements,
    forget_everything,
)

OpenLine = Callable[..., Line]


def send(publisher: Publisher, line: Line, manifest: Manifest) -> int:
    """Publish a draft; the chunks that were sent."""
    record = publisher.sign(manifest)
    asserted = send_release(line, publisher.store, "stable", record, publisher.trust)
    return asserted.uploaded.chunks_sent


def retained(line: Line, manifest: Manifest, store: PublisherStore) -> list[bool]:
    """For each chunk of a release whether the broker has it."""
    chunks = chunks_of(blobs_of(store, manifest))
    return [line.retained_chunk(*chunk, WAIT_SECONDS) is not None for chunk in chunks]


def test_a_release_is_retained_whole(publisher: Publisher, open_line: OpenLine) -> None:
    manifest = publisher.draft(publisher.model("a"))
    line = open_line()
    assert send(publisher, line, manifest) == len(chunks_of(blobs_of(publisher.store, manifest)))
    visitor = open_line()
    shown = visitor.view.picture().manifest
    assert shown is not None
    assert shown.manifest(publisher.trust.keys()) == manifest
    assert all(retained(visitor, manifest, publisher.store))


def test_what_the_broker_has_is_not_sent_again(publisher: Publisher, open_line: OpenLine) -> None:
    manifest = publisher.draft(publisher.model("a"))
    line = open_line()
    send(publisher, line, manifest)
    again = assert_channel(line, publisher.store, "stable", publisher.trust)
    assert again is not None
    assert again.uploaded.chunks_sent == 0


def test_an_upload_goes_on_where_it_was_stopped(publisher: Publisher, open_line: OpenLine) -> None:
    manifest = publisher.draft(publisher.model("a"))
    blobs = blobs_of(publisher.store, manifest)
    line = open_line()
    with SentLog(publisher.store.sent_log(line.address)) as log:
        upload(line, log, publisher.store.blobs, blobs[:3])
    with SentLog(publisher.store.sent_log(line.address)) as log:
        rest = upload(line, log, publisher.store.blobs, blobs)
    had = len(chunks_of(blobs[:3]))
    assert (rest.chunks_there, rest.chunks_sent) == (had, len(chunks_of(blobs)) - had)


def test_an_upload_stops_when_it_is_told_to(publisher: Publisher, open_line: OpenLine) -> None:
    blobs = blobs_of(publisher.store, publisher.draft(publisher.model("a")))
    stop, line = threading.Event(), open_line()
    stop.set()
    with (
        SentLog(publisher.store.sent_log(line.address)) as log,
        pytest.raises(UploadFailed, match="stopped"),
    ):
        upload(line, log, publisher.store.blobs, blobs, stop=stop)


def test_a_broker_that_lost_everything_gets_it_again(
    publisher: Publisher, open_line: OpenLine, mosquitto: RunningBroker
) -> None:
    manifest = publisher.draft(publisher.model("a"))
    line = open_line()
    total = send(publisher, line, manifest)
    order, signed = give_order(
        publisher.store, "stable", Wish(0.5), line.view.picture(), time.time()
    )
    publish_order(line, "stable", signed)
    mosquitto.kill()
    forget_everything(mosquitto)
    mosquitto.start()
    assert line.session.wait_connected(WAIT_SECONDS)
    line.wait_ready(WAIT_SECONDS)
    asserted = assert_channel(line, publisher.store, "stable", publisher.trust)
    assert asserted is not None
    assert asserted.uploaded.chunks_sent == total
    visitor = open_line()
    assert all(retained(visitor, manifest, publisher.store))
    shown = visitor.view.picture().order
    assert shown is not None
    assert shown.open(manifest.rollout_public) == order


def test_a_broker_killed_during_the_upload_is_filled(
    publisher: Publisher, open_line: OpenLine, mosquitto: RunningBroker
) -> None:
    manifest = publisher.draft(publisher.model("a"))
    line = open_line()
    starting: list[threading.Thread] = []

    def kill_once(*_: int) -> None:
        if not starting:
            mosquitto.kill()
            starting.append(threading.Thread(target=mosquitto.start))
            starting[0].start()

    record = publisher.sign(manifest)
    send_release(line, publisher.store, "stable", record, publisher.trust, progress=kill_once)
    starting[0].join()
    line.wait_ready(WAIT_SECONDS)
    assert_channel(line, publisher.store, "stable", publisher.trust)
    assert all(retained(open_line(), manifest, publisher.store))


def test_chunks_are_renewed_before_they_expire(publisher: Publisher, open_line: OpenLine) -> None:
    manifest = publisher.draft(publisher.model("a"))
    line = open_line()
    total = send(publisher, line, manifest)
    later = time.time() + RENEW_SECONDS + 1
    asserted = assert_channel(
        line, publisher.store, "stable", publisher.trust, wall_clock=lambda: later
    )
    assert asserted is not None
    assert asserted.uploaded.chunks_sent == total


def test_chunks_of_the_third_last_release_are_cleared(
    publisher: Publisher, open_line: OpenLine
) -> None:
    line = open_line()
    manifests = []
    for seed, name in enumerate("abc"):
        manifests.append(publisher.draft(publisher.model(name, seed), line.view.picture()))
        send(publisher, line, manifests[-1])
        clear_old(line, publisher.store)
    visitor = open_line()
    assert all(retained(visitor, manifests[2], publisher.store))
    needed = chunks_of(kept_blobs(publisher.store))
    gone = [
        chunk for chunk in chunks_of(blobs_of(publisher.store, manifests[0])) if chunk not in needed
    ]
    assert gone
    assert all(visitor.retained_chunk(*chunk, WAIT_SECONDS) is None for chunk in gone)


def test_a_rollback_sends_only_what_was_cleared(publisher: Publisher, open_line: OpenLine) -> None:
    line = open_line()
    for seed, name in enumerate("ab"):
        send(publisher, line, publisher.draft(publisher.model(name, seed)))
    wanted = Wanted("stable", "publisher-1", 1000.0, time.time())
    back = draft_rollback(publisher.store, wanted, 1, Fleet(), publisher.trust)
    assert send(publisher, line, back) == 1  # the manifest of the release that it replaces


def test_damage_in_the_store_is_noticed(publisher: Publisher, open_line: OpenLine) -> None:
    manifest = publisher.draft(publisher.model("a"))
    record = publisher.sign(manifest)
    path = publisher.store.blobs.path_of(manifest.files[0].source.sha256)
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(PublisherStoreError, match="damaged"):
        send_release(open_line(), publisher.store, "stable", record, publisher.trust)


def test_a_later_release_of_another_store_is_not_overwritten(
    publisher: Publisher, open_line: OpenLine
) -> None:
    line = open_line()
    send(publisher, line, publisher.draft(publisher.model("a")))
    ours = publisher.store
    publisher.store = PublisherStore(publisher.folder / "another")
    foreign = publisher.draft(publisher.model("b", 1), line.view.picture())
    assert foreign.version == 2
    send(publisher, line, foreign)
    assert line.view.wait_for(
        lambda fleet: (
            fleet.manifest is not None
            and fleet.manifest.manifest(publisher.trust.keys()).version == 2
        ),
        WAIT_SECONDS,
    )
    with pytest.raises(ChannelTaken, match="version 2"):
        assert_channel(line, ours, "stable", publisher.trust)


def test_edges_wait_for_every_live_worker(
    publisher: Publisher, open_line: OpenLine, members: Members
) -> None:
    release = "1" * 64
    members.worker("one", release)
    members.worker("two", loading=(release,))
    line = open_line()
    with pytest.raises(WorkersNotReady, match="two loading"):
        wait_for_workers(line, release, 0.1)
    later = threading.Timer(0.2, members.worker, ["two", release])
    later.start()
    assert wait_for_workers(line, release, WAIT_SECONDS) == ["one", "two"]
    later.join()


def test_a_worker_that_cannot_load_it_ends_the_wait_with_its_reason(
    open_line: OpenLine, members: Members
) -> None:
    release = "1" * 64
    members.worker("one", failed=((release, "out of memory"),))
    with pytest.raises(WorkersNotReady, match="one: out of memory"):
        wait_for_workers(open_line(), release, WAIT_SECONDS)


def test_a_worker_that_has_gone_is_not_waited_for(open_line: OpenLine, members: Members) -> None:
    members.worker("one")
    members.say(PresenceTopic("worker", "one"), encode_message(Presence(False)))
    members.worker("two", "1" * 64)
    assert wait_for_workers(open_line(), "1" * 64, WAIT_SECONDS) == ["two"]


def test_where_no_worker_ever_was_none_is_waited_for(open_line: OpenLine) -> None:
    assert wait_for_workers(open_line(), "1" * 64, WAIT_SECONDS) == []


def test_agreement_is_summed_over_workers(open_line: OpenLine, members: Members) -> None:
    release = "1" * 64
    for name, agreed in (("one", 3), ("two", 4)):
        members.worker(name, release, agreement=agreements(release, (5, "audit", agreed, 10)))
    assert open_line().view.picture().agreement(release) == {(5, "audit"): (7, 20)}


def test_blobs_are_exported_for_a_web_server(publisher: Publisher) -> None:
    manifest = publisher.draft(publisher.model("a"))
    blobs = blobs_of(publisher.store, manifest)
    folder = publisher.folder / "web"
    assert export_blobs(publisher.store, blobs, folder) == len(blobs)
    assert export_blobs(publisher.store, blobs, folder) == 0
    assert {path.name for path in folder.iterdir()} == {blob.sha256 for blob in blobs}


def test_a_visitor_leaves_no_presence_behind(open_line: OpenLine) -> None:
    first = open_line()
    first.__exit__(None, None, None)
    assert len(open_line().view.picture().present["publisher"]) == 1


def test_a_manifest_of_a_stranger_is_not_shown_as_ours(
    publisher: Publisher, open_line: OpenLine
) -> None:
    manifest = publisher.draft(publisher.model("a"))
    forged = sign_manifest(manifest, SigningKey.make("publisher-1"), publisher.trust.key_list)
    assert opened(forged, publisher.trust) is None
