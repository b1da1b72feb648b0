"""Settings of a process from a TOML file, the environment and the command line; checked once.

Input: a pydantic-settings class, a file, overrides. Output: an instance of the class. The later
source wins: file, environment, overrides. Neighbours: `edge_agent.settings` and
`cloud_worker.settings` describe what there is to set; both stand on `broker.settings` anyway.

A misspelt variable is an error, not ignored. Relative paths of the file are relative to its folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

Settings = TypeVar("Settings", bound=BaseSettings)
_UNKNOWN = "extra_forbidden"


@dataclass(frozen=True)
class SettingsRules:
    """How the settings of one kind of process are read.

    `prefix` is that of its variables. `path_names` are settings that name a path beside those that
    end in `_file`; `model_names` name model folders, or lists of them, which may also be names of
    shipped models. `file_defaults` count only where there is a file. `other_variables` are
    variables with the prefix that are no settings. `error` is raised, with a message that names
    settings but never their values.
    """

    prefix: str
    error: type[Exception]
    path_names: frozenset[str] = frozenset()
    model_names: frozenset[str] = frozenset({"model"})
    file_defaults: Mapping[str, str] = field(default_factory=dict)
    other_variables: frozenset[str] = frozenset({"config"})


def read_settings(
    kind: type[Settings],
    rules: SettingsRules,
    config: Path | None,
    overrides: Mapping[str, Any] | None,
) -> Settings:
    """The settings; `overrides` are nested like the file, and None in them is unset.

    Raises `rules.error`.
    """
    _refuse_unknown_variables(kind, rules)
    in_file = {} if config is None else _read_file(config, rules)

    class Loaded(kind):  # type: ignore[valid-type,misc]  # a subclass of what the caller names
        """Adds the file below environment and overrides."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, in_file)

    try:
        loaded: Settings = Loaded(**_without_unset(overrides or {}))
    except ValidationError as error:
        raise rules.error(_describe(error, config, rules)) from error
    return loaded


def _refuse_unknown_variables(kind: type[BaseSettings], rules: SettingsRules) -> None:
    """A misspelt variable would otherwise be ignored without a word."""
    known = {*kind.model_fields, *rules.other_variables}
    for variable in os.environ:
        if not variable.startswith(rules.prefix):
            continue
        if variable.removeprefix(rules.prefix).split("__")[0].lower() not in known:
            raise rules.error(
                f"environment variable {variable} is no setting; "
                f"the names are {', '.join(sorted(kind.model_fields))}"
            )


def _read_file(config: Path, rules: SettingsRules) -> dict[str, Any]:
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise rules.error(
            f"settings file {config} cannot be read: {why}; name a TOML file, such as a bundle's"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise rules.error(f"settings file {config} is not valid TOML: {error}") from error
    return _with_absolute_paths({**rules.file_defaults, **document}, config.resolve().parent, rules)


def _with_absolute_paths(
    document: Mapping[str, Any], folder: Path, rules: SettingsRules
) -> dict[str, Any]:
    """The document with every path of the file made absolute, in any table."""
    resolved: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            resolved[key] = _with_absolute_paths(value, folder, rules)
        elif isinstance(value, str) and (key in rules.path_names or key.endswith("_file")):
            resolved[key] = str(folder / Path(value).expanduser())
        elif key in rules.model_names and isinstance(value, list):
            resolved[key] = [_model_path(model, folder) for model in value]
        elif key in rules.model_names:
            resolved[key] = _model_path(value, folder)
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


def _describe(error: ValidationError, config: Path | None, rules: SettingsRules) -> str:
    source = f"{config}, " if config is not None else ""
    found = error.errors(include_input=False, include_url=False)
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {_words_of(problem)}"
        for problem in found
    )
    # A file of an edge given to a worker, say, has several that do not exist there.
    strange = [problem["loc"][0] for problem in found if problem["type"] == _UNKNOWN]
    advice = "; is this the file of another kind of process?" if len(strange) > 1 else ""
    return f"wrong settings ({source}environment {rules.prefix}..., arguments): {problems}{advice}"


def _words_of(problem: Mapping[str, Any]) -> str:
    return "there is no such setting" if problem["type"] == _UNKNOWN else str(problem["msg"])
