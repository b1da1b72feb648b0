"""Images and compose: what can be known without a container engine, which no test here starts.

That compose.yaml follows the Compose specification's schema is checked by `docker compose config`
where somebody has it; here its parts are held against the files and programs that they name.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from elma.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ROLES = ["broker", "edge", "publisher", "worker"]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = sorted(COMPOSE["services"])
PINNED = re.compile(r"^[a-z0-9./-]+:v?\d+\.\d+\.\d+")


def instructions(role: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, continued lines joined."""
    text = (DEPLOY / "docker" / f"{role}.Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (one.partition(" ") for one in joined.splitlines())]


def of(role: str, name: str) -> list[str]:
    """What stands after each instruction of that name."""
    return [rest for word, rest in instructions(role) if word == name]


@pytest.mark.parametrize("role", ROLES)
def test_an_image_has_two_stages_a_fixed_base_and_no_root(role: str) -> None:
    bases = of(role, "FROM")
    assert len(bases) == 2
    assert all(PINNED.match(base) for base in bases)
    assert of(role, "USER") == ["elma"]
    last = [word for word, _ in instructions(role)].index("USER")
    assert all(word != "RUN" for word, _ in instructions(role)[last:])


@pytest.mark.parametrize("role", ROLES)
def test_an_image_is_made_of_files_that_are_there_and_sent_to_the_builder(role: str) -> None:
    sent = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    for copied in of(role, "COPY"):
        if copied.startswith("--from"):
            continue
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in sent


@pytest.mark.parametrize("role", ROLES)
def test_every_package_of_ours_is_in_the_image(role: str) -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    wanted = packages & {pattern.rstrip("*") for pattern in include}
    assert wanted <= {copied.split()[0] for copied in of(role, "COPY")}


@pytest.mark.parametrize("role", ROLES)
def test_an_image_starts_a_verb_that_exists_with_options_that_it_has(role: str) -> None:
    words = re.findall(r'"([^"]+)"', of(role, "ENTRYPOINT")[0] + of(role, "CMD")[-1])
    assert words[:3] == ["elma", "--log-format", "json"]
    done = CliRunner().invoke(app, [*words[3:5], "--help"])
    assert done.exit_code == 0
    for option in (word for word in words[5:] if word.startswith("--")):
        assert option in done.output


def test_the_pinned_versions_are_ones_that_elma_may_have() -> None:
    text = (DEPLOY / "docker/constraints.txt").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["onnx"], *extras["torch"], *extras["broker"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_beyond_its_user_s(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_s_image_is_built_here_or_fixed(name: str) -> None:
    service = COMPOSE["services"][name]
    build = service.get("build")
    if build is None:
        assert PINNED.match(service["image"])
    else:
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert "UID" in build["args"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_mounts_of_this_repository_is_there(name: str) -> None:
    for volume in COMPOSE["services"][name].get("volumes", []):
        source = volume.rsplit(":", 1)[0].removesuffix(":ro") if "${" in volume else volume
        if source.startswith("./"):
            assert (DEPLOY / source.split(":")[0]).exists(), volume
        elif "${" not in volume:
            assert volume.split(":")[0] in COMPOSE["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_only_the_broker_can_be_reached_from_other_machines(name: str) -> None:
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:") or name == "broker"


def test_prometheus_asks_the_services_by_the_ports_that_their_images_open() -> None:
    asked = {
        target
        for path in (DEPLOY / "docker/targets").glob("*.yml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))
        for target in group["targets"]
    }
    for target in asked:
        name, port = target.split(":")
        role = Path(COMPOSE["services"][name]["build"]["dockerfile"]).name.split(".")[0]
        assert of(role, "EXPOSE") == [port]
    workers = {name for name in SERVICES if name.startswith("worker-")}
    assert workers <= {target.split(":")[0] for target in asked}


def test_compose_s_targets_are_the_files_that_prometheus_reads() -> None:
    text = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    read = set(re.findall(r"targets/(\w+\.yml)\]", text))
    assert read == {path.name for path in (DEPLOY / "docker/targets").glob("*.yml")}
