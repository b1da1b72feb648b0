"""Checks of a secured broker that runs: who keeps the port, what it shows, what it says of itself.

Input: a `SecuredFolder`. Output: findings. Neighbours: `broker.control` has the lock and the
process; the connection here is the operator's, so an `elma enroll` at the same time is waited for.
"""

from __future__ import annotations

import queue
import socket
import ssl
import time
from contextlib import suppress
from typing import Any

from cryptography import x509

from broker.connection import Connection, Identity
from broker.control import one_at_a_time, process_id
from broker.errors import BrokerError
from broker.exchange import Delivery, Subscription
from broker.secret_files import read_file
from broker.secured import OPERATOR, SecuredFolder
from broker.settings import MAX_PACKET_BYTES
from elma.doctor.finding import Finding, State
from elma.top.figures import printable

CONNECT_SECONDS = 1.5
HANDSHAKE_SECONDS = 5.0
FIGURES_SECONDS = 2.0
_FIGURES = {
    "$SYS/broker/version": "version",
    "$SYS/broker/clients/connected": "clients_connected",
    "$SYS/broker/retained messages/count": "retained_messages",
    "$SYS/broker/publish/messages/dropped": "dropped_messages",
}
"""mosquitto publishes them when they change, and forgets them after a minute."""


def check_running(folder: SecuredFolder) -> Finding:
    """Whether it runs and takes its operator; what it says of itself then."""
    address = f"{folder.control_host}:{folder.port}"
    number = process_id(folder)
    if not _is_taken(folder):
        where = f"nobody listens at {address}"
        if number is not None:
            text = f"mosquitto runs (process {number}), but {where}"
            advice = f"restart it: it has another configuration than {folder.configuration_file}"
            return Finding("broker", State.FAILED, text, advice, {"process_id": number})
        advice = f"elma broker run {folder.path}, or systemctl start mosquitto"
        return Finding("broker", State.FAILED, f"does not run: {where}", advice)
    try:
        with one_at_a_time(folder):
            figures = _ask(folder)
    except (BrokerError, OSError) as error:
        who = "another program" if number is None else f"mosquitto (process {number})"
        text = f"{who} listens at {address}, and does not take the operator: {error}"
        advice = "stop it, if it is not the broker of this folder; else mosquitto's log says why"
        return Finding("broker", State.FAILED, text, advice, {"process_id": number})
    figures = {"process_id": number, **figures}
    counts = (
        ("clients_connected", "clients"),
        ("retained_messages", "retained messages"),
        ("dropped_messages", "dropped since its start"),
    )
    told = [f"{figures[key]} {words}" for key, words in counts if key in figures]
    version = figures.get("version", "it")
    text = f"{version} runs at {address} and takes its operator; {', '.join(told)}".rstrip("; ")
    if figures["maximum_packet_bytes"] < MAX_PACKET_BYTES:
        text = f"{text}; it takes {figures['maximum_packet_bytes']:,} bytes a packet only"
        advice = f"max_packet_size {MAX_PACKET_BYTES} in {folder.configuration_file}, and restart"
        return Finding("broker", State.WARNING, text, advice, figures)
    return Finding("broker", State.OK, text, figures=figures)


def check_names(folder: SecuredFolder) -> Finding:
    """Whether it is reached by the names that clients were given, and shows the newest certificate.

    Only of a broker that runs. A name that leads nowhere from this machine is a warning: the
    clients' network may know it.
    """
    try:
        context = folder.operator_settings().tls_context()
        own = x509.load_pem_x509_certificate(read_file(folder.broker_files / "server.pem"))
    except (BrokerError, ValueError) as error:
        return Finding("names", State.FAILED, str(error), "mend what is named above first")
    assert context is not None  # noqa: S101 - the operator has an authority
    refused, silent, is_old = [], [], False
    for host in folder.hosts:
        try:
            shown = _shown_certificate(host, folder.port, context)
        except ssl.SSLError as error:
            refused.append(f"{host} ({' '.join(str(error.reason or error).split())})")
        except OSError as error:
            silent.append(f"{host} ({error.strerror or error})")
        else:
            is_old = is_old or shown != own
    figures = {"hosts": list(folder.hosts), "refused": refused, "silent": silent}
    if refused:
        text = f"clients would turn away from {', '.join(refused)}"
        advice = "another broker is there, or its certificate is not of the authority they know"
        return Finding("names", State.FAILED, text, advice, figures)
    if is_old:
        text = "it still shows an older certificate than the one in its folder"
        advice = "kill -HUP its process, or restart it"
        return Finding("names", State.WARNING, text, advice, figures)
    if silent:
        text = f"not reached from here: {', '.join(silent)}"
        advice = "see from a client's network; the name, the firewall, `listener` in mosquitto.conf"
        return Finding("names", State.WARNING, text, advice, figures)
    text = f"{', '.join(folder.hosts)} lead here, with the certificate of the folder"
    return Finding("names", State.OK, text, figures=figures)


def _ask(folder: SecuredFolder) -> dict[str, Any]:
    """What the broker says of itself, to its operator. Raises BrokerError."""
    settings = folder.operator_settings().model_copy(
        update={"connect_timeout_seconds": CONNECT_SECONDS}
    )
    identity = Identity(
        client_id=OPERATOR.identity,
        subscriptions=[Subscription(topic, qos=0) for topic in _FIGURES],
        receive_maximum=1,
        clean_start=True,
        session_expiry_seconds=0,
        will=None,
        will_delay_seconds=0,
        largest_packet_bytes=settings.maximum_packet_bytes,
    )
    said: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    connection = Connection(
        settings, settings.tls_context(), identity, 1, said.put, lambda: None, lambda _filter: None
    )
    connection.open()
    try:
        figures: dict[str, Any] = {"maximum_packet_bytes": connection.maximum_packet_bytes}
        end = time.monotonic() + FIGURES_SECONDS
        with suppress(queue.Empty):
            while len(figures) <= len(_FIGURES) and time.monotonic() < end:
                delivery = said.get(timeout=max(0.0, end - time.monotonic()))
                text = delivery.payload[:100].decode("utf-8", "replace")
                if delivery.topic in _FIGURES:
                    is_number = text.isascii() and text.isdigit()
                    figures[_FIGURES[delivery.topic]] = int(text) if is_number else printable(text)
    finally:
        connection.close()
    return figures


def _is_taken(folder: SecuredFolder) -> bool:
    try:
        address = (folder.control_host, folder.port)
        with socket.create_connection(address, timeout=HANDSHAKE_SECONDS):
            return True
    except OSError:
        return False


def _shown_certificate(host: str, port: int, context: ssl.SSLContext) -> x509.Certificate:
    with (
        socket.create_connection((host, port), timeout=HANDSHAKE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        content = connection.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(content or b"")
