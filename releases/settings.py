"""What can be set about following a channel: the table `[releases]` of edge and worker alike.

In: TOML or environment, read by the settings of edge or worker. Out: `FollowSettings`, and its
quiet hours as minutes. Neighbours: `follower` obeys them; `pacing` obeys the last three.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from protocol.manifest import CHUNK_BYTES

TransportName = Literal["auto", "mqtt", "https"]
DAY_MINUTES = 24 * 60
_QUIET_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class FollowSettings(BaseModel):
    """How a device or worker follows a channel.

    `folder` is the store; `publisher_public_key_file` what enrolment gave. `transport`: "auto" is
    the manifest's HTTPS addresses where it has some, and MQTT where they fail or there are none;
    `https_ca_file` holds who vouches for those servers, where the system's authorities do not.
    `max_bytes_per_second` bounds downloads, `quiet_hours` ("22:00-06:00", local time) forbids them.
    `window` is how many chunks are asked for at once. A release of more than `max_release_bytes` is
    refused. A new release is on probation until it has worked for `probation_seconds`; `max_starts`
    starts of the process within it, and the last good one is back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    publisher_public_key_file: Path
    channel: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "stable"
    folder: Path = Path("elma-releases")
    transport: TransportName = "auto"
    https_ca_file: Path | None = None
    max_bytes_per_second: Annotated[int, Field(ge=1_024)] | None = None
    quiet_hours: str | None = None
    window: Annotated[int, Field(ge=1, le=8)] = 4
    max_release_bytes: Annotated[int, Field(ge=CHUNK_BYTES, le=2**40)] = 2 * 1024**3
    probation_seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 60.0
    max_starts: Annotated[int, Field(ge=1, le=100)] = 3

    @field_validator("quiet_hours")
    @classmethod
    def _is_a_span_of_hours(cls, value: str | None) -> str | None:
        if value is not None:
            quiet_minutes(value)
        return value


def quiet_minutes(text: str) -> tuple[int, int]:
    """ "22:00-06:00" as minutes of the day, first and one past the last. Raises ValueError."""
    match = _QUIET_HOURS.fullmatch(text)
    if match is None:
        raise ValueError('quiet_hours must look like "22:00-06:00"')
    first_hour, first_minute, end_hour, end_minute = map(int, match.groups())
    first, end = 60 * first_hour + first_minute, 60 * end_hour + end_minute
    if first == end:
        raise ValueError("quiet_hours begin and end at the same minute; leave them out instead")
    return first, end
