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


@app.command()
def frontier(
    run: RunOption = None,
    p99_ms: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0.001, help="Latency budget: name what it buys."),
    ] = None,
    num_candidates: Annotated[
        list[int] | None,
        typer.Option("--num-candidates", help="How many candidates to rank; repeatable."),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option("--index", metavar="KIND", help="flat, ivf:0.95, hnsw:0.99 …; repeatable."),
    ] = None,
    ranker: Annotated[
        list[str] | None, typer.Option("--ranker", help="fp32, int8 or none; repeatable.")
    ] = None,
    ranker_size: Annotated[
        list[str] | None,
        typer.Option(
            "--ranker-size",
            metavar="LAYERS",
            help="Train and try a ranker with these top layers too, such as 64,32; repeatable.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Requests in flight.")
    ] = 4,
    duration_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds of each of the three measurements.")
    ] = 2.0,
    force: Annotated[bool, typer.Option("--force", help="Measure known points again.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what better lists cost: NDCG against p99 latency and CPU, over ways to serve the run."""
    from triton_repo.frontier import Sweep, parse_index, parse_layers
    from workflow.batch_verbs import print_frontier

    sweep = Sweep(
        num_candidates=num_candidates or [],
        indexes=[parse_index(text) for text in index or []],
        rankers=ranker or [],
        layers=[parse_layers(text) for text in ranker_size or []],
        p99_budget_ms=p99_ms,
        concurrency=concurrency,
        duration_s=duration_s,
    )
    print_frontier(_existing(run), Output(json), sweep, force=force)
