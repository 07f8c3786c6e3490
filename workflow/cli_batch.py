"""The verbs that look at many users or many configurations at once: batch, frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflow.cli import AtOption, JsonOption, RunOption, _existing, app
from workflow.console import Output


@app.command()
def batch(
    run: RunOption = None,
    users: Annotated[
        Path | None,
        typer.Option(
            "--users", metavar="FILE", help="Raw user ids, one per line or Parquet (default: all)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FOLDER", help="Where to put it (default RUN/batch)."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many videos per user.")] = 20,
    at: AtOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes (default: one per core).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what an interrupted batch has finished.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write recommendations for all users, or those of a file, to Parquet."""
    from workflow.batch_verbs import write_batch

    write_batch(
        _existing(run), Output(json), users, output,
        top_k=top_k, at=at, workers=workers, resume=resume,
    )  # fmt: skip
