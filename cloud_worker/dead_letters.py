"""Dead letters: what is kept of a request that proved nothing, for a person to look at.

Input: the payload as it came. Output: a small JSON document. Neighbours: `receive` decides what is
dead, `reply` publishes it within a budget.

    {"bytes": 1885, "sha256": "...", "header": {"edge": ..., "request": ..., ...} or null,
     "sealed": base64 of the whole payload or null}

The header is the clear one of a sealed request, unproved. The payload goes along where it is a
sealed request of less than `LARGEST_SEALED_BYTES`: anything else could be clear text, and nothing
of that is passed on.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import Any

from protocol.errors import ProtocolError
from protocol.sealing import peek_header

LARGEST_SEALED_BYTES = 64 * 1024


def dead_letter_of(payload: bytes, sha256: str) -> bytes:
    """The dead letter of a payload with the hexadecimal digest `sha256`."""
    document: dict[str, Any] = {
        "bytes": len(payload),
        "sha256": sha256,
        "header": None,
        "sealed": None,
    }
    try:
        document["header"] = asdict(peek_header(payload))
    except ProtocolError:
        pass
    else:
        if len(payload) < LARGEST_SEALED_BYTES:
            document["sealed"] = base64.b64encode(payload).decode("ascii")
    return json.dumps(document).encode("ascii")
