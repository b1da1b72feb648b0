"""Who may speak to the HTTP interface: JSON that is addressed to this device, and nobody else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from edge_agent.admission import is_ours
from tests.edge_agent.conftest import PASSAGE, QUESTION, RunningEdge, StartEdge

BODY = json.dumps({"question": QUESTION, "context": PASSAGE}).encode()


def post(edge: RunningEdge, headers: dict[str, str]) -> httpx.Response:
    """A question with exactly these headers beside the length."""
    return httpx.post(f"{edge.url}/v1/answer", content=BODY, headers=headers, timeout=30.0)


@pytest.mark.parametrize(
    "declared",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "application/jsonx"],
)  # fmt: skip
def test_what_a_web_page_can_send_without_asking_is_refused(
    shared_edge: Any, declared: str | None
) -> None:
    response = post(shared_edge, {} if declared is None else {"Content-Type": declared})
    assert response.status_code == 415
    assert response.json()["error"] == "unsupported_body"
    assert "application/json" in response.json()["reason"]


@pytest.mark.parametrize(
    "declared", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
def test_json_is_accepted_however_it_is_spelt(shared_edge: Any, declared: str) -> None:
    assert post(shared_edge, {"Content-Type": declared}).status_code == 200


def test_a_question_under_another_name_is_refused_and_so_is_a_look_at_an_answer(
    shared_edge: Any,
) -> None:
    asked = shared_edge.ask(request_id="seen")
    foreign = {"Host": "rebound.example", "Content-Type": "application/json"}
    refused = post(shared_edge, foreign)
    assert refused.status_code == 421
    assert refused.json()["error"] == "foreign_host"
    assert "rebound" not in refused.text
    url = f"{shared_edge.url}/v1/answers/seen"
    assert httpx.get(url, headers={"Host": "rebound.example"}, timeout=30.0).status_code == 421
    assert httpx.get(url, timeout=30.0).json() == asked


def test_a_probe_may_use_any_name(shared_edge: Any) -> None:
    for path in ("healthz", "readyz", "metrics"):
        response = httpx.get(
            f"{shared_edge.url}/{path}", headers={"Host": "kitchen.example"}, timeout=30.0
        )
        assert response.status_code == 200


def test_a_name_that_is_configured_is_ours(start_edge: StartEdge) -> None:
    edge = start_edge(http={"allowed_hosts": ["kitchen.example"]})
    named = {"Host": "kitchen.example:8571", "Content-Type": "application/json"}
    assert post(edge, named).status_code == 200


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8571", True),
        ("192.0.2.7:80", True),
        ("[::1]:8571", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST.:80", True),
        ("kitchen", True),
        ("Kitchen:80", True),
        ("kitchen.example", False),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("", False),
        (":80", False),
        ("*", False),
    ],
)
def test_addresses_and_our_own_names_are_ours(declared: str, expected: bool) -> None:
    assert is_ours(declared, ("kitchen",)) is expected


def test_a_star_takes_every_name() -> None:
    assert is_ours("anything.example", ("*",))
