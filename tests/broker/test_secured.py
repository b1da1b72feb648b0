"""Attacks on a real mosquitto with exactly the files of `elma broker init`: each is denied.

And each succeeds when the defence against it is taken out of the files: so no test here passes
because the attack was clumsy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker.enrolment import enrol, revoke
from broker.roles import Member
from broker.secured import SecuredFolder
from tests.broker.secured import (
    Client,
    Site,
    Weakening,
    edit_access,
    edit_configuration,
    make_site,
    serving,
)

SHARED = "$share/workers/elma/v1/req/normal/+/+"
DIGEST = "a" * 64
Attack = Callable[[Site], bool]


@pytest.fixture
def site(mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]) -> Site:
    """A broker's folder with members, not yet running."""
    return make_site(tmp_path, free_port())


def connects(card: str | None) -> Attack:
    """A client with this certificate gets in."""

    def attack(site: Site) -> bool:
        client = Client(site, card)
        client.close()
        return client.is_connected

    return attack


def subscribes(card: str, *filters: str) -> Attack:
    """One of these subscriptions is granted."""

    def attack(site: Site) -> bool:
        client = Client(site, card)
        assert client.is_connected
        granted = [client.may_subscribe(one) for one in filters]
        client.close()
        return any(granted)

    return attack


def publishes(card: str, *topics: str) -> Attack:
    """The broker takes one of these messages."""

    def attack(site: Site) -> bool:
        client = Client(site, card)
        assert client.is_connected
        taken = [client.may_publish(topic) for topic in topics]
        client.close()
        return any(taken)

    return attack


def steals_the_client_id(site: Site) -> bool:
    """Another edge takes the victim's session over by its client id."""
    victim = Client(site, "edge-kitchen", "edge-kitchen")
    thief = Client(site, "edge-garage", "edge-kitchen")
    assert thief.is_connected
    stolen = not victim.may_publish("elma/v1/metrics/kitchen")
    victim.close()
    thief.close()
    return stolen


def no_certificate_needed(folder: SecuredFolder) -> None:
    edit_configuration(
        folder,
        ("require_certificate true", "require_certificate false"),
        ("use_identity_as_username true", "use_identity_as_username false"),
        ("use_username_as_clientid true", "use_username_as_clientid false"),
        ("allow_anonymous false", "allow_anonymous true"),
    )


def trusts_another_authority(folder: SecuredFolder) -> None:
    """The other authority's certificate beside ours; without lists, as it has none."""
    ours = folder.broker_files / "members-authority.pem"
    other = folder.path.parent / "cards" / "other-authority.pem"
    ours.write_bytes(ours.read_bytes() + other.read_bytes())
    edit_configuration(folder, (f"crlfile {folder.revocation_file}", "# no list"))


def client_ids_are_the_clients_own(folder: SecuredFolder) -> None:
    edit_configuration(folder, ("use_username_as_clientid true", "# as they like"))


def everything_may_be(access: str) -> Weakening:
    """Rights are granted where no rule speaks."""

    def weaken(folder: SecuredFolder) -> None:
        edit_access(folder, lambda document: document["defaultACLAccess"].update({access: True}))

    return weaken


def named_roles_are_for_all(folder: SecuredFolder) -> None:
    """The rules of an edge without its name, as one role for all edges would have them."""

    def widen(document: dict[str, Any]) -> None:
        for role in document["roles"]:
            for rule in role["acls"]:
                rule["topic"] = rule["topic"].replace("/kitchen", "/+")

    edit_access(folder, widen)


def publishers_may_control(folder: SecuredFolder) -> None:
    """A rule of its own: the default never covers $CONTROL (measured, mosquitto 2.0.11)."""
    rule = {"acltype": "publishClientSend", "topic": "$CONTROL/#", "priority": 0, "allow": True}

    def widen(document: dict[str, Any]) -> None:
        roles = {role["rolename"]: role for role in document["roles"]}
        roles["publisher-main"]["acls"].append(rule)

    edit_access(folder, widen)


ATTACKS: dict[str, tuple[Attack, Weakening]] = {
    "an anonymous client": (connects(None), no_certificate_needed),
    "a certificate of another authority": (connects("stranger"), trusts_another_authority),
    "a stolen client id": (steals_the_client_id, client_ids_are_the_clients_own),
    "a request in another edge's name": (
        publishes("edge-kitchen", "elma/v1/req/normal/garage/1"),
        named_roles_are_for_all,
    ),
    "a cancellation in another edge's name": (
        publishes("edge-kitchen", "elma/v1/cancel/garage/1"),
        named_roles_are_for_all,
    ),
    "another edge's presence, state or figures": (
        publishes(
            "edge-kitchen",
            "elma/v1/presence/edge/garage",
            "elma/v1/state/garage/model",
            "elma/v1/metrics/garage",
        ),
        named_roles_are_for_all,
    ),
    "another edge's answers": (
        subscribes("edge-kitchen", "elma/v1/ans/garage/+", "elma/v1/ans/+/+", "elma/v1/ans/#"),
        named_roles_are_for_all,
    ),
    "requests taken by an edge": (
        subscribes("edge-kitchen", SHARED, "elma/v1/req/normal/+/+", "$share/mine/elma/v1/req/#"),
        everything_may_be("subscribe"),
    ),
    "everything at once": (
        subscribes("edge-kitchen", "#", "elma/#", "elma/v1/#", "+/+/#", "$SYS/#", "$CONTROL/#"),
        everything_may_be("subscribe"),
    ),
    "an answer made by an edge": (
        publishes("edge-kitchen", "elma/v1/ans/garage/1", "elma/v1/ans/kitchen/1"),
        everything_may_be("publishClientSend"),
    ),
    "a release from an edge": (
        publishes(
            "edge-kitchen",
            "elma/v1/model/stable/manifest",
            "elma/v1/model/stable/rollout",
            f"elma/v1/blob/{DIGEST}/0",
        ),
        everything_may_be("publishClientSend"),
    ),
    "a release from a worker": (
        publishes(
            "worker-north",
            "elma/v1/model/stable/manifest",
            "elma/v1/model/stable/rollout",
            f"elma/v1/blob/{DIGEST}/0",
        ),
        everything_may_be("publishClientSend"),
    ),
    "a worker that speaks as another, or as an edge": (
        publishes(
            "worker-north",
            "elma/v1/presence/worker/south",
            "elma/v1/state/south/releases",
            "elma/v1/presence/edge/kitchen",
            "elma/v1/req/normal/kitchen/1",
        ),
        everything_may_be("publishClientSend"),
    ),
    "a worker that reads outside its group": (
        subscribes("worker-north", "elma/v1/req/normal/+/+", "elma/v1/ans/+/+", "elma/#"),
        everything_may_be("subscribe"),
    ),
    "a publisher that reads questions or answers them": (
        subscribes("publisher-main", SHARED, "elma/v1/req/#", "elma/v1/ans/+/+"),
        everything_may_be("subscribe"),
    ),
    "a monitor that speaks": (
        publishes("monitor-eye", "elma/v1/model/stable/manifest", "elma/v1/presence/edge/kitchen"),
        everything_may_be("publishClientSend"),
    ),
    "a member that gives out rights": (
        publishes("publisher-main", "$CONTROL/dynamic-security/v1"),
        publishers_may_control,
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_denied_and_succeeds_without_its_defence(name: str, site: Site) -> None:
    attack, weaken = ATTACKS[name]
    with serving(site):
        assert not attack(site), f"{name}: not denied"
    with serving(site, weaken):
        assert attack(site), f"{name}: denied by something else than its defence"


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """The same, with exactly the generated files, running."""
    with serving(site):
        yield site


def test_what_each_member_does_every_day_is_allowed(served: Site) -> None:
    edge = Client(served, "edge-kitchen")
    worker = Client(served, "worker-north")
    publisher = Client(served, "publisher-main")
    monitor = Client(served, "monitor-eye")
    for topic_filter in (SHARED, "elma/v1/cancel/+/+", "elma/v1/state/+/model"):
        assert worker.may_subscribe(topic_filter), topic_filter
    for topic_filter in ("elma/v1/ans/kitchen/+", "elma/v1/presence/worker/+"):
        assert edge.may_subscribe(topic_filter), topic_filter
    for topic_filter in (
        *("elma/v1/state/+/model", "elma/v1/state/+/releases", "elma/v1/model/stable/rollout"),
        *(f"elma/v1/presence/{role}/+" for role in ("edge", "worker", "publisher")),
    ):
        assert publisher.may_subscribe(topic_filter), topic_filter
    for topic_filter in ("elma/v1/metrics/+", "elma/v1/dead/+/+/+", "$SYS/broker/uptime"):
        assert monitor.may_subscribe(topic_filter), topic_filter
    assert edge.may_publish("elma/v1/req/normal/kitchen/1")
    assert worker.hears("elma/v1/req/normal/kitchen/1")
    assert worker.may_publish("elma/v1/ans/kitchen/1")
    assert edge.hears("elma/v1/ans/kitchen/1")
    assert edge.may_publish("elma/v1/cancel/kitchen/1")
    assert worker.hears("elma/v1/cancel/kitchen/1")
    for follower in (edge, worker):
        for topic in ("elma/v1/model/stable/manifest", "elma/v1/model/stable/rollout"):
            assert follower.may_subscribe(topic)
        assert follower.may_subscribe(f"elma/v1/blob/{DIGEST}/7")
    chunk = f"elma/v1/blob/{DIGEST}/7"
    assert publisher.may_publish(chunk, retain=True)
    assert edge.hears(chunk)
    assert worker.may_publish("elma/v1/state/north/releases", retain=True)
    assert publisher.hears("elma/v1/state/north/releases")
    for client in (edge, worker, publisher, monitor):
        client.close()


def test_a_revoked_edge_is_put_out_and_stays_out_until_it_is_enrolled_anew(
    served: Site,
) -> None:
    edge = Client(served, "edge-kitchen")
    assert edge.may_publish("elma/v1/presence/edge/kitchen", retain=True)
    other = Client(served, "edge-garage")
    done = revoke(served.folder, Member("edge", "kitchen"), now=datetime.now(UTC))
    assert done.had_rights
    assert done.is_live
    assert done.list_is_read
    assert edge.gone.get(timeout=15) == "Administrative action"
    # mosquitto acts on the signal in its next turn, which the other edge's own message waits for.
    assert other.may_publish("elma/v1/metrics/garage")
    assert not connects("edge-kitchen")(served)
    assert other.gone.empty(), "another edge lost its connection"
    watcher = Client(served, "publisher-main")
    assert watcher.may_subscribe("elma/v1/presence/edge/+")
    assert watcher.may_publish("elma/v1/presence/publisher/main")
    assert watcher.messages.empty(), "the revoked edge's presence is retained still"
    again = enrol(served.folder, Member("edge", "kitchen"), now=datetime.now(UTC))
    served.add_card("edge-kitchen", again.pair.certificate, again.pair.key)
    assert publishes("edge-kitchen", "elma/v1/req/normal/kitchen/1")(served)
    other.close()
    watcher.close()


def test_without_the_list_a_revoked_edge_connects_and_can_do_nothing(site: Site) -> None:
    listed = f"crlfile {site.folder.revocation_file}"
    with serving(site, lambda folder: edit_configuration(folder, (listed, "# no list"))):
        revoke(site.folder, Member("edge", "kitchen"), now=datetime.now(UTC))
        assert connects("edge-kitchen")(site), "something else than the list keeps it out"
        assert not publishes("edge-kitchen", "elma/v1/req/normal/kitchen/1")(site)
        assert not subscribes("edge-kitchen", "elma/v1/ans/kitchen/+")(site)


def test_what_was_revoked_while_the_broker_was_down_stays_out_and_may_enrol_again(
    site: Site,
) -> None:
    kitchen = Member("edge", "kitchen")
    now = datetime.now(UTC)
    assert not revoke(site.folder, kitchen, now=now).is_live
    with serving(site):
        assert not connects("edge-kitchen")(site)
        again = enrol(site.folder, kitchen, now=now)
        assert again.is_live
        site.add_card("edge-kitchen", again.pair.certificate, again.pair.key)
        assert publishes("edge-kitchen", "elma/v1/req/normal/kitchen/1")(site)
    with serving(site):  # and the broker has kept it over its restart
        assert publishes("edge-kitchen", "elma/v1/req/normal/kitchen/1")(site)
