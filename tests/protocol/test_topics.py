"""Topics: one spelling each, both ways, and nothing foreign inside a level."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol.topics
from protocol.errors import TopicError
from protocol.topics import (
    AnswerTopic,
    BlobTopic,
    CancelTopic,
    DeadLetterTopic,
    ManifestTopic,
    MetricsTopic,
    ModelStateTopic,
    PresenceTopic,
    RequestTopic,
    RolloutTopic,
    Topic,
    WorkerReleasesTopic,
    answer_subscription,
    manifest_subscription,
    model_state_subscription,
    new_request_id,
    parse_topic,
    presence_subscription,
    rollout_subscription,
    worker_releases_subscription,
    worker_subscription,
)

EVERY_TOPIC: list[tuple[Topic, str]] = [
    (RequestTopic("normal", "kitchen", "r1"), "elma/v1/req/normal/kitchen/r1"),
    (AnswerTopic("kitchen", "r1"), "elma/v1/ans/kitchen/r1"),
    (CancelTopic("kitchen", "r1"), "elma/v1/cancel/kitchen/r1"),
    (ManifestTopic("stable"), "elma/v1/model/stable/manifest"),
    (RolloutTopic("stable"), "elma/v1/model/stable/rollout"),
    (WorkerReleasesTopic("worker-1"), "elma/v1/state/worker-1/releases"),
    (BlobTopic("ab" * 32, 17), f"elma/v1/blob/{'ab' * 32}/17"),
    (ModelStateTopic("kitchen"), "elma/v1/state/kitchen/model"),
    (PresenceTopic("worker", "w-1"), "elma/v1/presence/worker/w-1"),
    (DeadLetterTopic("expired", "kitchen", "r1"), "elma/v1/dead/expired/kitchen/r1"),
    (MetricsTopic("kitchen"), "elma/v1/metrics/kitchen"),
]
NOT_NAMES = ["", "+", "#", "a/b", "a+b", "a#", "a b", "a\0", "ä", "a\n", "$share", "x" * 65, "a."]


def test_the_examples_in_the_module_hold() -> None:
    assert doctest.testmod(protocol.topics).failed == 0


@pytest.mark.parametrize(("topic", "text"), EVERY_TOPIC)
def test_every_topic_is_built_and_parsed_back(topic: Topic, text: str) -> None:
    assert str(topic) == text
    assert parse_topic(text) == topic


@pytest.mark.parametrize("name", NOT_NAMES)
def test_no_name_smuggles_a_level_or_a_wildcard_in(name: str) -> None:
    with pytest.raises(TopicError):
        RequestTopic("normal", name, "r1")
    with pytest.raises(TopicError):
        AnswerTopic("kitchen", name)
    with pytest.raises(TopicError):
        worker_subscription(name)
    with pytest.raises(TopicError):
        answer_subscription(name)
    with pytest.raises(TopicError):
        manifest_subscription(name)
    with pytest.raises(TopicError):
        rollout_subscription(name)
    with pytest.raises(TopicError):
        parse_topic(f"elma/v1/ans/{name}/r1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "elma/v1",
        "elma/v2/ans/kitchen/r1",
        "other/v1/ans/kitchen/r1",
        "elma/v1/ans/kitchen",
        "elma/v1/ans/kitchen/r1/more",
        "/elma/v1/ans/kitchen/r1",
        "elma/v1/unheard/kitchen/r1",
        "elma/v1/presence/king/w1",
        f"elma/v1/blob/{'ab' * 32}/017",
        f"elma/v1/blob/{'ab' * 32}/-1",
        f"elma/v1/blob/{'ab' * 32}/9999999",
        "elma/v1/blob/abc/1",
        "$share/workers/elma/v1/req/normal/+/+",
        "elma/v1/req/normal/+/+",
        "x" * 600,
    ],
)
def test_what_is_not_a_topic_of_ours_is_refused(text: str) -> None:
    with pytest.raises(TopicError):
        parse_topic(text)


@given(st.text(max_size=80))
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    try:
        topic = parse_topic(text)
    except TopicError:
        return
    assert str(topic) == text


def test_subscriptions_are_spelt_as_the_brokers_rules_expect() -> None:
    assert worker_subscription("normal") == "$share/workers/elma/v1/req/normal/+/+"
    assert answer_subscription("kitchen") == "elma/v1/ans/kitchen/+"
    assert presence_subscription("worker") == "elma/v1/presence/worker/+"
    assert manifest_subscription("stable") == "elma/v1/model/stable/manifest"
    assert rollout_subscription("stable") == "elma/v1/model/stable/rollout"
    assert model_state_subscription() == "elma/v1/state/+/model"
    assert worker_releases_subscription() == "elma/v1/state/+/releases"


def test_request_ids_are_fresh_and_fit_a_topic() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    for request in ids:
        assert parse_topic(str(AnswerTopic("kitchen", request))) == AnswerTopic("kitchen", request)
