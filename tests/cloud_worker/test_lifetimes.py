"""Real worker processes under load: full, cancelled, drained, killed, cut off from the broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from broker.exchange import Subscription
from broker.session import Session
from protocol.key_files import save_pool_keys
from protocol.messages import (
    Accepted,
    AnswerMessage,
    Busy,
    ErrorMessage,
    Presence,
    decode_message,
)
from protocol.wire import Kind
from tests.cloud_worker.conftest import MakeCloud
from tests.cloud_worker.harness import WAIT_SECONDS, make_window, wait_until


def test_a_full_worker_says_busy_and_takes_the_same_request_later(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    worker = cloud.worker("one", queue_bound=1)
    edge = cloud.edge()
    first = edge.publish(edge.seal(slow_windows))
    edge.wait_for(first, Accepted)
    second = edge.publish(edge.seal([make_window(cloud.reader)]))
    busy = edge.wait_for(second, Busy)
    assert busy.retry_after_seconds > 0
    assert second.of(Accepted) == []
    edge.wait_final(first)
    edge.publish(second)
    assert isinstance(edge.wait_final(second), AnswerMessage)
    assert worker.metric("elma_worker_busy_total") == 1


def test_a_lease_is_renewed_while_its_request_is_computed(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    cloud.worker("one", lease_seconds=0.2)
    edge = cloud.edge()
    sent = edge.publish(edge.seal(slow_windows))
    assert isinstance(edge.wait_final(sent), AnswerMessage)
    assert len(sent.of(Accepted)) >= 3


def test_a_copy_of_a_request_under_way_is_accepted_once_more_and_computed_once(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    worker = cloud.worker("one", lease_seconds=30.0)
    edge = cloud.edge()
    sent = edge.publish(edge.seal(slow_windows))
    edge.wait_for(sent, Accepted)
    edge.publish(sent)
    edge.wait_for(sent, Accepted, count=2)
    assert isinstance(edge.wait_final(sent), AnswerMessage)
    assert worker.metric("elma_worker_windows_total", layer="16") == len(slow_windows)
    assert len(sent.of(AnswerMessage)) == 1


def test_a_cancelled_request_is_dropped_before_it_is_computed(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    worker = cloud.worker("one")
    edge = cloud.edge()
    first = edge.publish(edge.seal(slow_windows, deadline_seconds=20.0))
    edge.wait_for(first, Accepted)
    second = edge.publish(edge.seal(slow_windows, deadline_seconds=600.0))
    edge.wait_for(second, Accepted)
    stranger = cloud.edge("stranger")
    stranger.keys = edge.keys  # the right topic, the wrong request key
    forged = stranger.seal(slow_windows, request=first.header.request)
    stranger.cancel(forged)
    edge.cancel(second)
    assert isinstance(edge.wait_final(first), AnswerMessage)
    wait_until(lambda: "cancelled" in worker.outcomes(), "the cancellation in the log")
    assert worker.metric("elma_worker_windows_total", layer="16") == len(slow_windows)
    assert second.final() is None


def test_sigterm_answers_what_was_accepted_sends_new_requests_away_and_ends_with_0(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    presence = Session(
        cloud.broker.settings(),
        "watcher",
        subscriptions=[Subscription("elma/v1/presence/worker/one")],
    )
    with presence:
        worker = cloud.worker("one")
        edge = cloud.edge()
        held = [edge.publish(edge.seal(slow_windows[:12])) for _ in range(3)]
        for sent in held:
            edge.wait_for(sent, Accepted)
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.events("worker_draining"), "the drain")
        assert worker.get("/readyz").status_code == 503
        late = edge.publish(edge.seal([make_window(cloud.reader)]))
        edge.wait_for(late, Busy)
        for sent in held:
            assert isinstance(edge.wait_final(sent), AnswerMessage)
        assert worker.wait() == 0
        assert late.of(Accepted) == []
        words = [presence.receive(WAIT_SECONDS) for _ in range(2)]
    states = [decode_message(word.payload, {Kind.PRESENCE}) for word in words if word is not None]
    assert states == [Presence(True), Presence(False)]
    assert worker.events("worker_stopped")[0]["drained"] is True


def test_what_a_drain_cannot_finish_in_time_is_handed_back_with_an_error(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    worker = cloud.worker("one", drain_seconds=0.0)
    edge = cloud.edge()
    held = [edge.publish(edge.seal(slow_windows)) for _ in range(3)]
    for sent in held:
        edge.wait_for(sent, Accepted)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    errors = [edge.wait_final(sent) for sent in held]
    assert {error.code for error in errors if isinstance(error, ErrorMessage)} == {"internal"}
    assert isinstance(errors[-1], ErrorMessage)


def test_after_kill_9_while_computing_the_resent_request_goes_to_the_other_worker(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    workers = {name: cloud.worker(name, ready=False) for name in ("one", "two")}
    for worker in workers.values():
        worker.wait_ready()
    edge = cloud.edge()
    sent = edge.publish(edge.seal(slow_windows))
    first = edge.wait_for(sent, Accepted).worker
    workers[first].signal(signal.SIGKILL)
    workers[first].wait()
    assert sent.final() is None
    edge.publish(sent)
    answer = edge.wait_final(sent)
    assert isinstance(answer, AnswerMessage)
    assert {first, answer.worker} == {"one", "two"}


def test_two_workers_share_the_load(make_cloud: MakeCloud) -> None:
    cloud = make_cloud()
    for worker in [cloud.worker(name, ready=False) for name in ("one", "two")]:
        worker.wait_ready()
    edge = cloud.edge()
    window = make_window(cloud.reader)
    asked = [edge.publish(edge.seal([window])) for _ in range(30)]
    answers = [edge.wait_final(sent) for sent in asked]
    assert {answer.worker for answer in answers} == {"one", "two"}
    assert all(len(sent.of(AnswerMessage)) == 1 for sent in asked)


def test_a_broker_that_was_killed_costs_no_answer(
    make_cloud: MakeCloud, slow_model: Path, slow_windows: list[Any]
) -> None:
    cloud = make_cloud(model=slow_model)
    worker = cloud.worker("one")
    edge = cloud.edge()
    sent = edge.publish(edge.seal(slow_windows))
    edge.wait_for(sent, Accepted)
    cloud.broker.kill()
    wait_until(lambda: not worker.get("/healthz").json()["connected"], "the loss noticed")
    assert worker.get("/healthz").status_code == 200
    assert worker.get("/readyz").status_code == 503
    cloud.broker.restart()
    worker.wait_ready()
    assert edge.session.wait_connected(WAIT_SECONDS)
    edge.publish(sent)  # what an edge does after a renewed connection
    assert isinstance(edge.wait_final(sent), AnswerMessage)
    assert worker.metric("elma_worker_windows_total", layer="16") == len(slow_windows)


DYING = """
import sys
import broker.session, cloud_worker.receive, cloud_worker.reply, cloud_worker.resume
from pathlib import Path

def die(*_):
    raise SystemExit("as if the thread had met the unforeseen")

cloud_worker.{place} = die
sys.argv = ["elma", "worker", "run", "--config", {config!r}]
from elma.cli import main
main()
"""


def test_a_worker_with_a_dead_thread_leaves_the_broker_and_ends_with_1(
    make_cloud: MakeCloud,
) -> None:
    places = {
        "receive": "receive.Intake._receive",
        "compute": "resume.Resumer._work",
        "reply": "reply.Replies._publish_all",
    }
    cloud = make_cloud()
    healthy = cloud.worker("healthy")
    dying = {part: _start_dying(place, part, healthy.config) for part, place in places.items()}
    for part, process in dying.items():
        _, told = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"elma: worker {part}: the thread of {part} ended" in told
    edge = cloud.edge()
    window = make_window(cloud.reader)
    for _ in range(4):  # none is handed to the dead
        answer = edge.wait_final(edge.publish(edge.seal([window])))
        assert answer.worker == "healthy"


def _start_dying(place: str, name: str, like: Path) -> subprocess.Popen[str]:
    """A worker called `name` whose thread at `place` ends at once."""
    config = like.with_name(f"{name}.toml")
    config.write_text(like.read_text().replace('"healthy"', f'"{name}"'))
    return subprocess.Popen(
        [sys.executable, "-c", DYING.format(place=place, config=str(config))],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_worker_whose_log_nobody_reads_answers_on(make_cloud: MakeCloud) -> None:
    cloud = make_cloud()
    healthy = cloud.worker("healthy")
    healthy.signal(signal.SIGTERM)
    assert healthy.wait() == 0
    config = healthy.config
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "elma", "worker", "run", "--config", str(config)],
        stderr=writing,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        os.close(writing)
        while b"worker_started" not in os.read(reading, 65_536):
            pass
        os.close(reading)
        edge = cloud.edge()
        for _ in range(3):
            sent = edge.seal([make_window(cloud.reader)])
            wait_until(lambda sent=sent: edge.publish(sent) and sent.final(), "an answer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait(WAIT_SECONDS)


def test_a_worker_learns_a_rotated_pool_key_without_a_restart(make_cloud: MakeCloud) -> None:
    cloud = make_cloud()
    worker = cloud.worker("one")
    edge = cloud.edge()
    rotated = cloud.pool.rotate("pool-3")
    save_pool_keys(cloud.folder / "pool-secret.json", rotated, replace=True)
    sent = edge.publish(edge.seal([make_window(cloud.reader)], pool=rotated.public))
    assert isinstance(edge.wait_final(sent), AnswerMessage)
    assert worker.events("pool_keys_read")[0]["pool_keys"] == list(rotated.ids)


def test_the_broker_hands_over_no_request_above_the_workers_bound(make_cloud: MakeCloud) -> None:
    cloud = make_cloud()
    worker = cloud.worker("one", max_request_bytes=65_536)
    edge = cloud.edge()
    edge.publish(edge.seal([make_window(cloud.reader)]), bytes(1_000_000))
    assert isinstance(
        edge.wait_final(edge.publish(edge.seal([make_window(cloud.reader)]))), AnswerMessage
    )
    assert worker.metric("elma_worker_requests_total", outcome="malformed") == 0


def test_a_worker_starts_before_its_broker_and_connects_when_there_is_one(
    make_cloud: MakeCloud,
) -> None:
    cloud = make_cloud()
    cloud.broker.kill()
    worker = cloud.worker("early", ready=False)
    assert worker.get("/healthz").json()["connected"] is False
    cloud.broker.restart()
    worker.wait_ready()
    edge = cloud.edge()
    assert isinstance(
        edge.wait_final(edge.publish(edge.seal([make_window(cloud.reader)]))), AnswerMessage
    )
