"""The settings of a monitor: a TOML file, the environment, the command line; checked once.

Input: `monitor.toml` (see `examples/monitor.toml`; `elma enroll-monitor` makes one), variables
`ELMA_MONITOR_...`, overrides. The later one wins. A setting inside a table has two underscores:
`[http] port` is `ELMA_MONITOR_HTTP__PORT`. Output: `MonitorSettings`. Neighbours: `service`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker.configuration import SettingsRules, read_settings
from broker.settings import BrokerSettings
from elma.monitor.errors import MonitorSettingsError

DEFAULT_PORT = 8574
ENVIRONMENT_PREFIX = "ELMA_MONITOR_"
_RULES = SettingsRules(
    prefix=ENVIRONMENT_PREFIX, error=MonitorSettingsError, model_names=frozenset()
)


class HttpSettings(BaseModel):
    """Where Prometheus fetches. There is no login, and nothing secret to read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT


class MonitorSettings(BaseSettings):
    """Everything a monitor can be told.

    `name` is its identity at the broker; no two may share one. A device that has not reported for
    `missed_intervals` of its own interval is shown no more. `max_edges` and `max_samples` bound
    what is held; past them new devices find no place, and those that are there keep theirs.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")] = "main"
    missed_intervals: Annotated[float, Field(ge=1, le=100)] = 3.0
    max_edges: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    max_samples: Annotated[int, Field(ge=1, le=100_000_000)] = 300_000
    http: HttpSettings = HttpSettings()
    broker: BrokerSettings = BrokerSettings()

    @property
    def client_id(self) -> str:
        """The monitor's identity at the broker; with accounts it must be the user name."""
        return self.broker.username or f"monitor-{self.name}"


def load_settings(
    config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> MonitorSettings:
    """The settings from file, environment and `overrides` (nested like the file; None is unset).

    Raises MonitorSettingsError, which names the setting but never its value.
    """
    return read_settings(MonitorSettings, _RULES, config, overrides)
