"""Verbs that measure runs: their speed, and how good they are on held-out events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflow.cli import JsonOption, RunOption, SetOption, _changed, _existing, app
from workflow.console import Output


@app.command()
def bench(
    run: RunOption = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option("--concurrency", "-c", help="Requests in flight; repeatable."),
    ] = None,
    duration_s: Annotated[float, typer.Option(help="Measured seconds per concurrency.")] = 5.0,
    json: JsonOption = False,
) -> None:
    """Measure latency, throughput and server CPU with perf_analyzer."""
    from workflow.verbs import print_benchmark

    print_benchmark(_existing(run), Output(json), concurrency or [1, 4, 16], duration_s)


@app.command()
def evaluate(run: RunOption = None, set_: SetOption = None, json: JsonOption = False) -> None:
    """Evaluate on held-out events beside strong baselines; writes a report page and JSON."""
    from workflow.verbs import print_evaluation

    print_evaluation(_changed(_existing(run), None, set_, None), Output(json))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that is judged.")],
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the comparison as HTML.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare two evaluated runs of the same data: side by side, with paired tests."""
    from workflow.verbs import print_comparison

    print_comparison(_existing(first), _existing(second), Output(json), report)
