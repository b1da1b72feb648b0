"""The settings of the publisher: a TOML file, the environment, the command line; checked once.

Input: a file, variables `ELMA_PUBLISHER_...`, overrides; the later one wins. A setting inside a
table has two underscores: `[rollout] hold_seconds` is `ELMA_PUBLISHER_ROLLOUT__HOLD_SECONDS`.
Output: `PublisherSettings`. Neighbours: every verb about releases in `elma.commands`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker.configuration import SettingsRules, read_settings
from broker.settings import BrokerSettings
from publisher.drift import DriftBound
from publisher.errors import PublisherSettingsError
from publisher.rollout import parse_stages

ENVIRONMENT_PREFIX = "ELMA_PUBLISHER_"
_RULES = SettingsRules(
    prefix=ENVIRONMENT_PREFIX,
    error=PublisherSettingsError,
    path_names=frozenset({"store"}),
    model_names=frozenset(),
    file_defaults={"publisher_public_key_file": "publisher-public.json", "store": "elma-publisher"},
)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(_Table):
    """Where the service's metrics and health are served; no `port`: nowhere."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None


class RolloutSettings(_Table):
    """How the service takes a release through its stages, and what makes it pause.

    A stage lasts `hold_seconds` at least. It pauses when more than `max_failed_share` of the edges
    that have decided failed; and when an exit's agreement with the workers fell by more than
    `max_agreement_drop`, shown at `confidence` with at least `least_answers` of either release (see
    `publisher.drift`). `warn_expiry_seconds` before the manifest expires it warns, or renews it for
    `renew_seconds` where it holds the signing key. When a device says that a chunk is wrong or
    missing, it reads back what the broker retains, at most once in `repair_seconds`.
    """

    stages: tuple[str, ...] = ("5%", "25%", "100%")
    hold_seconds: Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = 3_600.0
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    max_agreement_drop: Annotated[float, Field(ge=0, le=1)] = 0.02
    least_answers: Annotated[int, Field(ge=1, le=10**9)] = 100
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.999
    warn_expiry_seconds: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    renew_seconds: Annotated[float, Field(gt=0)] = 30 * 86_400.0
    repair_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    check_seconds: Annotated[float, Field(gt=0, le=3_600)] = 5.0

    @field_validator("stages")
    @classmethod
    def _grow(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_stages(value)
        except PublisherSettingsError as error:
            raise ValueError(str(error)) from error
        return value

    @property
    def shares(self) -> tuple[float, ...]:
        """The stages as numbers from 0 to 1."""
        return parse_stages(self.stages)

    @property
    def drift(self) -> DriftBound:
        """The bound on agreement."""
        return DriftBound(self.max_agreement_drop, self.least_answers, self.confidence)


class PublisherSettings(BaseSettings):
    """Everything that publishing and the rollout service can be told.

    `name` is the service's identity at the broker, `store` its folder. `key_file` is the signing
    key, where it may lie on this machine; `publisher_public_key_file` is what devices have too.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")] = "main"
    channel: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "stable"
    store: Path = Path("elma-publisher")
    publisher_public_key_file: Path = Path("publisher-public.json")
    key_file: Path | None = None
    rollout: RolloutSettings = RolloutSettings()
    http: HttpSettings = HttpSettings()
    broker: BrokerSettings = BrokerSettings()


def load_settings(
    config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> PublisherSettings:
    """The settings from file, environment and `overrides` (nested like the file; None is unset).

    Raises PublisherSettingsError, which names the setting but never its value.
    """
    return read_settings(PublisherSettings, _RULES, config, overrides)
