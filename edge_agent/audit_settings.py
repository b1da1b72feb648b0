"""The table [audit] of `edge.toml`: what the device compares with the cloud, and what it keeps.

Input: the file, or variables `ELMA_EDGE_AUDIT__...`. Output: `AuditSettings`, part of
`EdgeSettings`. Neighbours: `audit` samples by it, `audit_store` keeps no more than it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class AuditSettings(BaseModel):
    """Off by default: nothing is compared or kept while `rate` is 0.

    `rate` is the share of confident answers that are checked by the cloud, 0 to 1; every question
    that was offloaded anyway is compared as well, which sends nothing more. `max_records` bounds
    the file `store_file`, half of it for each kind.

    `keep_text` also stores the question and its passage of every compared question, in clear, in
    that file, until newer ones push them out: only this makes a training file of disagreements
    possible. Without it the file holds numbers and character positions. Text is never sent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    keep_text: bool = False
    store_file: Path = Path("elma-audit.sqlite3")
    max_records: Annotated[int, Field(ge=2, le=1_000_000)] = 20_000
