"""`elma rollout run` as a whole: present while it lives, steering, gone when told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.request import urlopen

import pytest

from broker.run import RunningBroker
from protocol.key_files import save_publisher_public
from publisher.errors import PublisherSettingsError
from publisher.line import Line
from publisher.rollout import Wish, give_order
from publisher.service import run_service
from publisher.settings import HttpSettings, PublisherSettings, RolloutSettings
from tests.publisher.conftest import WAIT_SECONDS, Publisher


def settings_of(
    publisher: Publisher, broker: RunningBroker, port: int | None = None
) -> PublisherSettings:
    """A service that is quick."""
    public = publisher.folder / "publisher-public.json"
    if not public.exists():
        save_publisher_public(public, publisher.trust)
    return PublisherSettings(
        name="main",
        store=publisher.store.folder,
        publisher_public_key_file=public,
        broker=broker.settings(),
        http=HttpSettings(port=port),
        rollout=RolloutSettings(hold_seconds=0.0, check_seconds=0.05),
    )


def test_the_service_fills_steers_and_leaves(
    publisher: Publisher,
    mosquitto: RunningBroker,
    open_line: Callable[..., Line],
    free_port: Callable[[], int],
) -> None:
    manifest = publisher.published(publisher.model("a"))
    line = open_line()
    give_order(publisher.store, "stable", Wish(0.05), line.view.picture(), manifest.created)
    stop, port = threading.Event(), free_port()
    settings = settings_of(publisher, mosquitto, port)
    service = threading.Thread(target=run_service, args=(settings, stop))
    service.start()
    try:

        def is_done(_: object) -> bool:
            order = line.view.picture().order
            return order is not None and order.open(manifest.rollout_public).share == 1.0

        assert line.view.wait_for(is_done, WAIT_SECONDS)
        picture = line.view.picture()
        assert picture.manifest is not None
        assert "main" in picture.present["publisher"]
        text = metrics_with(port, "elma_publisher_promotions_total 2.0")
        assert "elma_publisher_release_version 1.0" in text
    finally:
        stop.set()
        service.join(WAIT_SECONDS)
    assert not service.is_alive()
    assert line.view.wait_for(lambda fleet: "main" not in fleet.present["publisher"], WAIT_SECONDS)


def metrics_with(port: int, line: str) -> str:
    """The metrics once they have a line: what is shown at the broker is counted after it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        text = str(urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
        if line in text:
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.01)


def test_a_port_that_is_taken_is_said_before_it_serves(
    publisher: Publisher, mosquitto: RunningBroker
) -> None:
    settings = settings_of(publisher, mosquitto, mosquitto.port)
    with pytest.raises(PublisherSettingsError, match=str(mosquitto.port)):
        run_service(settings, threading.Event())
