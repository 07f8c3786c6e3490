"""Verbs about deployment folders, on the same `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from workflow.cli import DeploymentOption, JsonOption, TopKOption, app
from workflow.console import Output
from workflow.run import Run

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with an export.")]
SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run folder with an export, or the URL of published bundles."
    ),
]
BucketArgument = Annotated[
    str, typer.Argument(metavar="URL", help="Where published bundles are, e.g. s3://bucket/models.")
]


@app.command()
def deploy(
    run: SourceArgument,
    deployment: DeploymentOption = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Serve beside the live bundle, as NAME."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Verify a run's bundle and swap it into the live server; a refused one changes nothing."""
    from workflow.deploy_verbs import deploy_run

    deploy_run(run, deployment, as_, Output(json))


@app.command()
def publish(
    run: RunArgument,
    url: BucketArgument,
    target: Annotated[
        Literal["embedded", "container"],
        typer.Option(help="Which export: for Marquee's own server, or for a stock Triton."),
    ] = "embedded",
    json: JsonOption = False,
) -> None:
    """Copy a run's bundle to object storage and make it the current one there."""
    from workflow.deploy_verbs import publish_run

    publish_run(Run(run), url, target, Output(json))


@app.command()
def fetch(
    url: BucketArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Model repository to make.")],
    version: Annotated[
        int | None, typer.Option("--version", help="Which bundle (default: the current one).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Copy a published bundle from object storage, every hash checked."""
    from workflow.deploy_verbs import fetch_bundle

    fetch_bundle(url, folder, version, Output(json))


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
