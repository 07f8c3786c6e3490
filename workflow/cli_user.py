"""The verbs about one user, on the same `app`: recommend, page, replay, watch."""

from __future__ import annotations

from pathlib import Path
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def page(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="Raw user id.")],
    run: RunOption = None,
    at: AtOption = None,
    cursor: Annotated[
        str, typer.Option("--cursor", metavar="TEXT", help="Go on after the page that gave it.")
    ] = "",
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Write the page's log record."),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run the stages here, without a server.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show a user's homepage: rows of videos with titles.

    Its context is options too: --device tv --country DE --maturity 13+, and the contract's others.
    """
    from workflow.page_verbs import print_page
    from workflow.verbs import context_options

    print_page(
        _existing(run), Output(json), user, at=at, context=context_options(context.args),
        cursor=cursor, record=record, in_process=in_process,
    )  # fmt: skip


@app.command()
def replay(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="Log record that marquee page wrote.")
    ],
    run: RunOption = None,
    json: JsonOption = False,
) -> None:
    """Make a page again from its log record, and say whether it is the same."""
    from workflow.page_verbs import print_replay

    print_replay(_existing(run), Output(json), record)


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
