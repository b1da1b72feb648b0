"""Checks of the way to the cloud: the keys, and the broker that the settings name.

Output: findings. Neighbours: `broker.connection` connects once, with the account of the settings
and a client id of its own, so that no running agent is pushed out. A broker may make the account's
name the client id, as ours with certificates does: then a running agent that is connected is taken
at its word instead (`running`), and an edge's session is taken up and left as it is.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from broker.connection import Connection, Identity
from broker.errors import BrokerError
from broker.settings import BrokerSettings
from cloud_worker.settings import WorkerSettings
from edge_agent.service import SESSION_EXPIRY_SECONDS
from edge_agent.settings import EdgeSettings
from elma.doctor.finding import Finding, State
from protocol.errors import ProtocolError
from protocol.key_files import load_edge_keys, load_pool_keys, load_pool_public


def check_keys(settings: EdgeSettings) -> Finding:
    """Whether the two key files of an edge can be used, and belong to it."""
    edge_file, pool_file = (
        settings.offload.edge_key_file,
        settings.offload.pool_public_key_file,
    )
    if edge_file is None or pool_file is None:
        return Finding("keys", State.OK, "none set: nothing is ever sent, the device works alone")
    try:
        edge, pool = load_edge_keys(edge_file), load_pool_public(pool_file)
    except ProtocolError as error:
        return Finding("keys", State.FAILED, str(error), "make them again: elma keys edge")
    figures = {"edge": edge.edge, "fingerprint": edge.fingerprint, "pool_key_id": pool.key_id}
    if edge.edge != settings.name:
        text = f"{edge_file} is the key of edge {edge.edge!r}, but `name` is {settings.name!r}"
        advice = f'set name = "{edge.edge}", or make a key for {settings.name!r}'
        return Finding("keys", State.FAILED, text, advice, figures)
    text = f"edge {edge.edge} ({edge.fingerprint}), pool key {pool.key_id}"
    return Finding("keys", State.OK, text, figures=figures)


def check_pool(settings: WorkerSettings) -> Finding:
    """Whether a worker can open what edges send: the pool's keys, and the edges' public ones."""
    try:
        pool = load_pool_keys(settings.pool_secret_file)
    except ProtocolError as error:
        return Finding("keys", State.FAILED, str(error), "make them: elma keys pool")
    edges = len(list(settings.edges_folder.glob("*.json")))
    text = f"pool keys {', '.join(pool.ids)}; {edges} edges enrolled in {settings.edges_folder}"
    figures = {"pool_key_ids": list(pool.ids), "edges": edges}
    if not edges:
        advice = "enrol one: elma enroll EDGE, and bring its key into that folder"
        return Finding("keys", State.WARNING, text, advice, figures)
    return Finding("keys", State.OK, text, figures=figures)


def check_broker(
    settings: BrokerSettings | None,
    *,
    is_held: Callable[[], bool] = lambda: False,
    keeps_session: bool = True,
) -> Finding:
    """Whether the broker takes a connection with the account and certificates of the settings.

    `is_held`: whether a running process of these settings is connected. `keeps_session`: whether
    such a process has a session at the broker that outlives its connection, as an edge has.
    """
    if settings is None:
        return Finding("broker", State.OK, "none set: the device works alone")
    has_account = settings.tls_certificate_file is not None or settings.username is not None
    if has_account and is_held():
        text = f"{settings.address}: what runs here is connected; not tried a second time"
        return Finding("broker", State.OK, text, figures={"address": settings.address})
    keeps_session = keeps_session and has_account
    identity = Identity(
        client_id=f"elma-doctor-{secrets.token_hex(4)}",
        subscriptions=(),
        receive_maximum=1,
        clean_start=not keeps_session,
        session_expiry_seconds=SESSION_EXPIRY_SECONDS if keeps_session else 0,
        will=None,
        will_delay_seconds=0,
        largest_packet_bytes=settings.maximum_packet_bytes,
    )
    begin = time.perf_counter()
    try:
        connection = Connection(
            settings, identity, 1, lambda _delivery: None, lambda: None, lambda _filter: None
        )
        connection.open()
    except BrokerError as error:
        advice = f"start a broker at {settings.address}, or correct [broker] in the settings"
        return Finding("broker", State.FAILED, str(error), advice)
    milliseconds = 1000 * (time.perf_counter() - begin)
    packet_bytes = connection.maximum_packet_bytes
    connection.close()
    figures = {
        "address": settings.address,
        "connect_milliseconds": round(milliseconds, 3),
        "maximum_packet_bytes": packet_bytes,
        "is_encrypted": settings.tls_ca_file is not None,
    }
    text = (
        f"{settings.address} accepted us in {milliseconds:.0f} ms; it takes packets of up to "
        f"{packet_bytes:,} bytes"
    )
    return Finding("broker", State.OK, text, figures=figures)
