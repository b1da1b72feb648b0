"""The options of `elma publish`, in groups: what, who signs, how it is checked, on which terms, to
whom.

Neighbours: `elma.commands.publish` takes them, `elma.option_groups` spreads them, `elma.publishing`
and `elma.release_checks` have the values that come of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from elma.output import CommandError
from elma.release_options import KeyOption

DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class What:
    """The one thing that is published."""

    model: Annotated[
        str | None, typer.Argument(help="A model folder, or the name of a shipped model.")
    ] = None
    rollback: Annotated[
        int | None, typer.Option(min=1, help="Publish this version's content as a new version.")
    ] = None
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Publish the current release on new terms.")
    ] = False
    signature: Annotated[
        Path | None, typer.Option(help="Publish what was prepared and signed: `elma sign`'s file.")
    ] = None
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Send plain floats as they are, not packed as int8."),
    ] = False

    def check(self) -> None:
        """Raises CommandError unless one thing was named."""
        given = [
            self.model is not None,
            self.rollback is not None,
            self.refresh,
            self.signature is not None,
        ]
        if sum(given) != 1:
            raise CommandError(
                "give one thing to publish: MODEL, --rollback VERSION, --refresh or "
                "--signature FILE",
                exit_status=2,
            )


@dataclass(frozen=True)
class Signing:
    """Who signs, and where."""

    key: KeyOption = None
    prepare: Annotated[
        Path | None, typer.Option(help="Write what `elma sign` signs elsewhere; send nothing.")
    ] = None
    key_id: Annotated[
        str | None,
        typer.Option(help="For --prepare: who will sign.", show_default="the newest key"),
    ] = None


@dataclass(frozen=True)
class TermOptions:
    """What the manifest says beside the content. What is not given stays as it was at the same
    content; of a new model it is nothing, and 30 days."""

    note: Annotated[str | None, typer.Option(help="For people; stands in the manifest.")] = None
    expires_days: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="After this the manifest is taken by nobody.", show_default="30"
        ),
    ] = None
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="https://... where blobs can be had; in the place of all earlier ones. May be "
            "repeated."
        ),
    ] = None
    no_url: Annotated[
        bool, typer.Option("--no-url", help="Name no address; with --refresh it removes dead ones.")
    ] = False

    @property
    def expires_seconds(self) -> float | None:
        """The manifest's life, where it was given."""
        return None if self.expires_days is None else self.expires_days * DAY_SECONDS

    def urls(self) -> tuple[str, ...] | None:
        """The addresses; None where nothing was said of them. Raises CommandError for one that no
        device would ask."""
        from releases.https_transport import httpx_url, is_allowed

        if self.no_url:
            if self.url:
                raise CommandError("give --url or --no-url, not both", exit_status=2)
            return ()
        for url in self.url or ():
            if not is_allowed(httpx_url(url)):
                raise CommandError(
                    f"--url {url}: devices take https addresses only (and http of their own "
                    "machine)",
                    exit_status=2,
                )
        return tuple(self.url) if self.url else None


@dataclass(frozen=True)
class CheckOptionGroup:
    """How a model is tried before it goes out."""

    canaries: Annotated[
        Path | None,
        typer.Option(help="SQuAD JSON of questions to choose canaries from.", show_default="ours"),
    ] = None
    data: Annotated[
        Path | None, typer.Option(help="SQuAD JSON to compare F1 on with the current release.")
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first questions of --data.")
    ] = None
    max_f1_drop: Annotated[float, typer.Option(help="F1 points that the release may lose.")] = 0.0
    force: Annotated[
        bool, typer.Option("--force", help="Publish although it is worse than the current one.")
    ] = False
    threads: Annotated[
        int | None, typer.Option(min=1, envvar="ELMA_THREADS", help="CPU threads of the checks.")
    ] = None


@dataclass(frozen=True)
class Delivery:
    """How it gets out, and to whom first."""

    stage: Annotated[
        str | None,
        typer.Option(help="Share of the edges that take it first.", show_default="all"),
    ] = None
    resend: Annotated[
        bool,
        typer.Option("--resend", help="Send every chunk again, whatever the broker has."),
    ] = False
    export: Annotated[
        Path | None, typer.Option(help="Also copy the blobs into this folder, for a web server.")
    ] = None
    wait_seconds: Annotated[
        float, typer.Option(min=0.0, help="How long to wait for workers to load it.")
    ] = 300.0
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the workers.")] = False
