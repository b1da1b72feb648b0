"""What the verbs about releases share: options, settings, and how bytes and days are shown.

Neighbours: `elma.commands.publish`, `sign`, `releases` and `rollout`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elma.output import CommandError

if TYPE_CHECKING:
    from publisher.settings import PublisherSettings

_FAULTS_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})

ChannelOption = Annotated[str | None, typer.Option(help="The channel.", show_default="stable")]
StoreOption = Annotated[
    Path | None, typer.Option(help="The publisher's own folder.", show_default="elma-publisher")
]
KeyOption = Annotated[
    Path | None, typer.Option(help="publisher-secret.json, the key that signs releases.")
]
PublicOption = Annotated[
    Path | None,
    typer.Option(
        help="publisher-public.json, as devices have it.", show_default="the one in this folder"
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        envvar="ELMA_PUBLISHER_CONFIG", help="TOML file; examples/publisher.toml shows all."
    ),
]
BrokerHostOption = Annotated[str | None, typer.Option(help="The MQTT broker.")]
BrokerPortOption = Annotated[int | None, typer.Option(help="Its port.")]


@dataclass(frozen=True)
class Place:
    """Which channel is meant: its name, the store, whom devices trust, the broker."""

    channel: ChannelOption = None
    store: StoreOption = None
    publisher_public: PublicOption = None
    config: ConfigOption = None
    broker_host: BrokerHostOption = None
    broker_port: BrokerPortOption = None

    def settings(self, key: Path | None = None, **tables: Mapping[str, Any]) -> PublisherSettings:
        """The settings of file, environment and options; `tables` has further options, nested like
        the file. Raises PublisherSettingsError, CommandError."""
        from publisher.settings import load_settings

        broker = {"host": self.broker_host, "port": self.broker_port}
        settings = load_settings(
            self.config,
            {
                "channel": self.channel,
                "store": self.store,
                "publisher_public_key_file": self.publisher_public,
                "key_file": key,
                "broker": broker,
                **tables,
            },
        )
        public_file = settings.publisher_public_key_file
        if not public_file.is_file():
            raise CommandError(
                f"there is no {public_file}; name the file that `elma keys publisher` wrote with "
                "--publisher-public, or your settings file with --config",
                exit_status=2,
            )
        return settings


@contextmanager
def files_of_the_call() -> Iterator[None]:
    """A key file that cannot be used is the call's mistake: exit status 2."""
    from protocol.errors import KeyFileError

    try:
        yield
    except KeyFileError as error:
        raise CommandError(str(error), exit_status=2) from error


def file_error(what: str, path: Path, error: OSError) -> CommandError:
    """That `what` ("read", "write") cannot be done with a file which the call names: the call's
    mistake, unless the disk is at fault."""
    is_the_disks = error.errno in _FAULTS_OF_THE_DISK
    return CommandError(
        f"cannot {what} {path}: {error.strerror}", exit_status=1 if is_the_disks else 2
    )


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; the value is called with (bytes done, bytes in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def megabytes(count: int) -> str:
    """Bytes for a person."""
    if count >= 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e4 else f"{count} bytes"


def days_left(expires: float) -> str:
    """The time until `expires` (unix seconds) for a person."""
    seconds = expires - time.time()
    if seconds <= 0:
        return "no time: it has expired"
    return f"{seconds / 86_400:.1f} days" if seconds >= 86_400 else f"{seconds / 3_600:.1f} hours"


def clock_time(moment: float) -> str:
    """Unix seconds as a date and time for a person, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """A time span for a person."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} seconds"
    if seconds < 2 * 3_600:
        return f"{seconds / 60:.0f} minutes"
    return (
        f"{seconds / 3_600:.1f} hours" if seconds < 2 * 86_400 else f"{seconds / 86_400:.1f} days"
    )


def percent(share: float) -> str:
    """A share from 0 to 1 for a person."""
    return f"{100 * share:g} %"
