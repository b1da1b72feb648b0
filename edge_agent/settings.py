"""The settings of an edge agent: a TOML file, the environment, the command line; checked once.

Input: `edge.toml` (see `examples/edge.toml`), variables `ELMA_EDGE_...`, overrides. The later one
wins. A setting inside a table has two underscores: `[http] port` is `ELMA_EDGE_HTTP__PORT`. Output:
`EdgeSettings`, passed down from the entry point. Neighbours: `service` and `elma edge run`.

Relative paths in the file are relative to the file's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from broker.configuration import SettingsRules, read_settings
from broker.settings import BrokerSettings
from broker.tracing import TracingSettings
from edge_agent.audit_settings import AuditSettings
from edge_agent.errors import SettingsError
from edge_agent.lease import LeaseRules
from edge_agent.metrics_settings import MetricsSettings
from reader.engines.names import EngineName, PrecisionName
from releases.settings import FollowSettings

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8571
ENVIRONMENT_PREFIX = "ELMA_EDGE_"
NO_MODEL = "none"
"""As `model`: the device has no weights before its first release."""
_RULES = SettingsRules(
    prefix=ENVIRONMENT_PREFIX,
    error=SettingsError,
    path_names=frozenset({"outbox", "folder", "textfile"}),
    other_variables=frozenset({"config", "url"}),
)

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
CodecName = Literal["auto", "fp32", "fp16", "int8", "int4", "bottleneck"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(_Table):
    """The local HTTP interface. It has no login: keep it on the device's own address.

    `allowed_hosts` are names of this device that a request may be addressed to, beside `host`,
    `localhost` and any IP address; "*" takes every name. `max_posts` bounds the questions that wait
    for their answer on an open connection.
    """

    host: str = DEFAULT_HOST
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: Annotated[int, Field(ge=1_024, le=16 * 1024 * 1024)] = 2 * 1024 * 1024
    body_seconds: Seconds = 10.0
    max_posts: Annotated[int, Field(ge=1, le=10_000)] = 512


class OffloadSettings(_Table):
    """What goes to the cloud, and for how long the device waits for it.

    Without the two key files nothing is ever sent. `max_request_bytes` bounds one sealed request,
    `max_in_flight` and `max_in_flight_bytes` all that wait for an answer at once; a question past a
    bound is finished on the device. `codec` says how states are packed; "auto" decides for each
    request (`codec_choice`). `privacy`: with "allow-tokens" that choice may also send the token ids
    of question and passage, from which the worker reads both.
    """

    edge_key_file: Path | None = None
    pool_public_key_file: Path | None = None
    codec: CodecName = "auto"
    privacy: Literal["states-only", "allow-tokens"] = "states-only"
    priority: Name = "normal"
    accept_seconds: Seconds = 1.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 4
    cloud_wait_seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 2.0
    max_request_bytes: Annotated[int, Field(ge=1_024, le=16 * 1024 * 1024)] = 2 * 1024 * 1024
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 256
    max_in_flight_bytes: Annotated[int, Field(ge=1_024)] = 128 * 1024 * 1024

    @property
    def rules(self) -> LeaseRules:
        """The part of it that a lease follows."""
        return LeaseRules(
            accept_seconds=self.accept_seconds,
            max_attempts=self.max_attempts,
            cloud_wait_seconds=self.cloud_wait_seconds,
        )


class EdgeSettings(BaseSettings):
    """Everything an edge agent can be told; the defaults make one that works alone.

    `name` is the edge's identity at the broker. `model` answers until a first release has come by
    `[releases]`, and again when none of them is any good; "none": nothing does. `engine`,
    `precision` and `threads` say what computes; "auto" leaves it to `reader.engines.choosing`.
    `max_edge_layers` is the deepest layer run before the cloud is asked; the model's own choice
    where it is not set. `retention_seconds` is how long an answer can be fetched again.
    `shutdown_seconds` is how long a stop waits for questions.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")] = "edge"
    model: str = "elma-small"
    outbox: Path = Path("elma-edge.sqlite3")
    engine: EngineName = "auto"
    precision: PrecisionName = "auto"
    threads: Annotated[int, Field(ge=1, le=1_024)] | None = None
    max_edge_layers: Annotated[int, Field(ge=1, le=64)] | None = None
    queue_bound: Annotated[int, Field(ge=1, le=10_000)] = 256
    default_deadline_seconds: Seconds = 10.0
    max_deadline_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 60.0
    answer_grace_seconds: Seconds = 5.0
    retention_seconds: Seconds = 3_600.0
    shutdown_seconds: Seconds = 10.0
    http: HttpSettings = HttpSettings()
    offload: OffloadSettings = OffloadSettings()
    broker: BrokerSettings | None = None
    releases: FollowSettings | None = None
    audit: AuditSettings = AuditSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()

    @property
    def is_offloading(self) -> bool:
        """Whether a cloud is configured at all."""
        return self.broker is not None and self.offload.edge_key_file is not None

    @model_validator(mode="after")
    def _fits_together(self) -> EdgeSettings:
        offload = self.offload
        if (offload.edge_key_file is None) != (offload.pool_public_key_file is None):
            raise ValueError(
                "offload.edge_key_file and offload.pool_public_key_file belong together; "
                "`elma keys` makes both"
            )
        if self.broker is not None and offload.edge_key_file is None:
            raise ValueError(
                "a [broker] is set but not offload.edge_key_file; nothing may be sent unsealed: "
                "set both key files, or remove [broker]"
            )
        if self.releases is not None and self.broker is None:
            raise ValueError("[releases] are heard of at the broker: set [broker] as well")
        if self.metrics.report_seconds and self.broker is None:
            raise ValueError("metrics.report_seconds reports to the broker: set [broker] as well")
        if self.model == NO_MODEL and self.releases is None:
            raise ValueError(f'model = "{NO_MODEL}" waits for a first release: set [releases]')
        if self.default_deadline_seconds > self.max_deadline_seconds:
            raise ValueError("default_deadline_seconds is above max_deadline_seconds")
        return self


def load_settings(
    config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> EdgeSettings:
    """The settings from file, environment and `overrides` (nested like the file; None is unset).

    Raises SettingsError, which names the setting but never its value.
    """
    return read_settings(EdgeSettings, _RULES, config, overrides)
