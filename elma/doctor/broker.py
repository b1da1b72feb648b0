"""Checks of the way to the cloud: the keys, and the broker that the settings name.

Output: findings. Neighbours: `broker.connection` connects once, with the account of the settings
and a client id of its own, so that no running agent is pushed out. A broker may make the account's
name the client id, as ours with certificates does: then a running agent that is connected is taken
at its word instead (`running`), and an edge's session is taken up and left as it is.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from broker.certificate_expiry import certificate_expiry
from broker.connection import Connection, Identity
from broker.errors import BrokerError, BrokerSettingsError
from broker.settings import BrokerSettings
from cloud_worker.settings import WorkerSettings
from edge_agent.service import SESSION_EXPIRY_SECONDS
from edge_agent.settings import EdgeSettings
from elma.doctor.finding import Finding, State
from elma.doctor.rights import Needs, check_rights
from protocol.errors import ProtocolError
from protocol.key_files import load_edge_keys, load_pool_keys, load_pool_public

FEW_DAYS = 14
"""As the alert `ElmaCertificateExpires` has it."""
SECONDS_A_DAY = 86_400.0


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
        return Finding("keys", State.FAILED, str(error), _advice_for_key(error, "edge"))
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
        return Finding("keys", State.FAILED, str(error), _advice_for_key(error, "pool"))
    edges = len(list(settings.edges_folder.glob("*.json")))
    text = f"pool keys {', '.join(pool.ids)}; {edges} edges enrolled in {settings.edges_folder}"
    figures = {"pool_key_ids": list(pool.ids), "edges": edges}
    if not edges:
        advice = "enrol one: elma enroll EDGE, and bring its key into that folder"
        return Finding("keys", State.WARNING, text, advice, figures)
    return Finding("keys", State.OK, text, figures=figures)


def check_certificate(
    settings: BrokerSettings | None, *, clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """How long our own certificate is good; nothing where there is none."""
    if settings is None or settings.tls_certificate_file is None:
        return
    file = settings.tls_certificate_file
    try:
        ends = certificate_expiry(file)
    except (OSError, ValueError) as error:
        advice = "bring the bundle's file again"
        yield Finding("certificate", State.FAILED, f"{file}: {error}", advice)
        return
    days = (ends - clock()) / SECONDS_A_DAY
    day = datetime.fromtimestamp(ends, UTC).date()
    figures = {"file": str(file), "expires_timestamp_seconds": ends, "days_left": int(days)}
    advice = "where it was enrolled: elma renew NAME --out BUNDLE; bring both new files here"
    if days <= 0:
        text = f"{file} ended on {day}: no broker takes it"
        yield Finding("certificate", State.FAILED, text, advice, figures)
    elif days < FEW_DAYS:
        yield Finding("certificate", State.WARNING, f"{file} ends on {day}", advice, figures)
    else:
        yield Finding("certificate", State.OK, f"{file} is good until {day}", figures=figures)


def check_broker(
    settings: BrokerSettings | None,
    *,
    needs: Needs | None = None,
    is_held: Callable[[], bool] = lambda: False,
    keeps_session: bool = True,
) -> Iterator[Finding]:
    """Whether the broker takes a connection with the account of the settings, and grants `needs`.

    `is_held`: whether a running process of these settings is connected. `keeps_session`: whether
    such a process has a session at the broker that outlives its connection, as an edge has.
    Rights are tried with an account only: without one, a broker knows nobody's.
    """
    if settings is None:
        yield Finding("broker", State.OK, "none set: the device works alone")
        return
    has_account = settings.tls_certificate_file is not None or settings.username is not None
    if has_account and is_held():
        text = f"{settings.address}: what runs here is connected; not tried a second time"
        yield Finding("broker", State.OK, text, figures={"address": settings.address})
        return
    refused: list[str] = []
    begin = time.perf_counter()
    try:
        connection = Connection(
            settings,
            settings.tls_context(),
            _identity(settings, keeps_session=keeps_session and has_account),
            1,
            lambda _delivery: None,
            lambda: None,
            refused.append,
        )
        connection.open()
    except BrokerError as error:
        yield Finding("broker", State.FAILED, str(error), _advice_for(error, settings))
        return
    milliseconds = 1000 * (time.perf_counter() - begin)
    packet_bytes = connection.maximum_packet_bytes
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
    try:
        rights = check_rights(connection, needs, refused) if needs and has_account else None
    finally:
        connection.close()
    yield Finding("broker", State.OK, text, figures=figures)
    if rights is not None:
        yield rights


def _advice_for_key(error: ProtocolError, kind: str) -> str:
    """What to do about a key file that cannot be used."""
    if isinstance(error.__cause__, PermissionError):
        return "run this as root, or as the service's user"
    if isinstance(error.__cause__, FileNotFoundError):
        return f"bring the bundle's file, or make one: elma keys {kind}"
    return f"mend it as it says, bring the bundle's file again, or make one: elma keys {kind}"


def _identity(settings: BrokerSettings, *, keeps_session: bool) -> Identity:
    """Somebody who hears nothing; whoever keeps a session takes up what it has, and leaves it."""
    return Identity(
        client_id=f"elma-doctor-{secrets.token_hex(4)}",
        subscriptions=(),
        receive_maximum=1,
        clean_start=not keeps_session,
        session_expiry_seconds=SESSION_EXPIRY_SECONDS if keeps_session else 0,
        will=None,
        will_delay_seconds=0,
        largest_packet_bytes=settings.maximum_packet_bytes,
    )


def _advice_for(error: BrokerError, settings: BrokerSettings) -> str:
    """What to do about a connection that was not made."""
    if isinstance(error, BrokerSettingsError):
        return "mend the file or the setting that it names"
    said, cause = str(error), error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        if "not yet valid" in said or "expired" in said:
            return (
                "is this machine's clock right (--clock URL compares it)? If it is, renew the "
                "broker's certificate, there: elma broker renew DIR"
            )
        if "mismatch" in said or "not valid for" in said:
            return "in [broker], write as host a name that the broker's certificate has"
        return f"{settings.tls_ca_file} is not this broker's authority: use its own bundle"
    if isinstance(cause, ssl.SSLError | ConnectionResetError):
        return f"does {settings.address} speak TLS? A secured broker's port is 8883 by default"
    if cause is None and settings.tls_certificate_file is not None:
        return (
            "it ended the connection: was this certificate revoked, has it ended, is it another "
            "authority's? At the broker: elma doctor --broker DIR, and its log"
        )
    return f"start a broker at {settings.address}, or correct [broker] in the settings"
