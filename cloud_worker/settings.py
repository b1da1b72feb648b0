"""The settings of a worker: a TOML file, the environment, the command line; checked once.

Input: `worker.toml` (see `examples/worker.toml`), variables `ELMA_WORKER_...`, overrides. The later
one wins. A setting inside a table has two underscores: `[http] port` is `ELMA_WORKER_HTTP__PORT`.
Output: `WorkerSettings`, passed down from the entry point. Neighbours: `agent`, `elma worker run`.

Relative paths in the file, and the two default paths of keys, are relative to the file's folder.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from broker.settings import BrokerSettings
from cloud_worker.errors import WorkerSettingsError
from cloud_worker.scheduler import BatchLimits
from protocol.key_files import EDGES_FOLDER_NAME, POOL_SECRET_NAME
from protocol.topics import DEFAULT_PRIORITY

DEFAULT_PORT = 8572
ENVIRONMENT_PREFIX = "ELMA_WORKER_"
_OTHER_VARIABLES = {"config"}  # of `elma worker run --config`
_FOLDERS = ("edges_folder",)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def default_name() -> str:
    """This machine's name; several workers on one machine need names of their own."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:48] or "worker"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(_Table):
    """Where health and metrics are served. There is no login, and nothing secret to read."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT


class BatchSettings(_Table):
    """What the scheduler may put together; see `scheduler.BatchLimits` for each."""

    max_windows: Annotated[int, Field(ge=1, le=4_096)] = 16
    max_tokens: Annotated[int, Field(ge=1_024, le=1_048_576)] = 4_096
    max_padding: Annotated[float, Field(ge=0, lt=1)] = 0.25
    enough_windows: Annotated[int, Field(ge=1, le=4_096)] = 4
    urgent_seconds: Annotated[float, Field(ge=0, le=3_600)] = 1.0
    max_wait_seconds: Annotated[float, Field(gt=0, le=3_600)] = 10.0

    @property
    def limits(self) -> BatchLimits:
        """The same, as the scheduler takes it."""
        return BatchLimits(**self.model_dump())


class WorkerSettings(BaseSettings):
    """Everything a worker can be told.

    `name` is its identity at the broker; `older_models` are releases that devices may still use
    beside `model`. `queue_bound` and `queue_bound_bytes` bound what it holds at once (requests, and
    bytes of their decoded states). `lease_seconds` is what it promises with `accepted`;
    `drain_seconds` is how long a stop waits for what was accepted.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")] = Field(
        default_factory=default_name
    )
    model: str = "elma-small"
    older_models: tuple[str, ...] = ()
    priorities: Annotated[tuple[Name, ...], Field(min_length=1)] = (DEFAULT_PRIORITY,)
    pool_secret_file: Path = Path(POOL_SECRET_NAME)
    edges_folder: Path = Path(EDGES_FOLDER_NAME)
    torch_threads: Annotated[int, Field(ge=1, le=1_024)] | None = None
    queue_bound: Annotated[int, Field(ge=1, le=10_000)] = 128
    queue_bound_bytes: Annotated[int, Field(ge=1_048_576)] = 256 * 1024 * 1024
    lease_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0, le=3_600)] = 20.0
    http: HttpSettings = HttpSettings()
    batch: BatchSettings = BatchSettings()
    broker: BrokerSettings = BrokerSettings()

    @property
    def models(self) -> tuple[str, ...]:
        """Every release to load, the current one first."""
        return (self.model, *self.older_models)

    @property
    def client_id(self) -> str:
        """The worker's identity at the broker; with accounts it must be the user name."""
        return self.broker.username or f"worker-{self.name}"

    @model_validator(mode="after")
    def _fits_together(self) -> WorkerSettings:
        if len(set(self.priorities)) != len(self.priorities):
            raise ValueError("priorities names one of them twice")
        if self.batch.enough_windows > self.batch.max_windows:
            raise ValueError("batch.enough_windows is above batch.max_windows")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment; the file is merged in by `load_settings`."""
        return init_settings, env_settings


def load_settings(
    config: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> WorkerSettings:
    """The settings from file, environment and `overrides` (nested like the file; None is unset).

    Raises WorkerSettingsError, which names the setting but never its value.
    """
    _refuse_unknown_variables()
    in_file = {} if config is None else _read_file(config)
    given = _without_unset(overrides or {})

    class Loaded(WorkerSettings):
        """Adds the file below environment and overrides."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, in_file)

    try:
        return Loaded(**given)
    except ValidationError as error:
        raise WorkerSettingsError(_describe(error, config)) from error


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be ignored without a word."""
    known = {*WorkerSettings.model_fields, *_OTHER_VARIABLES}
    for variable in os.environ:
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable.removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower() not in known:
            raise WorkerSettingsError(
                f"environment variable {variable} is no setting; "
                f"the names are {', '.join(sorted(WorkerSettings.model_fields))}"
            )


def _read_file(config: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WorkerSettingsError(f"settings file {config} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise WorkerSettingsError(f"settings file {config} is not valid TOML: {error}") from error
    document.setdefault("pool_secret_file", POOL_SECRET_NAME)
    document.setdefault("edges_folder", EDGES_FOLDER_NAME)
    return _with_absolute_paths(document, config.resolve().parent)


def _with_absolute_paths(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of the file, made absolute: folders, models, and every `..._file` in any table."""
    resolved: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            resolved[key] = _with_absolute_paths(value, folder)
        elif isinstance(value, str) and (key in _FOLDERS or key.endswith("_file")):
            resolved[key] = str(folder / Path(value).expanduser())
        elif key == "model":
            resolved[key] = _model_path(value, folder)
        elif key == "older_models" and isinstance(value, list):
            resolved[key] = [_model_path(model, folder) for model in value]
        else:
            resolved[key] = value
    return resolved


def _model_path(model: Any, folder: Path) -> Any:
    """A model folder beside the file by its absolute path; anything else as it is."""
    if isinstance(model, str) and (folder / model).is_dir():
        return str(folder / model)
    return model


def _without_unset(overrides: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            inner = _without_unset(value)
            if inner:
                kept[key] = inner
        elif value is not None:
            kept[key] = value
    return kept


def _describe(error: ValidationError, config: Path | None) -> str:
    source = f"{config}, " if config is not None else ""
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    )
    return f"wrong settings ({source}environment {ENVIRONMENT_PREFIX}..., arguments): {problems}"
