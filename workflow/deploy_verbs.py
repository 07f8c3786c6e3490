"""What the verbs about deployment folders do and print."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triton_repo import deploy
from triton_repo.bucket import fetch, publish
from triton_repo.deployment import Deployment
from workflow.console import Output
from workflow.remote import as_bucket, is_url
from workflow.run import Run

DEFAULT = Path("runs") / "deployment"


def deploy_run(source: str, folder: Path | None, name: str | None, output: Output) -> None:
    """`marquee deploy` of a run, or of the current bundle in object storage."""
    place = Deployment(folder or DEFAULT)
    if is_url(source):
        url = as_bucket(source)
        place.root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.root, prefix=".fetched-") as work:
            run = Run(work)
            with output.stage("Fetch") as report:
                fetch(url, run.repository, report=report)
            result = deploy.deploy(place, run, name, output)
    else:
        result = deploy.deploy(place, Run(source), name, output)
    what = f"Deployed bundle {result['version']}" + (f" as {name}" if name else "")
    _report(output, result, what)


def publish_run(run: Run, url: str, target: str, output: Output) -> None:
    """`marquee publish`."""
    folder = run.container_repository if target == "container" else run.repository
    export = "marquee export" + (" --target container" if target == "container" else "")
    run.require(folder, f"{target} model repository", export)
    with output.stage("Publish") as report:
        result = publish(folder, as_bucket(url), report)
    sent = f"{result['num_sent']} files sent" if result["num_sent"] else "it was there already"
    done = f"Bundle {result['version']} is the current one in {url}: {sent}."
    next_step = "deploy" if target == "embedded" else "fetch"
    output.finish(result, done, f"marquee {next_step} {url}, where it is to be served")


def fetch_bundle(url: str, folder: Path, version: int | None, output: Output) -> None:
    """`marquee fetch`."""
    with output.stage("Fetch") as report:
        bundle = fetch(as_bucket(url), folder, version=version, report=report)
    result = {"url": url, "folder": str(folder), "version": bundle.version, "seal": bundle.seal}
    output.finish(result, f"Bundle {bundle.version} is in {folder}, every hash checked.")


def roll_back(folder: Path | None, name: str | None, output: Output) -> None:
    """`marquee rollback`."""
    result = deploy.rollback(Deployment(folder or DEFAULT), name, output)
    _report(output, result, f"Took away {name}" if name else "Rolled back")


def print_bundles(
    run: Run, folder: Path | None, name: str, num_requests: int, top_k: int, output: Output
) -> None:
    """`marquee compare-bundles`."""
    from triton_repo.compare_bundles import compare_bundles

    place = Deployment(folder or DEFAULT)
    with output.stage("Ask both") as report:
        result = compare_bundles(
            place, run, name, num_requests=num_requests, top_k=top_k, report=report
        )
    (_, live), (_, other) = result["versions"].items()
    gap = result["score_difference"]
    rows = [[f"overlap@{k}", _number(value)] for k, value in result["overlap"].items()]
    rows += [
        ["same page", _number(result["same_page"])],
        ["rank correlation", _number(result["rank_correlation"])],
        ["score difference, mean", _number(gap["mean"])],
        ["score difference, most", _number(gap["max"])],
    ]
    rows += [[f"status {words}", count] for words, count in result["status"].items()]
    for which, latency in result["latency_ms"].items():
        rows.append([f"{which}, p50 / p99 ms", f"{latency['p50']:.2f} / {latency['p99']:.2f}"])
    title = f"live {live} and {name} {other}, {result['requests']:,} requests of {run}"
    output.table(title, ["", "value"], rows)
    output.finish(result, next_step=f"marquee deploy RUN --deployment {place}")


def _number(value: float | None) -> str:
    return "none in common" if value is None else f"{value:.4f}"


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
