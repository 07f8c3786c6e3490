"""The verb update, on the same `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflow.cli import DeviceOption, JsonOption, RunOption, _existing, _on, app
from workflow.console import Output


@app.command()
def update(
    events: Annotated[
        Path,
        typer.Option(
            "--events",
            metavar="PATH",
            help="New events: a file, or a folder of files, as the contract declares events.",
        ),
    ],
    run: RunOption = None,
    users: Annotated[
        Path | None,
        typer.Option("--users", metavar="FILE", help="New users, or known ones with new values."),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option("--videos", metavar="FILE", help="New videos, or known ones with new values."),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Append a day of watch logs, train on from there, and make the next bundle.

    Every event must be later than the last one of the run.
    """
    from workflow.update_verbs import update_run

    update_run(_existing(run), _on(device, Output(json)), events, users, videos)
