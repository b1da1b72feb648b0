"""The settings of a worker: a TOML file, the environment, the command line; checked once.

Input: `worker.toml` (see `examples/worker.toml`), variables `ELMA_WORKER_...`, overrides. The later
one wins. A setting inside a table has two underscores: `[http] port` is `ELMA_WORKER_HTTP__PORT`.
Output: `WorkerSettings`, passed down from the entry point. Neighbours: `agent`, `elma worker run`.

Relative paths in the file, and the two default paths of keys, are relative to the file's folder.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from broker.configuration import SettingsRules, read_settings
from broker.settings import PACKET_OVERHEAD_BYTES, BrokerSettings
from broker.tracing import TracingSettings
from cloud_worker.errors import WorkerSettingsError
from cloud_worker.scheduler import BatchLimits
from protocol.blobs import CHUNK_BYTES
from protocol.key_files import EDGES_FOLDER_NAME, POOL_SECRET_NAME
from protocol.topics import DEFAULT_PRIORITY
from protocol.wire import MAX_MESSAGE_BYTES
from reader.engines.names import EngineName, PrecisionName
from releases.settings import FollowSettings

DEFAULT_PORT = 8572
ENVIRONMENT_PREFIX = "ELMA_WORKER_"
NO_MODEL = "none"
"""As `model`: the worker has nothing but what its channel brings."""
CHANNEL_RELEASES = 2
"""The offered release and the one before it, which always find a place."""
_RULES = SettingsRules(
    prefix=ENVIRONMENT_PREFIX,
    error=WorkerSettingsError,
    path_names=frozenset({"edges_folder", "folder"}),
    model_names=frozenset({"model", "older_models"}),
    file_defaults={"pool_secret_file": POOL_SECRET_NAME, "edges_folder": EDGES_FOLDER_NAME},
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def default_name(port: int = DEFAULT_PORT) -> str:
    """This machine's name, and the port of health where it is not the usual one.

    So two workers of one machine never share a name, which is an identity at the broker; and a
    restarted one keeps its name. Port 0, a free one, gets something random instead.
    """
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40] or "worker"
    if port == DEFAULT_PORT:
        return host
    return f"{host}-{port or secrets.token_hex(3)}"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(_Table):
    """Where health and metrics are served. There is no login, and nothing secret to read."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT


class BatchSettings(_Table):
    """What the scheduler may put together; see `scheduler.BatchLimits` for each."""

    max_windows: Annotated[int, Field(ge=1, le=4_096)] = 256
    max_tokens: Annotated[int, Field(ge=512, le=1_048_576)] = 32_768
    step_seconds: Annotated[float, Field(gt=0, le=1)] = 0.02
    urgent_seconds: Annotated[float, Field(ge=0, le=3_600)] = 1.0
    max_wait_seconds: Annotated[float, Field(gt=0, le=3_600)] = 10.0
    mixes_depths: bool = True

    @property
    def limits(self) -> BatchLimits:
        """The same, as the scheduler takes it."""
        return BatchLimits(**self.model_dump())


class ReleaseSettings(FollowSettings):
    """How a worker follows a channel; see `FollowSettings` for most of it.

    At most `max_loaded` releases are in memory at once, the settings' own models among them. One
    that the channel has left behind and no living edge names is freed when no request has used it
    for `idle_seconds`, or sooner where a newer one needs its place.
    """

    max_loaded: Annotated[int, Field(ge=CHANNEL_RELEASES, le=64)] = 8
    idle_seconds: Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = 3_600.0


class WorkerSettings(BaseSettings):
    """Everything a worker can be told.

    `name` is its identity at the broker; `older_models` are releases that devices may still use
    beside `model`; `releases` are those that a channel brings, and with them `model` may be "none".
    `priorities` are the topics that it takes, the most urgent first. `engine`,
    `precision` and `threads` say what computes; "auto" leaves it to `reader.engines.choosing`.
    `queue_bound` and `queue_bound_bytes` bound what it holds at once (requests, and bytes of their
    decoded states). The broker hands over no sealed request of more than `max_request_bytes`, and
    those that wait to be opened take at most `incoming_bound_bytes`.
    `lease_seconds` is what it promises with `accepted`; `drain_seconds` is how long a stop waits
    for what was accepted.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")] = ""  # `default_name`
    model: str = "elma-small"
    older_models: tuple[str, ...] = ()
    priorities: Annotated[tuple[Name, ...], Field(min_length=1)] = (DEFAULT_PRIORITY,)
    pool_secret_file: Path = Path(POOL_SECRET_NAME)
    edges_folder: Path = Path(EDGES_FOLDER_NAME)
    engine: EngineName = "auto"
    precision: PrecisionName = "auto"
    threads: Annotated[int, Field(ge=1, le=1_024)] | None = None
    queue_bound: Annotated[int, Field(ge=1, le=10_000)] = 128
    queue_bound_bytes: Annotated[int, Field(ge=1_048_576)] = 256 * 1024 * 1024
    max_request_bytes: Annotated[int, Field(ge=64 * 1024, le=MAX_MESSAGE_BYTES)] = 4 * 1024 * 1024
    incoming_bound_bytes: Annotated[int, Field(ge=1_048_576)] = 64 * 1024 * 1024
    lease_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0, le=3_600)] = 20.0
    http: HttpSettings = HttpSettings()
    batch: BatchSettings = BatchSettings()
    broker: BrokerSettings = BrokerSettings()
    releases: ReleaseSettings | None = None
    tracing: TracingSettings = TracingSettings()

    @property
    def models(self) -> tuple[str, ...]:
        """Every model of the settings' own to load, the current one first."""
        return tuple(model for model in (self.model, *self.older_models) if model != NO_MODEL)

    @property
    def receive_maximum(self) -> int:
        """What the broker may send before the worker has acknowledged: requests, and chunks."""
        return self.queue_bound + (0 if self.releases is None else self.releases.window)

    @property
    def client_id(self) -> str:
        """The worker's identity at the broker; with accounts it must be the user name."""
        return self.broker.username or f"worker-{self.name}"

    @property
    def largest_packet_bytes(self) -> int:
        """The largest packet that the broker is asked to send."""
        largest = self.max_request_bytes
        if self.releases is not None:
            largest = max(largest, CHUNK_BYTES)
        return largest + PACKET_OVERHEAD_BYTES

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, values: Any) -> Any:  # as pydantic hands them over, not yet checked
        if not isinstance(values, dict) or values.get("name") is not None:
            return values
        http = values.get("http")
        port = http.get("port") if isinstance(http, dict) else getattr(http, "port", None)
        given = str(DEFAULT_PORT if port is None else port)
        return values | {"name": default_name(int(given) if given.isdecimal() else DEFAULT_PORT)}

    @model_validator(mode="after")
    def _fits_together(self) -> WorkerSettings:
        if len(set(self.priorities)) != len(self.priorities):
            raise ValueError("priorities names one of them twice")
        if self.largest_packet_bytes > self.incoming_bound_bytes:
            raise ValueError("incoming_bound_bytes holds not even one of max_request_bytes")
        if self.releases is None:
            if not self.models:
                raise ValueError(f'model = "{NO_MODEL}" waits for a first release: set [releases]')
        elif len(self.models) + CHANNEL_RELEASES > self.releases.max_loaded:
            raise ValueError(
                f"releases.max_loaded must be at least {len(self.models) + CHANNEL_RELEASES}: the "
                "models named here, the channel's release and the one before it"
            )
        return self


def load_settings(
    config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> WorkerSettings:
    """The settings from file, environment and `overrides` (nested like the file; None is unset).

    Raises WorkerSettingsError, which names the setting but never its value.
    """
    return read_settings(WorkerSettings, _RULES, config, overrides)
