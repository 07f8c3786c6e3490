"""Further verbs about a served run, on the same `app`."""

from __future__ import annotations

from typing import Annotated

import typer

from workflow.cli import AtOption, JsonOption, RunOption, _existing, app
from workflow.console import Output


@app.command()
def watch(
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Raw user id.")],
    video: Annotated[str, typer.Option("--video", metavar="ID", help="Raw video id.")],
    run: RunOption = None,
    at: AtOption = None,
    label: Annotated[
        int | None, typer.Option(min=0, max=1, help="1 if the user liked it, 0 if not.")
    ] = None,
    watch_s: Annotated[float | None, typer.Option(min=0, help="Seconds watched.")] = None,
    json: JsonOption = False,
) -> None:
    """Tell what a user watched; the next answer for this user knows it."""
    from workflow.verbs import print_watch

    print_watch(_existing(run), Output(json), user, video, at=at, label=label, watch_s=watch_s)
