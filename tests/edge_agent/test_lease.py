"""The life of one offloaded request, step by step, on a clock that only the test moves."""

from __future__ import annotations

import pytest

from edge_agent.cloud_view import SPOKE_RECENTLY_SECONDS, CloudView
from edge_agent.lease import Action, Lease, LeaseRules, Reason, Step

RULES = LeaseRules(
    accept_seconds=1.0, max_attempts=3, cloud_wait_seconds=2.0, resend_pause_seconds=0.2
)


@pytest.fixture
def cloud() -> CloudView:
    view = CloudView(0.0, probe_seconds=10.0)
    view.connected()
    return view


def make_lease(deadline: float = 20.0, finishing_seconds: float = 1.0) -> Lease:
    """A lease whose random numbers are all 0.5, so that every pause has its nominal length."""
    return Lease(RULES, deadline=deadline, finishing_seconds=finishing_seconds, random=lambda: 0.5)


def send(lease: Lease, now: float, cloud: CloudView) -> None:
    assert lease.next(now, cloud).action is Action.SEND
    lease.published(now)


def test_a_new_request_is_sent_at_once_and_then_waits_for_a_word(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    assert lease.next(0.5, cloud) == Step(Action.WAIT, 1.0)


def test_silence_leads_to_the_same_request_again(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    assert lease.next(1.0, cloud) == Step(Action.WAIT, 1.2)
    send(lease, 1.2, cloud)
    assert lease.publications == 2


def test_an_accepted_request_waits_for_its_lease_and_is_sent_again_after_it(
    cloud: CloudView,
) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    lease.accepted(0.1, lease_seconds=5.0, worker="one")
    assert lease.next(5.0, cloud) == Step(Action.WAIT, 5.1)
    assert lease.next(5.1, cloud).action is Action.WAIT
    send(lease, 5.3, cloud)


def test_an_acceptance_that_comes_after_a_resend_still_counts(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    lease.next(1.0, cloud)
    lease.accepted(1.1, lease_seconds=4.0, worker="one")
    assert lease.next(1.2, cloud) == Step(Action.WAIT, 5.1)


def test_a_large_request_on_a_thin_link_gets_the_time_to_arrive(cloud: CloudView) -> None:
    lease = make_lease()
    assert lease.next(0.0, cloud).action is Action.SEND
    lease.published(0.0, transfer_seconds=3.0)
    assert lease.is_unanswered
    assert lease.next(3.9, cloud).action is Action.WAIT
    assert lease.failures == 0
    lease.next(4.0, cloud)
    assert lease.failures == 1


def test_what_was_packed_anew_goes_out_at_once(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    lease.packed_anew(0.1)
    assert not lease.is_unanswered
    assert lease.next(0.1, cloud).action is Action.SEND
    assert lease.failures == 0


def test_a_lease_is_never_longer_than_the_rules_allow(cloud: CloudView) -> None:
    lease = make_lease(deadline=1_000.0)
    send(lease, 0.0, cloud)
    lease.accepted(0.0, lease_seconds=86_400.0, worker="one")
    assert lease.next(0.0, cloud) == Step(Action.WAIT, RULES.longest_lease_seconds)


def test_busy_postpones_and_is_no_failed_attempt(cloud: CloudView) -> None:
    lease = make_lease()
    now = 0.0
    for _ in range(8):
        send(lease, now, cloud)
        lease.busy(now, retry_after_seconds=1.0)
        assert lease.next(now + 0.9, cloud).action is Action.WAIT
        now += 1.0
    assert lease.failures == 0


def test_busy_of_another_worker_does_not_end_a_lease(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    lease.accepted(0.1, lease_seconds=5.0, worker="one")
    lease.busy(0.2, retry_after_seconds=0.1)
    assert lease.next(1.0, cloud) == Step(Action.WAIT, 5.1)


def test_retries_of_many_are_spread(cloud: CloudView) -> None:
    moments = set()
    for number in (0.0, 0.25, 0.75):
        lease = Lease(RULES, deadline=20.0, finishing_seconds=1.0, random=lambda n=number: n)
        send(lease, 0.0, cloud)
        lease.busy(0.0, retry_after_seconds=1.0)
        moments.add(lease.next(0.0, cloud).again_at)
    assert moments == {0.5, 0.75, 1.25}


def test_silent_attempts_are_limited(cloud: CloudView) -> None:
    lease = make_lease()
    now = 0.0
    for _ in range(RULES.max_attempts):
        send(lease, now, cloud)
        now += 1.0
        lease.next(now, cloud)
        now += 0.2
    assert lease.next(now, cloud) == Step(Action.FINISH, now, Reason.ATTEMPTS)


def test_the_device_finishes_while_there_is_time_for_it(cloud: CloudView) -> None:
    lease = make_lease(deadline=4.0, finishing_seconds=1.5)
    send(lease, 0.0, cloud)
    lease.accepted(0.1, lease_seconds=30.0, worker="one")
    assert lease.next(2.4, cloud) == Step(Action.WAIT, 2.5)
    assert lease.next(2.5, cloud) == Step(Action.FINISH, 2.5, Reason.DEADLINE)


def test_a_device_that_is_busy_finishing_others_begins_earlier(cloud: CloudView) -> None:
    lease = make_lease(deadline=4.0, finishing_seconds=1.5)
    send(lease, 0.0, cloud)
    lease.accepted(0.1, lease_seconds=30.0, worker="one")
    assert lease.next(1.0, cloud, backlog_seconds=1.0) == Step(Action.WAIT, 1.5)
    assert lease.next(1.5, cloud, backlog_seconds=1.0).reason is Reason.DEADLINE


def test_a_broker_that_just_went_away_is_waited_for(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    lease.accepted(0.1, lease_seconds=10.0, worker="one")
    cloud.disconnected(5.0)
    assert lease.next(6.0, cloud) == Step(Action.WAIT, 7.0)
    cloud.connected()
    lease.connection_renewed(6.5)
    send(lease, 6.5, cloud)
    assert lease.failures == 0


def test_a_broker_that_stays_away_is_not_waited_for(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    cloud.disconnected(0.5)
    assert lease.next(2.5, cloud) == Step(Action.FINISH, 2.5, Reason.BROKER_AWAY)


def test_in_a_long_outage_a_new_request_is_finished_at_once(cloud: CloudView) -> None:
    cloud.disconnected(0.0)
    assert make_lease(deadline=200.0).next(100.0, cloud).reason is Reason.BROKER_AWAY
    assert cloud.is_hopeless(100.0, RULES.cloud_wait_seconds)


def test_nobody_listening_is_tried_again_while_patience_lasts(cloud: CloudView) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    cloud.nobody_listened(0.0)
    lease.nobody_listens(0.0)
    assert lease.next(0.1, cloud).action is Action.WAIT
    send(lease, 0.4, cloud)
    lease.nobody_listens(0.4)
    assert lease.next(2.0, cloud) == Step(Action.FINISH, 2.0, Reason.NO_WORKER)


def test_without_workers_one_request_an_interval_is_tried_all_the_same(cloud: CloudView) -> None:
    cloud.nobody_listened(0.0)
    assert cloud.is_hopeless(9.9, RULES.cloud_wait_seconds)
    assert not cloud.is_hopeless(10.0, RULES.cloud_wait_seconds)
    probe, other = make_lease(deadline=60.0), make_lease(deadline=60.0)
    assert probe.next(10.0, cloud).action is Action.SEND
    assert other.next(10.0, cloud).reason is Reason.NO_WORKER
    probe.published(10.0)
    cloud.worker_spoke(10.1)
    assert not cloud.is_hopeless(10.1, RULES.cloud_wait_seconds)


def test_a_full_session_is_tried_again_soon_without_a_failure(cloud: CloudView) -> None:
    lease = make_lease()
    lease.postponed(0.0)
    assert lease.next(0.0, cloud) == Step(Action.WAIT, RULES.full_session_pause_seconds)
    assert lease.failures == 0


def test_the_last_worker_that_leaves_takes_the_cloud_with_it(cloud: CloudView) -> None:
    cloud.worker_presence("one", is_online=True, now=0.0)
    cloud.worker_presence("two", is_online=True, now=0.0)
    cloud.worker_presence("one", is_online=False, now=1.0)
    assert cloud.workers_away_since is None
    cloud.worker_presence("two", is_online=False, now=2.0)
    assert cloud.workers_away_since == 2.0
    cloud.worker_presence("one", is_online=True, now=3.0)
    assert cloud.workers_away_since is None


def test_a_worker_of_another_release_is_no_failure_and_the_pauses_grow(cloud: CloudView) -> None:
    lease = make_lease(deadline=60.0)
    cloud.worker_presence("old", is_online=True, now=0.0)
    cloud.worker_presence("new", is_online=True, now=0.0)
    now, pauses = 0.0, []
    for _ in range(3 * RULES.max_attempts):
        send(lease, now, cloud)
        lease.unsuited(now, "old")
        step = lease.next(now, cloud)
        assert step.action is Action.WAIT
        pauses.append(step.again_at - now)
        now = step.again_at
    assert lease.failures == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(RULES.longest_pause_seconds)
    assert lease.next(59.5, cloud).reason is Reason.DEADLINE


def test_when_every_known_worker_is_of_another_release_the_device_finishes(
    cloud: CloudView,
) -> None:
    lease = make_lease(deadline=60.0)
    cloud.worker_presence("old", is_online=True, now=0.0)
    now = 0.0
    for _ in range(RULES.max_attempts):
        send(lease, now, cloud)
        lease.unsuited(now, "old")
        now += 5.0
    assert lease.next(now, cloud).reason is Reason.REFUSED


def test_a_word_against_a_request_counts_only_from_the_worker_that_holds_it(
    cloud: CloudView,
) -> None:
    lease = make_lease()
    send(lease, 0.0, cloud)
    lease.accepted(0.1, lease_seconds=5.0, worker="one")
    lease.unsuited(0.2, "two")
    assert lease.is_held_by_another("two")
    assert lease.next(1.0, cloud) == Step(Action.WAIT, 5.1)
    lease.unsuited(1.0, "one")
    assert lease.next(1.0, cloud) == Step(Action.WAIT, 1.2)


def test_a_worker_that_spoke_a_moment_ago_is_not_believed_to_be_gone(cloud: CloudView) -> None:
    cloud.worker_presence("one", is_online=True, now=0.0)
    cloud.worker_spoke(1.0)
    cloud.worker_presence("one", is_online=False, now=2.0)
    assert cloud.workers_away_since is None
    cloud.worker_presence("one", is_online=False, now=1.0 + SPOKE_RECENTLY_SECONDS)
    assert cloud.workers_away_since == 1.0 + SPOKE_RECENTLY_SECONDS


def test_presence_alone_shortens_patience_and_keeps_no_request_back(cloud: CloudView) -> None:
    cloud.worker_presence("one", is_online=False, now=0.0)
    assert not cloud.is_hopeless(5.0, RULES.cloud_wait_seconds)
    lease = make_lease()
    send(lease, 5.0, cloud)
    assert lease.next(6.0, cloud).reason is Reason.NO_WORKER  # no word: now it is certain
    assert cloud.is_hopeless(6.0, RULES.cloud_wait_seconds)
    cloud.worker_spoke(6.1)
    assert not cloud.is_hopeless(6.1, RULES.cloud_wait_seconds)
