"""The verb refresh, on the same `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflow.cli import JsonOption, RunOption, _existing, app
from workflow.console import Output


@app.command()
def refresh(
    run: RunOption = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos", metavar="FILE", help="New videos: a table as the contract declares it."
        ),
    ] = None,
    withdrawn: Annotated[
        Path | None,
        typer.Option(
            "--withdrawn", metavar="FILE", help="Raw ids of videos that are not to be shown."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add and withdraw videos without training: the next bundle, within seconds."""
    from workflow.refresh_verbs import refresh_run

    refresh_run(_existing(run), Output(json), videos, withdrawn)
