"""How a device's metrics leave it where no Prometheus can fetch them: `[metrics]` of the settings.

Neighbours: `edge_agent.settings` holds it, `edge_agent.metrics_reporter` follows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from protocol.metrics_messages import MAX_INTERVAL_SECONDS

TEXTFILE_ENDING = ".prom"


class MetricsSettings(BaseModel):
    """`GET /metrics` is always there; these are the other two ways.

    Every `report_seconds` all metrics go to the broker, in clear, for `elma monitor`; 0: never.
    Every `textfile_seconds` they are written to `textfile`, for the textfile collector of
    Prometheus' node_exporter; None: nowhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    report_seconds: Annotated[float, Field(ge=0, le=MAX_INTERVAL_SECONDS)] = 0.0
    textfile: Path | None = None
    textfile_seconds: Annotated[float, Field(ge=0.1, le=MAX_INTERVAL_SECONDS)] = 15.0

    @field_validator("report_seconds")
    @classmethod
    def _is_never_or_now_and_then(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("must be 0, for never, or at least 1")
        return value

    @field_validator("textfile")
    @classmethod
    def _is_seen_by_node_exporter(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != TEXTFILE_ENDING:
            raise ValueError(f"must end in {TEXTFILE_ENDING}: node_exporter reads no other files")
        return value
