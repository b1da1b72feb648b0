"""What the verbs about releases share: options, settings, and how bytes and days are shown.

Neighbours: `elma.commands.publish`, `sign`, `releases` and `rollout`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elma.output import CommandError

if TYPE_CHECKING:
    from publisher.settings import PublisherSettings

ChannelOption = Annotated[str | None, typer.Option(help="The channel. Default: stable.")]
StoreOption = Annotated[
    Path | None, typer.Option(help="The publisher's own folder. Default: elma-publisher.")
]
KeyOption = Annotated[
    Path | None, typer.Option(help="publisher-secret.json, the key that signs releases.")
]
PublicOption = Annotated[
    Path | None,
    typer.Option(help="publisher-public.json, as devices have it. Default: in this folder."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        envvar="ELMA_PUBLISHER_CONFIG", help="TOML file; examples/publisher.toml shows all."
    ),
]
BrokerHostOption = Annotated[str | None, typer.Option(help="The MQTT broker.")]
BrokerPortOption = Annotated[int | None, typer.Option(help="Its port.")]


def publisher_settings(
    config: Path | None,
    channel: str | None = None,
    store: Path | None = None,
    publisher_public: Path | None = None,
    key: Path | None = None,
    broker_host: str | None = None,
    broker_port: int | None = None,
) -> PublisherSettings:
    """The settings of file, environment and options. Raises PublisherSettingsError."""
    from publisher.settings import load_settings

    settings = load_settings(
        config,
        {
            "channel": channel,
            "store": store,
            "publisher_public_key_file": publisher_public,
            "key_file": key,
            "broker": {"host": broker_host, "port": broker_port},
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
