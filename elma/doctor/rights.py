"""Whether an edge or a worker may say and hear at its broker what its part is.

Inputs: settings, an open connection with its account. Output: a finding, with the broker's own
reason codes. Neighbours: `broker` opens the connection; `broker.roles` is what a secured broker of
ours allows.

What is said goes where nobody listens: a request of a priority that no worker takes, an answer to
an edge that is not there. A worker joins its group for the moment between two packets; a request
that comes to it just then is sent again by its edge, like any that a worker does not accept.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.connection import Connection
from broker.errors import BrokerError
from broker.exchange import Outcome, Publication, Subscription
from cloud_worker.settings import WorkerSettings
from edge_agent.settings import EdgeSettings
from elma.doctor.finding import Finding, State
from protocol.topics import (
    AnswerTopic,
    RequestTopic,
    answer_subscription,
    cancel_subscription,
    manifest_subscription,
    model_state_subscription,
    presence_subscription,
    rollout_subscription,
    worker_subscription,
)
from releases.settings import FollowSettings

WAIT_SECONDS = 10.0
NOBODY = "elma-doctor"


@dataclass(frozen=True)
class Needs:
    """What `who` has to hear, always and `now_and_then`, and a topic that it may publish on."""

    who: str
    hears: tuple[str, ...]
    now_and_then: tuple[str, ...]
    says: str


def needs_of(settings: EdgeSettings | WorkerSettings) -> Needs:
    """An edge's or a worker's."""
    followed = _followed(settings.releases)
    if isinstance(settings, EdgeSettings):
        return Needs(
            f"edge {settings.name}",
            (answer_subscription(settings.name), presence_subscription("worker")),
            followed,
            str(RequestTopic(NOBODY, settings.name, NOBODY)),
        )
    groups = tuple(worker_subscription(priority) for priority in settings.priorities)
    states = () if settings.releases is None else (model_state_subscription(),)
    return Needs(
        f"worker {settings.name}",
        (*groups, cancel_subscription(), *states),
        followed,
        str(AnswerTopic(NOBODY, NOBODY)),
    )


def check_rights(connection: Connection, needs: Needs, refused: list[str]) -> Finding:
    """Try all of it; `refused` is where the connection notes the filters that are not granted."""
    try:
        for topic_filter in (*needs.hears, *needs.now_and_then):
            connection.subscribe(Subscription(topic_filter))
        # The broker answers in order: with this, all that was asked before is settled.
        receipt = connection.publish(Publication(needs.says, b"", expiry_seconds=1))
        outcome = receipt.wait(WAIT_SECONDS)
        for topic_filter in needs.now_and_then:
            connection.unsubscribe(topic_filter)
    except BrokerError as error:
        text = f"the broker ended the connection when {needs.who} used it: {error}"
        advice = "another process uses this certificate, or the broker's log says why"
        return Finding("rights", State.FAILED, text, advice)
    may_not = [f"subscribe to {one}" for one in refused]
    if outcome is Outcome.REFUSED:
        may_not.append(f"publish on {needs.says} ({receipt.reason})")
    figures = {"refused": refused, "may_publish": outcome is not Outcome.REFUSED}
    if outcome in (Outcome.PENDING, Outcome.LOST):
        text = f"the broker did not settle what {needs.who} asked: {receipt.reason or 'silent'}"
        return Finding("rights", State.FAILED, text, "see the broker's log", figures)
    if may_not:
        text = f"{needs.who} may not {'; '.join(may_not)}"
        advice = (
            "is the certificate its own, and was it not revoked? See `elma doctor --broker DIR` "
            "at the broker; else enrol it again"
        )
        return Finding("rights", State.FAILED, text, advice, figures)
    count = len(needs.hears) + len(needs.now_and_then)
    text = f"{needs.who} may hear what it needs ({count} subscriptions granted) and publish"
    return Finding("rights", State.OK, text, figures=figures)


def _followed(releases: FollowSettings | None) -> tuple[str, ...]:
    """The subscriptions of whoever follows a channel."""
    if releases is None:
        return ()
    return manifest_subscription(releases.channel), rollout_subscription(releases.channel)
