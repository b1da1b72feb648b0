"""What can go wrong before a monitor serves.

MonitorError
├── MonitorSettingsError    a setting is wrong
└── MonitorListenError      its address cannot be used
"""

from __future__ import annotations


class MonitorError(Exception):
    """The root of this tree."""


class MonitorSettingsError(MonitorError):
    """A setting is wrong; the message names it and never its value."""


class MonitorListenError(MonitorError):
    """The address of its HTTP interface cannot be used."""
