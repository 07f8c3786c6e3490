"""The verb export, for the server that comes with Marquee or for a stock Triton."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from workflow.cli import ForceOption, JsonOption, RunOption, SetOption, _changed, _existing, app
from workflow.console import Output


@app.command()
def export(
    run: RunOption = None,
    set_: SetOption = None,
    target: Annotated[
        Literal["embedded", "container"],
        typer.Option(help="Which server it is for: Marquee's own, or a stock Triton."),
    ] = "embedded",
    device: Annotated[
        Literal["auto", "cpu", "gpu"] | None,
        typer.Option(help="container: where the graphs run (auto: a GPU where there is one)."),
    ] = None,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="container: TensorRT in FP16 on the GPU.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Write the Triton model repository."""
    from workflow.export_verbs import export_run

    job = _changed(_existing(run), None, set_, None)
    export_run(job, Output(json), target, device=device, tensorrt=tensorrt, force=force)
