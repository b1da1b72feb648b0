"""The manifests, against Kubernetes' own schemas, strictly; and against the worker that they start.

No cluster is started. KEDA's ScaledObject has no schema there: its fields are held against those
that KEDA 2.20 documents.
"""

from __future__ import annotations

import os
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
TLS = ["ca", "certificate", "key"]
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
    for path in (worker.pool_secret_file, worker.broker.tls_key_file, worker.broker.tls_ca_file):
        assert path is not None
        assert str(path.parent) == "/run/elma"


def run_init(folder: Path) -> None:
    """The init container's own script, with `folder` in the place of its root."""
    shell, options, script = POD["initContainers"][0]["command"]
    for mount in ("/secrets", "/run/elma"):
        script = script.replace(f"{mount}/", f"{folder}{mount}/")
    subprocess.run(
        [shell, options, script],
        env={"PATH": os.environ["PATH"], "ELMA_WORKER_NAME": "elma-worker-0"},
        check=True,
        timeout=30,
    )


def test_a_pod_takes_its_own_secrets_and_may_take_them_again(tmp_path: Path) -> None:
    """After a node's restart the init container finds its own files of mode 0600 there."""
    for name in (
        "pool/pool-secret.json",
        "cards/authority.pem",
        "cards/elma-worker-0.pem",
        "cards/elma-worker-0-key.pem",
        "cards/elma-worker-1-key.pem",
    ):
        path = tmp_path / "secrets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="ascii")
        path.chmod(0o440)
    taken = tmp_path / "run/elma"
    taken.mkdir(parents=True)
    run_init(tmp_path)
    settings = tomllib.loads((FOLDER / "worker.toml").read_text(encoding="utf-8"))
    broker = settings["broker"]
    wanted = [settings["pool_secret_file"], *(broker[f"tls_{one}_file"] for one in TLS)]
    assert sorted(path.name for path in taken.iterdir()) == sorted(Path(one).name for one in wanted)
    assert (taken / "client-key.pem").read_text() == "cards/elma-worker-0-key.pem"
    assert {path.stat().st_mode & 0o777 for path in taken.iterdir()} == {0o600}

    # `cp` would write into what is there, which its mode may forbid: it has to be replaced.
    before = tmp_path / "before"
    before.hardlink_to(taken / "client-key.pem")
    run_init(tmp_path)
    assert not before.samefile(taken / "client-key.pem")


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


def test_the_scaling_has_no_field_that_keda_does_not_know() -> None:
    """https://keda.sh/docs/latest/reference/scaledobject-spec/ and .../scalers/prometheus/"""
    scaling = OBJECTS["ScaledObject"]
    assert scaling["apiVersion"] == "keda.sh/v1alpha1"
    assert set(scaling) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(scaling["spec"]) <= set(
        "scaleTargetRef pollingInterval cooldownPeriod initialCooldownPeriod idleReplicaCount "
        "minReplicaCount maxReplicaCount fallback advanced triggers".split()
    )
    for name in ("pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount"):
        assert isinstance(scaling["spec"][name], int)
    target = {"apiVersion", "kind", "name", "envSourceContainerName"}
    assert set(scaling["spec"]["scaleTargetRef"]) <= target
    (trigger,) = scaling["spec"]["triggers"]
    known = {"type", "metricType", "metadata", "name", "useCachedMetrics", "authenticationRef"}
    assert set(trigger) <= known
    assert trigger["metricType"] in {"AverageValue", "Value"}
    assert trigger["type"] == "prometheus"
    assert set(trigger["metadata"]) <= set(
        "serverAddress query queryParameters threshold activationThreshold namespace customHeaders "
        "ignoreNullValues unsafeSsl timeout".split()
    )
    assert {"serverAddress", "query", "threshold"} <= set(trigger["metadata"])
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert float(trigger["metadata"]["threshold"]) > 0


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
