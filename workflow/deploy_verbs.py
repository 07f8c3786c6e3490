"""What the verbs about deployment folders do and print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triton_repo import deploy
from triton_repo.deployment import Deployment
from workflow.console import Output
from workflow.run import Run

DEFAULT = Path("runs") / "deployment"


def deploy_run(run: Run, folder: Path | None, name: str | None, output: Output) -> None:
    """`marquee deploy`."""
    result = deploy.deploy(Deployment(folder or DEFAULT), run, name, output)
    what = f"Deployed bundle {result['version']}" + (f" as {name}" if name else "")
    _report(output, result, what)


def roll_back(folder: Path | None, name: str | None, output: Output) -> None:
    """`marquee rollback`."""
    result = deploy.rollback(Deployment(folder or DEFAULT), name, output)
    _report(output, result, f"Took away {name}" if name else "Rolled back")


def _report(output: Output, result: dict[str, Any], what: str) -> None:
    where, server = result["deployment"], result["server"]
    named = "".join(f", {name} {version}" for name, version in result["named"].items())
    served = f"served at {server}" if server else "no server runs"
    verb = "rollback" if server else "serve"
    output.finish(
        result,
        f"{what} in {where}: live {result['live']}{named}; {served}.",
        f"marquee {verb} --deployment {where}",
    )
