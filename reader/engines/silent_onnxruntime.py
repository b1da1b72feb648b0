"""ONNX Runtime, told before it is loaded to keep to itself; everything here imports it from here.

Its Linux wheels make a device id and a database of events for their maker in the user's cache when
the module is imported: `disable_telemetry_events()` comes too late for that, and where no cache can
be written, as under systemd, a warning about it stands in the log of every start. What a device
does is nobody's business, so the variable that it looks at is set first, whatever it was.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime  # reads the variable, now and never again

__all__ = ["onnxruntime"]
