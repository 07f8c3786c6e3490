"""Verbs about deployment folders, on the same `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflow.cli import DeploymentOption, JsonOption, TopKOption, app
from workflow.console import Output
from workflow.run import Run

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with an export.")]


@app.command()
def deploy(
    run: RunArgument,
    deployment: DeploymentOption = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Serve beside the live bundle, as NAME."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Verify a run's bundle and swap it into the live server; a refused one changes nothing."""
    from workflow.deploy_verbs import deploy_run

    deploy_run(Run(run), deployment, as_, Output(json))


@app.command()
def rollback(
    deployment: DeploymentOption = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Take away the bundle that serves as NAME."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Go back to the bundle that was live before."""
    from workflow.deploy_verbs import roll_back

    roll_back(deployment, as_, Output(json))


@app.command("compare-bundles")
def compare_bundles(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run whose events are asked about.")],
    with_: Annotated[
        str, typer.Option("--with", metavar="NAME", help="What the other bundle is deployed as.")
    ] = "candidate",
    deployment: DeploymentOption = None,
    requests: Annotated[int, typer.Option(min=1, help="How many requests.")] = 500,
    top_k: TopKOption = 20,
    json: JsonOption = False,
) -> None:
    """Compare the live bundle with a named one on real requests: pages, scores, latency."""
    from workflow.deploy_verbs import print_bundles

    print_bundles(Run(run), deployment, with_, requests, top_k, Output(json))
