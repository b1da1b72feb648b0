"""Every failure of the `broker` package, drawn once. Library errors are translated to these.

BrokerError
├── BrokerSettingsError      a setting or a file it names is wrong
├── InvalidPublication       a publication or subscription that MQTT cannot carry
├── ConnectFailed            the broker cannot be reached, or refused us
│   └── SubscriptionRefused  connected, but a subscription was denied
├── PublishError             a publication that was not handed to the broker
│   ├── NotConnected         no live connection
│   ├── PayloadTooLarge      over the packet size that the broker takes
│   └── TooManyInFlight      as many unacknowledged publications as allowed
├── SessionStopped           the session was not started, or was stopped
├── EnrolmentError           a secured broker's folder, certificate or member is wrong
└── BrokerProcessError       a broker on this machine that cannot be run
    ├── BrokerMissing        its program is not installed
    └── BrokerStartFailed    it was started and does not answer
"""

from __future__ import annotations


class BrokerError(Exception):
    """Base of everything that `broker` raises on purpose."""


class BrokerSettingsError(BrokerError):
    """A setting, or a file that it names, is missing or wrong."""


class InvalidPublication(BrokerError):
    """A publication or subscription that MQTT cannot carry."""


class ConnectFailed(BrokerError):
    """The broker cannot be reached, or it refused the connection."""


class SubscriptionRefused(ConnectFailed):
    """The broker denied a subscription."""


class PublishError(BrokerError):
    """The publication was not handed to the broker; nothing was sent."""


class NotConnected(PublishError):
    """There is no live connection to publish on."""


class PayloadTooLarge(PublishError):
    """The packet would be larger than the broker takes."""


class TooManyInFlight(PublishError):
    """As many publications as allowed wait for the broker's acknowledgement."""


class SessionStopped(PublishError):
    """The session was not started yet, or was stopped."""


class EnrolmentError(BrokerError):
    """A secured broker's folder cannot be made or read, or a member not enrolled or revoked."""


class BrokerProcessError(BrokerError):
    """A broker on this machine cannot be run."""


class BrokerMissing(BrokerProcessError):
    """The broker's program is not installed."""


class BrokerStartFailed(BrokerProcessError):
    """The broker's process ended, or did not answer in time."""
