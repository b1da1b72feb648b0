"""`elma sign`: an operator signs what she sees, and is asked where there is somebody to ask."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from elma.cli import app
from elma.output import CommandError
from protocol.manifest import SignedManifest
from reader.exits import ExitSettings
from tests.elma.desk import Desk
from tests.tiny import make_tiny_model

SETTINGS = ExitSettings("entropy", (0.1, -1.0), (0.5, 0.5), (1.0, 1.0), 2)


def with_settings(desk: Desk, name: str, settings: ExitSettings, seed: int = 0) -> str:
    """A model that was calibrated."""
    return str(make_tiny_model(desk.folder / name, layers=2, settings=settings, seed=seed))


def prepared(desk: Desk, model: str, *options: str) -> Path:
    """A release that waits for its signature."""
    path = desk.folder / "release.unsigned"
    desk.run("publish", model, "--as-is", "--prepare", str(path), *options, *desk.options())
    return path


def sign(desk: Desk, path: Path, *options: str) -> dict[str, Any]:
    """`elma sign --json`."""
    return desk.run("sign", str(path), *desk.key, *desk.public, *options)


def invoke(desk: Desk, path: Path, *options: str, answer: str | None = None) -> Result:
    """`elma sign` as a person sees it."""
    command = ["sign", str(path), *desk.key, *desk.public, *options]
    return CliRunner().invoke(app, command, input=answer)


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Somebody sits there."""

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    return lambda: monkeypatch.setattr(
        "elma.commands.sign.sys", type("Sys", (), {"stdin": Terminal})
    )


def test_it_shows_what_the_release_is(desk: Desk) -> None:
    path = prepared(desk, with_settings(desk, "a", SETTINGS), "--expires-days", "10")
    shown = sign(desk, path)
    assert (shown["channel"], shown["version"], shown["name"]) == ("stable", 1, "a")
    assert shown["canaries"] >= 1
    assert (shown["criterion"], shown["exits"]) == ("entropy", 2)
    assert shown["thresholds_changed"] is None
    told = invoke(desk, path).stdout
    assert f"canaries: {shown['canaries']}" in told
    assert "UTC, in 10.0 days" in told
    assert "F1: not measured" in told
    assert f"release: {shown['release']}" in told
    assert "exits.json: " in told


def test_it_shows_what_changes_against_the_release_before(desk: Desk) -> None:
    desk.publish(with_settings(desk, "a", SETTINGS))
    bolder = replace(SETTINGS, exit_thresholds=(0.3, -1.0), default_edge_layers=1)
    path = prepared(desk, with_settings(desk, "b", bolder))
    shown = sign(desk, path)
    assert shown["thresholds_changed"] == [
        "default edge layers: 2 -> 1",
        "exit 1, exit threshold: 0.1 -> 0.3",
    ]
    assert "  exit 1, exit threshold: 0.1 -> 0.3" in invoke(desk, path).stdout
    same = prepared(desk, with_settings(desk, "c", SETTINGS, seed=2), "--force")
    assert sign(desk, same)["thresholds_changed"] == []
    assert "the same as before" in invoke(desk, same).stdout


@pytest.mark.parametrize("piece", ["exits.json", "canaries.json", "before", "before_settings"])
def test_what_it_shows_is_what_the_manifest_names(desk: Desk, piece: str) -> None:
    desk.publish(with_settings(desk, "a", SETTINGS))
    bolder = replace(SETTINGS, exit_thresholds=(0.3, -1.0))
    path = prepared(desk, with_settings(desk, "b", bolder))
    document = json.loads(path.read_text())
    place = document if piece.startswith("before") else document["files"]
    content = base64.b64decode(place[piece])
    if piece == "before":
        other = SignedManifest.decode(content)
        content = replace(other, signature=bytes(64)).encode()
    else:
        content = content.replace(b"0.1", b"0.2").replace(b"0.3", b"0.2") + b" "
    place[piece] = base64.b64encode(content).decode()
    path.write_text(json.dumps(document))
    with pytest.raises(CommandError, match="was changed") as raised:
        sign(desk, path)
    assert raised.value.exit_status == 2
    assert not path.with_suffix(".signed").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\x00\x01", b'{"kind": "x", "format": 1}'])
def test_what_is_no_prepared_release_is_refused(desk: Desk, content: bytes) -> None:
    path = desk.folder / "release.unsigned"
    path.write_bytes(content)
    with pytest.raises(CommandError, match="no prepared release"):
        sign(desk, path)


def test_at_a_terminal_it_asks_and_takes_no_for_an_answer(
    desk: Desk, at_a_terminal: Callable[[], None]
) -> None:
    path = prepared(desk, desk.model("a"))
    at_a_terminal()
    refused = invoke(desk, path, answer="n\n")
    assert isinstance(refused.exception, CommandError)
    assert "was not signed" in str(refused.exception)
    assert not path.with_suffix(".signed").exists()
    assert "release: " in refused.stdout, "shown before it asks"
    assert invoke(desk, path, answer="y\n").exit_code == 0
    assert path.with_suffix(".signed").exists()


def test_at_a_terminal_json_stays_json(desk: Desk, at_a_terminal: Callable[[], None]) -> None:
    path = prepared(desk, desk.model("a"))
    at_a_terminal()
    told = invoke(desk, path, "--json", answer="y\n")
    document = told.stdout[told.stdout.index("{") :]  # before it, the runner's echo of the answer
    assert json.loads(document)["signed_file"] == str(path.with_suffix(".signed"))
    assert "release: " in told.stderr


def test_nobody_is_asked_without_a_terminal_or_with_yes(
    desk: Desk, at_a_terminal: Callable[[], None]
) -> None:
    path = prepared(desk, desk.model("a"))
    assert "Sign it" not in invoke(desk, path).output
    at_a_terminal()
    told = invoke(desk, path, "--yes")
    assert told.exit_code == 0, told.output
    assert "Sign it" not in told.output


def test_a_key_that_may_not_sign_is_named(desk: Desk) -> None:
    path = prepared(desk, desk.model("a"))
    desk.run("keys", "publisher", "--out", str(desk.folder / "others"))
    stranger = ["--key", str(desk.folder / "others" / "publisher-secret.json")]
    with pytest.raises(CommandError, match="names another key") as raised:
        desk.run("sign", str(path), *stranger, *desk.public)
    assert raised.value.exit_status == 2
