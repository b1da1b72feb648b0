"""A real Prometheus with the committed configuration, on a free port, for the system tests.

Only three things are other than in `deploy/prometheus`: the targets, and how often it fetches and
computes (every second).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from deploy.watch.__main__ import ROOT
from tests.cloud_worker.harness import wait_until

Targets = dict[str, list[tuple[str, dict[str, str]]]]
"""File name below `targets/`, without its ending -> (URL of a service, labels)."""


class PrometheusServer:
    """Started on entering, ended by force on leaving; `folder` is written."""

    def __init__(self, program: Path, folder: Path, port: int, targets: Targets) -> None:
        self.url = f"http://127.0.0.1:{port}"
        shutil.copytree(ROOT / "deploy" / "prometheus", folder)
        config = folder / "prometheus.yml"
        text = config.read_text(encoding="utf-8")
        assert text.count("interval: 15s") == 2
        config.write_text(text.replace("interval: 15s", "interval: 1s"), encoding="utf-8")
        for name, entries in targets.items():
            assert (folder / "targets" / f"{name}.yml").exists()
            content = [
                {"targets": [urlsplit(url).netloc], "labels": labels} for url, labels in entries
            ]
            (folder / "targets" / f"{name}.yml").write_text(json.dumps(content), encoding="utf-8")
        self._command = [
            str(program),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._log_file = folder / "prometheus.log"

    def __enter__(self) -> PrometheusServer:
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._is_ready, "Prometheus ready")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(10.0)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an expression now; a failure where Prometheus calls it wrong."""
        answer = self.get("query", query=expression)
        return list(answer["result"])

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its HTTP interface."""
        response = httpx.get(
            f"{self.url}/api/v1/{path}", params=parameters, timeout=20.0, trust_env=False
        )
        assert response.status_code == 200, f"{path} {parameters}: {response.text}"
        return response.json()["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log_file.read_text(encoding="utf-8")
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
