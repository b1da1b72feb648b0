"""Every failure of the `publisher` package, drawn once.

PublisherError
├── PublisherSettingsError   a setting is missing or wrong *
├── PublisherStoreError      the publisher's own folder cannot be used, or lacks something
│   ├── StoreBusy            another process is at work in it
│   ├── NoStore              there is none where it was said to be *
│   └── NoSuchVersion        it has no release of that number *
├── ReleaseRefused           the model does not work, or is worse than what the channel has
├── SigningError             a manifest that is not what was prepared, or a key that may not sign *
├── ChannelTaken             the channel holds something newer than this store knows
├── RolloutError             an order that cannot be given now
├── UploadFailed             the broker did not take everything in time
└── WorkersNotReady          a live worker has not loaded the release

* The call or its input is wrong, and another call mends it: `is_the_calls` is true.
"""

from __future__ import annotations

from typing import ClassVar


class PublisherError(Exception):
    """Base of everything that `publisher` raises on purpose."""

    is_the_calls: ClassVar[bool] = False


class PublisherSettingsError(PublisherError):
    """A setting is missing or wrong."""

    is_the_calls = True


class PublisherStoreError(PublisherError):
    """The publisher's folder cannot be read or written, or lacks what is asked for."""


class StoreBusy(PublisherStoreError):
    """Another process publishes from the same folder at this moment."""


class NoStore(PublisherStoreError):
    """There is no publisher's folder where the call says."""

    is_the_calls = True


class NoSuchVersion(PublisherStoreError):
    """The channel has no release of the version that the call names."""

    is_the_calls = True


class ReleaseRefused(PublisherError):
    """The model cannot be run, or is worse than the release that the channel has now."""


class SigningError(PublisherError):
    """The manifest is not the prepared one, or the key at hand may not sign it."""

    is_the_calls = True


class ChannelTaken(PublisherError):
    """Somebody else has published to this channel since; this store would go back behind it."""


class RolloutError(PublisherError):
    """There is no release to roll out, or the step is not possible in its present state."""


class UploadFailed(PublisherError):
    """The broker refused a message, or did not take it in time."""


class WorkersNotReady(PublisherError):
    """At least one live worker could not, or did not yet, load the release."""
