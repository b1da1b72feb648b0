"""`elma ask`: of an agent over HTTP, in this process, and its errors; as a real process."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from elma.commands.ask import register
from tests.edge_agent.conftest import PASSAGE, QUESTION, RunningEdge
from tests.edge_agent.test_http import FIELDS

ROOT = Path(__file__).resolve().parents[2]


def ask(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `elma ask`."""
    return subprocess.run(
        [sys.executable, "-m", "elma", "ask", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_the_json_of_an_agent_is_exactly_that_of_its_interface(shared_edge: RunningEdge) -> None:
    done = ask(QUESTION, "--context", PASSAGE, "--edge", shared_edge.url, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == FIELDS
    assert shared_edge.get(f"/v1/answers/{answer['request_id']}").json() == answer


def test_local_gives_the_same_answer_and_more_on_demand(
    shared_edge: RunningEdge, model_folder: Path, tmp_path: Path
) -> None:
    passage = tmp_path / "passage.txt"
    passage.write_text(PASSAGE, encoding="utf-8")
    arguments = (QUESTION, "--file", str(passage), "--local", "--model", str(model_folder))
    done = ask(*arguments, "--json", "--top-k", "3")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == FIELDS | {"answers"}
    assert len(answer["answers"]) == 3
    over_http = shared_edge.ask(top_k=3)
    assert [found["start"] for found in answer["answers"]] == [
        found["start"] for found in over_http["answers"]
    ]


def test_the_passage_can_come_from_standard_input(shared_edge: RunningEdge) -> None:
    done = ask(QUESTION, "--file", "-", "--edge", shared_edge.url, stdin=PASSAGE.encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == shared_edge.ask()["answer"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((QUESTION,), "--file or by --context"),
        ((QUESTION, "--context", "a", "--file", "b"), "--file or by --context"),
        ((QUESTION, "--context", "a", "--local", "--edge", "http://127.0.0.1:1"), "exclude"),
        ((QUESTION, "--file", "no-such-file.txt"), "no-such-file.txt"),
    ],
)
def test_a_wrong_call_is_explained(arguments: tuple[str, ...], expected: str) -> None:
    done = ask(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr.decode()
    assert done.stdout == b""


def test_a_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "passage.bin"
    file.write_bytes(b"abc\xff")
    done = ask(QUESTION, "--file", str(file), "--local")
    assert done.returncode == 2
    assert b"not UTF-8 (byte 3)" in done.stderr


def test_the_reason_of_the_agent_or_the_reader_reaches_the_person(
    shared_edge: RunningEdge, model_folder: Path
) -> None:
    over_http = ask(" ", "--context", PASSAGE, "--edge", shared_edge.url)
    here = ask(" ", "--context", PASSAGE, "--local", "--model", str(model_folder))
    for done in (over_http, here):
        assert done.returncode == 2
        assert b"question is empty" in done.stderr


def test_an_agent_that_is_not_there_is_an_error_when_it_was_named(
    free_port: Callable[[], int],
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = ask(QUESTION, "--context", PASSAGE, "--edge", url)
    assert done.returncode == 1
    assert url in done.stderr.decode()


@pytest.fixture
def other_server() -> Iterator[str]:
    """An HTTP server that is no edge agent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_is_no_agent_is_named_as_such(other_server: str) -> None:
    done = ask(QUESTION, "--context", PASSAGE, "--edge", other_server)
    assert done.returncode == 1
    assert b"is it an edge agent?" in done.stderr


def test_without_an_agent_the_answer_is_found_here_and_stderr_says_so(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("elma.asking.DEFAULT_EDGE_URL", nowhere)
    monkeypatch.setenv("ELMA_MODEL", str(model_folder))
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, [QUESTION, "--context", PASSAGE])
    assert done.exit_code == 0, done.output
    assert nowhere in done.stderr
    assert "in this process" in done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("option", ["--model", "--engine", "--precision"])
def test_what_an_agent_would_not_heed_is_refused_and_nothing_is_asked(
    option: str, shared_edge: RunningEdge
) -> None:
    asked = shared_edge.metric("elma_edge_questions_total", result="answered", resolved_by="edge")
    done = ask(QUESTION, "--context", PASSAGE, "--edge", shared_edge.url, option, "auto")
    assert done.returncode == 2
    assert f"{option} is for --local" in done.stderr.decode()
    assert asked == shared_edge.metric(
        "elma_edge_questions_total", result="answered", resolved_by="edge"
    )
