"""The manifests, against Kubernetes' own schemas, strictly; and against the worker that they start.

No cluster is started. KEDA's ScaledObject has no schema there: its few fields are looked at here.
"""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cloud_worker.settings import WorkerSettings

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
SCHEMAS = "1.32"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: dict[str, dict[str, Any]] = {
    one["kind"]: one
    for name in KUSTOMIZATION["resources"]
    for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
}
POD: dict[str, Any] = OBJECTS["StatefulSet"]["spec"]["template"]["spec"]
WORKER: dict[str, Any] = POD["containers"][0]


@pytest.mark.parametrize("kind", sorted(set(OBJECTS) - {"ScaledObject"}))
def test_an_object_follows_the_schema(kind: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], SCHEMAS, strict=True)


def test_the_schema_would_have_found_a_mistake() -> None:
    wrong = OBJECTS["StatefulSet"] | {"spec": OBJECTS["StatefulSet"]["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, SCHEMAS, strict=True)


def test_the_probes_ask_what_a_worker_serves() -> None:
    asked = {name: WORKER[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")}
    assert asked == {"liveness": "/healthz", "readiness": "/readyz"}
    settings = tomllib.loads((FOLDER / "worker.toml").read_text(encoding="utf-8"))
    assert WORKER["ports"][0]["containerPort"] == settings["http"]["port"]


def test_the_settings_are_ones_that_a_worker_takes() -> None:
    settings = tomllib.loads((FOLDER / "worker.toml").read_text(encoding="utf-8"))
    worker = WorkerSettings(**settings, name="elma-worker-0")
    assert POD["terminationGracePeriodSeconds"] > worker.drain_seconds + 10
    copied = POD["initContainers"][0]["command"][-1]
    for path in (worker.pool_secret_file, worker.broker.tls_key_file, worker.broker.tls_ca_file):
        assert path is not None
        assert str(path.parent) == "/run/elma"
    assert "client-key.pem" in copied
    assert "umask 077" in copied


def test_every_container_is_confined_and_every_volume_is_mounted() -> None:
    volumes = {volume["name"] for volume in POD["volumes"]}
    mounted = set()
    for container in (*POD["initContainers"], *POD["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        mounted |= {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == volumes
    assert POD["securityContext"]["runAsNonRoot"] is True


def test_everything_that_selects_workers_selects_these_pods() -> None:
    labels = OBJECTS["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels


def test_the_pool_grows_by_a_figure_that_prometheus_records() -> None:
    scaling = OBJECTS["ScaledObject"]["spec"]
    target = OBJECTS["StatefulSet"]
    assert scaling["scaleTargetRef"]["kind"] == target["kind"]
    assert scaling["scaleTargetRef"]["name"] == target["metadata"]["name"]
    assert 1 <= scaling["minReplicaCount"] <= scaling["maxReplicaCount"]
    query = scaling["triggers"][0]["metadata"]["query"]
    rules = yaml.safe_load((FOLDER.parent / "prometheus/recording.yml").read_text("utf-8"))
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    assert query.removeprefix("max(").removesuffix(")") in recorded


def test_kustomize_puts_them_together() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; the files are checked one by one above")
    done = subprocess.run(
        [kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    kinds = [one["kind"] for one in yaml.safe_load_all(done.stdout)]
    assert sorted(kinds) == sorted([*OBJECTS, "ConfigMap"])
