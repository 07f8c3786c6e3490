"""The verb ui, on the same `app`."""

from __future__ import annotations

from typing import Annotated

import typer

from workflow.cli import DeploymentOption, JsonOption, RunOption, app
from workflow.console import Output


@app.command()
def ui(
    run: RunOption = None,
    deployment: DeploymentOption = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the page; 0 means a free one.")
    ] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    json: JsonOption = False,
) -> None:
    """Open a local web page that shows homepages from the live Triton, until Ctrl-C."""
    from workflow.page_verbs import open_ui

    open_ui(run, deployment, host, port, Output(json), opens=not (no_open or json))
