"""paho's callbacks, hung in so that none of them can hurt its network thread.

Inputs: a client, the callbacks of a connection. Output: a client that calls them. Neighbour:
`connection` has the callbacks. An exception in one would kill paho's thread while its client still
claims to be connected: here it is logged and counted instead.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ParamSpec

import paho.mqtt.client as paho

from broker.log import SafeLog

_log = SafeLog("elma.broker")
_P = ParamSpec("_P")


def hang_in(
    client: paho.Client, callbacks: Sequence[Callable[..., None]], on_failure: Callable[[], None]
) -> None:
    """Set `callbacks`, named as at paho (`_on_message`); `on_failure` hears of each exception."""
    for callback in (_on_socket_open, *callbacks):
        setattr(client, callback.__name__.removeprefix("_"), _guarded(callback, on_failure))


def _guarded(callback: Callable[_P, None], on_failure: Callable[[], None]) -> Callable[_P, None]:
    @functools.wraps(callback)
    def safe(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception:
            _log.exception("broker_callback_failed", callback=callback.__name__)
            with suppress(Exception):
                on_failure()

    return safe


def _on_socket_open(_client: Any, _data: Any, connection: Any) -> None:
    """A small packet behind another one would wait some 40 ms for the peer's acknowledgement
    (Nagle's algorithm against delayed acknowledgements)."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
