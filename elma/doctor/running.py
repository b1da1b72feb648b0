"""Whether an agent or a worker of these settings runs here already, and what it says of itself.

Input: where its `/healthz` is. Output: whether it is connected to its broker. Neighbour: `broker`,
which then leaves a member's only connection alone.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

ANSWER_SECONDS = 2.0
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here


def is_connected(host: str, port: int, name: str) -> bool:
    """Whether the edge or worker `name` listens there and has its broker."""
    health = _health(host, port)
    cloud = health.get("cloud")
    connected = cloud.get("connected") if isinstance(cloud, dict) else health.get("connected")
    return health.get("name") == name and connected is True


def _health(host: str, port: int) -> dict[str, Any]:
    """What is said there; empty where nobody, or nobody of ours, listens."""
    if port == 0:
        return {}
    host = _EVERYWHERE.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    try:
        response = httpx.get(
            f"http://{shown}:{port}/healthz", timeout=ANSWER_SECONDS, trust_env=False
        )
        health = json.loads(response.content)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return {}
    return health if isinstance(health, dict) else {}
