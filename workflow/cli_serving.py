"""The verb that serves, with who may ask and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflow.cli import DeploymentOption, JsonOption, RunOption, StateOption, _existing, app
from workflow.console import Output


@app.command()
def serve(
    run: RunOption = None,
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC endpoint.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port of the HTTP endpoint.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics endpoint.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", metavar="FILE", help="Certificate of the gRPC endpoint (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key (PEM).")
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca", metavar="FILE", help="Who signed it, for our own tools (default: itself)."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="Key that clients have to show."),
    ] = None,
    state: StateOption = None,
    deployment: DeploymentOption = None,
    json: JsonOption = False,
) -> None:
    """Serve a run, or what is deployed in a folder, with Triton until Ctrl-C."""
    from triton_repo.access import open_access
    from triton_repo.deploy import serve_deployment
    from triton_repo.server import serve as serve_run

    ports, output = (grpc_port, http_port, metrics_port), Output(json)
    access = open_access(
        host, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca, api_key_file=api_key_file
    )
    if deployment is not None:
        serve_deployment(deployment, run, *ports, output, access=access, state=state)
    else:
        serve_run(_existing(run).run, *ports, output, access=access, state=state)
