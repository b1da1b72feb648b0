"""What an installation without some extras can do, and what it says of what it cannot.

Neighbours: `pyproject.toml` names the extras, `tests/without.py` takes libraries away,
`tests/device` does it with a real environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from elma.extras import MODULES_OF
from tests.tiny import make_tiny_model
from tests.without import ENGINES, NEVER_NEEDED, TORCH_AND_ITS_FRIENDS, elma_without, hide

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
QUESTION = ("who built the lighthouse", "--context", "the king built the lighthouse")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reader."""
    return make_tiny_model(tmp_path_factory.mktemp("extras") / "tiny")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def distributions(requirements: list[str]) -> Iterator[str]:
    """The names of requirements, those of our own extras instead of `elma-qa[...]`."""
    for requirement in requirements:
        own = re.fullmatch(r"elma-qa\[(.+)\]", requirement)
        if own is None:
            yield re.split(r"[^A-Za-z0-9_-]", requirement)[0]
        else:
            for extra in own.group(1).split(","):
                yield from distributions(PROJECT["optional-dependencies"][extra.strip()])


def test_an_extra_installs_the_modules_that_verbs_look_for() -> None:
    for extra, modules in MODULES_OF.items():
        named = set(distributions(PROJECT["optional-dependencies"][extra]))
        assert set(modules) <= named, extra


def test_a_device_installs_one_engine_and_nothing_for_training_or_pictures() -> None:
    base = set(distributions(PROJECT["dependencies"]))
    edge = set(distributions(PROJECT["optional-dependencies"]["edge"]))
    assert not base & set(ENGINES)
    assert edge == {"onnx", "onnxruntime"}


def test_development_installs_every_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    everything = {name for one in extras for name in distributions(extras[one])}
    assert set(distributions(extras["dev"])) == everything


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("keys", "pool", "--out", "KEYS"),
        ("ask", "who?", "--context", "x", "--edge", "http://127.0.0.1:1"),
    ],
)
def test_what_needs_no_engine_works_without_any(arguments: tuple[str, ...], tmp_path: Path) -> None:
    filled = [str(tmp_path) if word == "KEYS" else word for word in arguments]
    done = run(elma_without((*ENGINES, *NEVER_NEEDED), *filled))
    if arguments[0] == "ask":
        assert "no edge agent" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("train", "--base", "x", "--data", "y", "--out", "z"), "train"),
        (("convert", "x", "y"), "torch"),
        (("evaluate", "x", "--data", "y", "--plot", "z.png"), "plot"),
        (("ask", *QUESTION, "--local", "--engine", "torch"), "torch"),
        (("ask", *QUESTION, "--local", "--engine", "onnx"), "onnx"),
        (("ask", *QUESTION, "--local"), "edge"),
        (("edge", "run", "--port", "0", "--outbox", "OUTBOX"), "edge"),
    ],
)
def test_a_verb_that_lacks_a_library_names_it_and_the_command_that_installs_it(
    arguments: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    filled = [str(tmp_path / "outbox.sqlite3") if word == "OUTBOX" else word for word in arguments]
    done = run(elma_without(ENGINES, *filled))
    assert done.returncode == 1, done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert "installed" in last_line
    assert "pip install" in last_line
    assert f"'elma-qa[{extra}]'" in last_line
    assert "Traceback" not in done.stderr


def test_without_torch_a_question_is_answered_by_the_onnx_engine(model_folder: Path) -> None:
    done = run(
        elma_without(
            (*TORCH_AND_ITS_FRIENDS, *NEVER_NEEDED),
            *("ask", *QUESTION, "--local", "--json", "--model", str(model_folder)),
        )
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine"] == "onnx"


def test_with_torch_installed_the_onnx_engine_still_leaves_it_alone(model_folder: Path) -> None:
    source = (
        "import sys\n"
        "from edge_agent import service\n"
        "from edge_agent.settings import load_settings\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "agent = service.make_agent(load_settings(None, {'model': sys.argv[2], 'engine': 'onnx',"
        " 'threads': 1, 'outbox': folder / 'outbox.sqlite3'}))\n"
        "agent.local.warm_up()\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    folder = str(model_folder.parent)
    done = run([sys.executable, "-c", source, folder, str(model_folder)])
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert not loaded & {*TORCH_AND_ITS_FRIENDS, *NEVER_NEEDED}


def test_onnxruntime_leaves_no_trace_of_the_device_behind(
    model_folder: Path, tmp_path: Path
) -> None:
    arguments = ("ask", *QUESTION, "--local", "--engine", "onnx", "--model", str(model_folder))
    done = subprocess.run(
        [sys.executable, "-m", "elma", *arguments],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "telemetry" not in done.stderr
    assert not list(tmp_path.rglob("*deviceid*"))
    assert not list(tmp_path.rglob("onnxruntime*"))


@pytest.mark.parametrize("module", ["elma.cli", "edge_agent.service", "cloud_worker.agent"])
def test_importing_a_program_loads_no_engine(module: str) -> None:
    done = run([sys.executable, "-c", f"{hide((*ENGINES, *NEVER_NEEDED))}import {module}\n"])
    assert done.returncode == 0, done.stderr
