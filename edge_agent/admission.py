"""Who may speak to the HTTP interface: not a web page that somebody on this device happens to open.

Input: a request's headers. Output: nothing, or ForeignHost or UnsupportedBody. Neighbour: `app`
asks before it reads a body or shows an answer.

A browser lets any page send requests to 127.0.0.1. Two rules keep pages out. A body must be
declared as JSON, which a page may not send elsewhere without a permission that the agent never
gives. And the request must name this device: a page that had its own name point to 127.0.0.1 (DNS
rebinding) could otherwise read answers as if they were its own. An IP address is always accepted,
because no page can claim one that is not its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers

from edge_agent.errors import ForeignHost, UnsupportedBody
from edge_agent.settings import HttpSettings

ANY_HOST = "*"
JSON_TYPE = "application/json"


def check_host(headers: Headers, settings: HttpSettings) -> None:
    """Raise ForeignHost unless the request is addressed to this device.

    One without a Host header is not from a browser and passes.
    """
    declared = headers.get("host")
    if declared is None:
        return
    if not is_ours(declared, (settings.host, *settings.allowed_hosts)):
        raise ForeignHost(
            "the request names a host that is not this device; use its IP address, or add the "
            "name to http.allowed_hosts"
        )


def check_body_type(headers: Headers) -> None:
    """Raise UnsupportedBody unless the body is declared as JSON."""
    declared = headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != JSON_TYPE:
        raise UnsupportedBody(f"declare the body with the header `Content-Type: {JSON_TYPE}`")


def is_ours(declared: str, names: Collection[str]) -> bool:
    """Whether a Host header names this device: an IP address, localhost, or one of `names`."""
    host = _without_port(declared.strip()).rstrip(".").lower()
    if ANY_HOST in names or host == "localhost" or host in {name.lower() for name in names}:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_port(declared: str) -> str:
    """`name:80` and `[::1]:80` without the port and the brackets."""
    if declared.startswith("["):
        return declared[1:].partition("]")[0]
    return declared.partition(":")[0]
