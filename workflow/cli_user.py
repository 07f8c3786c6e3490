"""The verbs about one user, on the same `app`: recommend, watch."""

from __future__ import annotations

from typing import Annotated

import typer

from workflow.cli import AtOption, JsonOption, RunOption, TopKOption, _existing, app
from workflow.console import Output


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def recommend(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Raw user id.")],
    run: RunOption = None,
    top_k: TopKOption = 20,
    at: AtOption = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run the stages here, without a server.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Recommend videos for a user.

    Context columns of the contract are options too: --device tv.
    """
    from workflow.verbs import context_options, print_recommendations

    job = _existing(run)
    print_recommendations(
        job, Output(json), user, top_k=top_k, at=at, context=context_options(context.args),
        in_process=in_process,
    )  # fmt: skip


@app.command()
def watch(
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Raw user id.")],
    video: Annotated[str, typer.Option("--video", metavar="ID", help="Raw video id.")],
    run: RunOption = None,
    at: AtOption = None,
    label: Annotated[
        int | None, typer.Option(min=0, max=1, help="The label, 1 or 0, where the data has one.")
    ] = None,
    watch_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds watched, where the data has them.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Tell what a user watched; the next answer for this user knows it."""
    from workflow.verbs import print_watch

    print_watch(_existing(run), Output(json), user, video, at=at, label=label, watch_s=watch_s)
