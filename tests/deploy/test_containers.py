"""Images and compose: what can be known without a container engine, which no test here starts.

What a run of them showed (docs/operations.md, "What was run") is held here: each part against the
files, programs and settings that it names.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from cloud_worker.settings import WorkerSettings
from edge_agent.settings import EdgeSettings
from elma.bundles import SHARED_STORE
from elma.cli import app
from protocol.key_files import EDGES_FOLDER_NAME

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ROLES = ["broker", "edge", "monitor", "publisher", "worker"]
SITE = "${ELMA_SITE:-./site}"
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
    verb = list(itertools.takewhile(lambda word: not word.startswith("--"), words[3:5]))
    done = CliRunner().invoke(app, [*verb, "--help"])
    assert done.exit_code == 0
    for option in (word for word in words[3:] if word.startswith("--")):
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
        if isinstance(volume, dict):
            continue
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (DEPLOY / source).exists(), volume
            assert volume.endswith(":ro"), volume
        else:
            assert source in COMPOSE["volumes"]


def of_the_site(name: str) -> dict[str, str]:
    """What a service mounts of the folder of keys and bundles: place in it -> place in there."""
    volumes = [one for one in COMPOSE["services"][name].get("volumes", []) if isinstance(one, dict)]
    return {one["source"].removeprefix(SITE).lstrip("/"): one["target"] for one in volumes}


@pytest.mark.parametrize("name", SERVICES)
def test_a_folder_of_keys_that_is_missing_is_not_made_by_the_engine(name: str) -> None:
    for volume in COMPOSE["services"][name].get("volumes", []):
        if isinstance(volume, dict):
            assert volume["source"].startswith(SITE)
            assert volume["type"] == "bind"
            assert volume["bind"] == {"create_host_path": False}
        else:
            assert "ELMA_SITE" not in volume


def test_the_broker_sees_no_key_but_its_own() -> None:
    folder = "elma-broker/mosquitto"
    assert of_the_site("broker") == {folder: f"/elma/{folder}"}
    started = COMPOSE["services"]["broker"]["entrypoint"]
    assert started == ["mosquitto", "-c", f"/elma/{folder}/mosquitto.conf"]


@pytest.mark.parametrize("name", ["worker-north", "worker-south"])
def test_a_worker_hears_of_devices_at_once_and_can_enrol_none(name: str) -> None:
    edges = f"elma-keys/{EDGES_FOLDER_NAME}"
    assert of_the_site(name)[edges] == f"/elma/{EDGES_FOLDER_NAME}"
    (volume,) = (
        one for one in COMPOSE["services"][name]["volumes"] if one["source"].endswith(edges)
    )
    assert volume["read_only"] is True


def test_the_rollout_service_and_who_publishes_work_on_one_store() -> None:
    """A publisher's settings name the store relative to themselves, the bundle."""
    mounted = of_the_site("publisher")
    (bundle,) = (source for source, target in mounted.items() if target == "/elma")
    (store,) = (source for source in mounted if source != bundle)
    assert store == str((Path("/") / bundle / SHARED_STORE).resolve().relative_to("/"))
    assert mounted[store] == str((Path("/elma") / SHARED_STORE).resolve())


def test_grafana_can_read_its_password() -> None:
    """Compose lends the file as it is: mode 0600, of who owns the site."""
    grafana = COMPOSE["services"]["grafana"]
    owner = COMPOSE["services"]["broker"]["build"]["args"]["UID"]
    assert grafana["user"] == f"{owner}:0"
    assert COMPOSE["secrets"]["grafana-password"] == {"file": f"{SITE}/grafana-password"}


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_a_stop_waits_for_what_was_accepted() -> None:
    worker, edge = COMPOSE["services"]["worker-north"], COMPOSE["services"]["edge"]
    drain = WorkerSettings().drain_seconds
    assert seconds(worker["stop_grace_period"]) > drain + 10
    assert seconds(edge["stop_grace_period"]) > EdgeSettings().shutdown_seconds + 10


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_s_log_is_bounded(name: str) -> None:
    options = COMPOSE["services"][name]["logging"]["options"]
    assert {"max-size", "max-file"} <= set(options)


@pytest.mark.parametrize("role", ROLES)
def test_an_image_says_whether_it_works_by_the_port_that_it_opens(role: str) -> None:
    (port,) = of(role, "EXPOSE")
    (check,) = of(role, "HEALTHCHECK")
    assert re.search(rf"127\.0\.0\.1(:|', ){port}\b", check)


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_for_another_user_as_well(role: str) -> None:
    """Kubernetes starts it as one of its own; the working directory has to let that user in."""
    assert any("install -d -o elma -m 0755 /elma" in rest for rest in of(role, "RUN"))
    assert of(role, "WORKDIR")[-1] == "/elma"


DOCUMENTED = re.findall(
    r"docker compose run --rm (\S+) ([^\n`]+)",
    (ROOT / "docs/operations.md").read_text(encoding="utf-8"),
)


def test_the_guide_has_the_steps() -> None:
    assert {service for service, _ in DOCUMENTED} == {"site", "desk"}


@pytest.mark.parametrize(("service", "words"), DOCUMENTED)
def test_a_step_of_the_guide_names_a_service_and_options_that_exist(
    service: str, words: str
) -> None:
    assert service in COMPOSE["services"]
    verb = [word for word in words.split()[:2] if re.fullmatch(r"[a-z-]+", word)]
    for length in (2, 1):
        done = CliRunner().invoke(app, [*verb[:length], "--help"])
        if done.exit_code == 0:
            break
    assert done.exit_code == 0, words
    for option in re.findall(r"--[a-z-]+", words):
        assert option in done.output


@pytest.mark.parametrize("name", SERVICES)
def test_only_the_broker_can_be_reached_from_other_machines(name: str) -> None:
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:") or name == "broker"


SCRAPED: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "docker/prometheus.yml").read_text(encoding="utf-8")
)
COMMON: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
)


def asked_always() -> dict[str, str]:
    """Service -> port, of targets that are missed when they are gone."""
    groups = yaml.safe_load((DEPLOY / "docker/targets/workers.yml").read_text(encoding="utf-8"))
    return dict(target.split(":") for group in groups for target in group["targets"])


def asked_where_started() -> dict[str, str]:
    """Service -> port, of those that are looked up by name."""
    found = [look for job in SCRAPED["scrape_configs"] for look in job.get("dns_sd_configs", [])]
    found += SCRAPED["alerting"]["alertmanagers"][0]["dns_sd_configs"]
    return {name: str(look["port"]) for look in found for name in look["names"]}


def test_prometheus_asks_the_services_by_the_ports_that_their_images_open() -> None:
    for name, port in (asked_always() | asked_where_started()).items():
        service = COMPOSE["services"][name]
        if "build" in service:
            role = Path(service["build"]["dockerfile"]).name.split(".")[0]
            assert of(role, "EXPOSE") == [port]
        else:
            assert service["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_a_service_that_is_optional_is_missed_by_nobody() -> None:
    assert set(asked_always()) == {name for name in SERVICES if name.startswith("worker-")}
    for name in asked_always():
        assert "profiles" not in COMPOSE["services"][name]
    for name in asked_where_started():
        assert COMPOSE["services"][name]["profiles"] == [name]


def test_the_jobs_and_rules_are_those_of_every_other_prometheus() -> None:
    jobs = [[job["job_name"] for job in one["scrape_configs"]] for one in (SCRAPED, COMMON)]
    assert jobs[0] == jobs[1]
    assert SCRAPED["rule_files"] == COMMON["rule_files"]
    assert SCRAPED["global"] == COMMON["global"]


def test_the_device_s_name_is_that_of_its_bundle() -> None:
    (job,) = (one for one in SCRAPED["scrape_configs"] if one["job_name"] == "elma-edge")
    labels = {one["target_label"]: one["replacement"] for one in job["relabel_configs"]}
    assert of_the_site("edge") == {f"bundles/{labels['edge']}": "/elma"}
