"""Who may say and hear what at a secured broker: one role a member, as mosquitto's plugin takes it.

    role_of(Member("edge", "kitchen"))      what the edge `kitchen` may do, and nothing else

Inputs: members. Outputs: roles as lists of rules, and the first `dynamic-security.json`. Each rule
stands for something that `edge_agent`, `cloud_worker` or `publisher` does; what no rule allows is
denied. mosquitto 2.0 has no `%u` in these rules, so every member has a role with its own name.
Neighbours: `protocol.topics` spells the topics, `control` brings roles to a running broker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from broker.errors import EnrolmentError
from protocol.checks import is_name
from protocol.topics import (
    DEFAULT_PRIORITY,
    ROOT,
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
    worker_subscription,
)

Kind = Literal["edge", "worker", "publisher", "monitor", "operator"]
KINDS: tuple[Kind, ...] = ("edge", "worker", "publisher", "monitor", "operator")
MAX_NAME_CHARACTERS = 48
OPERATOR_NAME = "main"
CONTROL_TOPIC = "$CONTROL/dynamic-security/v1"
CONTROL_RESPONSE_TOPIC = f"{CONTROL_TOPIC}/response"
_SYSTEM_TOPICS = "$SYS/#"
Rule = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """Someone who has a certificate of this broker's authority. Raises EnrolmentError."""

    kind: Kind
    name: str

    def __post_init__(self) -> None:
        if not is_name(self.name) or len(self.name) > MAX_NAME_CHARACTERS:
            raise EnrolmentError(
                f"{self.kind} name {self.name!r} must be 1 to {MAX_NAME_CHARACTERS} letters, "
                "digits, '_' or '-'"
            )

    @property
    def identity(self) -> str:
        """User name, client id and role at the broker: kinds never share one."""
        return f"{self.kind}-{self.name}"


def role_of(member: Member, priorities: tuple[str, ...] = (DEFAULT_PRIORITY,)) -> dict[str, Any]:
    """The member's role: its name and rules. `priorities` are those that a worker may take."""
    rules = {
        "edge": _edge_rules,
        "worker": lambda name: _worker_rules(name, priorities),
        "publisher": _publisher_rules,
        "monitor": _monitor_rules,
        "operator": _operator_rules,
    }[member.kind](member.name)
    return {"rolename": member.identity, "acls": rules}


def client_of(member: Member) -> dict[str, Any]:
    """The member as the plugin knows it. It has no password: its certificate says who it is."""
    return {"username": member.identity, "roles": [{"rolename": member.identity}]}


def first_access(operator: Member) -> dict[str, Any]:
    """The content of `dynamic-security.json` for a broker that knows its operator only."""
    return {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": [client_of(operator)],
        "groups": [],
        "roles": [role_of(operator)],
    }


def _edge_rules(name: str) -> list[Rule]:
    """It asks, cancels and reports as itself; it hears its answers, workers, and releases."""
    return [
        *_may_send(
            _filter(RequestTopic, edge=name),
            _filter(CancelTopic, edge=name),
            _filter(PresenceTopic, role="edge", id=name),
            _filter(ModelStateTopic, edge=name),
            _filter(MetricsTopic, edge=name),
        ),
        *_may_hear(
            _filter(AnswerTopic, edge=name),
            _filter(PresenceTopic, role="worker"),
            *_release_filters(),
        ),
    ]


def _worker_rules(name: str, priorities: tuple[str, ...]) -> list[Rule]:
    """It takes requests in its group only, answers whoever asked, and reports as itself."""
    rules = [
        *_may_send(
            _filter(AnswerTopic),
            _filter(DeadLetterTopic),
            _filter(PresenceTopic, role="worker", id=name),
            _filter(WorkerReleasesTopic, worker=name),
        ),
        *_may_hear(_filter(CancelTopic), _filter(ModelStateTopic), *_release_filters()),
    ]
    for priority in priorities:
        # Literal: a wider pattern would let it subscribe outside the group, to every request.
        rules.append(_rule("subscribeLiteral", worker_subscription(priority)))
        rules.append(_rule("publishClientReceive", _filter(RequestTopic, priority=priority)))
    return rules


def _publisher_rules(_name: str) -> list[Rule]:
    """It sends releases and orders, and sees who runs what.

    `elma publish` is present for a moment under a name made up for it: hence any publisher's.
    """
    return [
        *_may_send(*_release_filters(), _filter(PresenceTopic, role="publisher")),
        *_may_hear(*_release_filters(), *_fleet_filters()),
    ]


def _monitor_rules(_name: str) -> list[Rule]:
    """It hears what tells of the fleet's health, and says nothing. No request, no answer."""
    return _may_hear(
        *_fleet_filters(),
        _filter(ManifestTopic),
        _filter(RolloutTopic),
        _filter(MetricsTopic),
        _filter(DeadLetterTopic),
        _SYSTEM_TOPICS,
    )


def _operator_rules(_name: str) -> list[Rule]:
    """It enrols and revokes, and clears what a revoked member has left behind (retained)."""
    return [
        *_may_send(CONTROL_TOPIC, *_fleet_filters()),
        *_may_hear(CONTROL_RESPONSE_TOPIC, _SYSTEM_TOPICS, *_fleet_filters()),
    ]


def _release_filters() -> tuple[str, ...]:
    return _filter(ManifestTopic), _filter(RolloutTopic), _filter(BlobTopic)


def _fleet_filters() -> tuple[str, ...]:
    return _filter(ModelStateTopic), _filter(WorkerReleasesTopic), _filter(PresenceTopic)


def _filter(topic: type[Topic], **levels: str) -> str:
    """A kind of topic with some levels fixed and `+` for the others."""
    parts = topic.pattern.split("/")
    chosen = [levels.get(part[1:-1], "+") if part.startswith("{") else part for part in parts]
    return "/".join((ROOT, *chosen))


def _may_send(*filters: str) -> list[Rule]:
    return [_rule("publishClientSend", one) for one in filters]


def _may_hear(*filters: str) -> list[Rule]:
    """To subscribe to no more than the filter, and to be sent what it covers."""
    return [
        _rule(kind, one) for one in filters for kind in ("subscribePattern", "publishClientReceive")
    ]


def _rule(kind: str, topic: str) -> Rule:
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
