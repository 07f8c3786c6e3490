"""What `marquee batch` and `marquee frontier` do and print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.console import Output
from workflow.job import Job

if TYPE_CHECKING:
    from triton_repo.frontier import Sweep


def write_batch(
    job: Job,
    output: Output,
    users: Path | None,
    folder: Path | None,
    *,
    top_k: int,
    at: str | None,
    workers: int | None,
    resume: bool,
) -> None:
    """Recommendations for many users as Parquet; how many users came out with which status."""
    from triton_repo.batch import Plan, batch
    from triton_repo.batch_part import Answering
    from triton_repo.batch_users import all_users, users_of_file
    from triton_repo.client import UserEvents
    from triton_repo.local import bundle_key
    from triton_repo.recommend import parse_time
    from triton_repo.state import state_in_use
    from triton_repo.watch import next_second

    after_the_log = next_second(job.run, lambda: UserEvents(0, 0))
    moment = after_the_log if at is None else parse_time(at)
    answering = Answering(bundle_key(job.run), moment, top_k, state_in_use(job.run))
    user_ids = all_users(job.run) if users is None else users_of_file(users, job.contract)
    with output.stage(f"Recommend for {len(user_ids):,} users") as report:
        result = batch(
            job.run,
            Plan(user_ids, answering),
            folder or job.run.batch,
            workers=workers or len(os.sched_getaffinity(0)),
            resume=resume,
            report=report,
        )
    rows = [[name, f"{count:,}"] for name, count in sorted(result["status"].items())]
    output.table(f"{result['num_users']:,} users", ["status", "users"], rows)
    kept = f", {result['parts_kept']} of them kept" if result["parts_kept"] else ""
    made = (
        f"Wrote {result['num_rows']:,} rows in {result['num_parts']} files{kept}: "
        f"{result['output']} ({result['users_per_cpu_s']:,.0f} users per CPU second)."
    )
    read = f"python -c \"import pandas; print(pandas.read_parquet('{result['output']}'))\""
    output.finish({"run": str(job.run), "at": answering.at, **result}, made, read)


def print_frontier(job: Job, output: Output, sweep: Sweep, *, force: bool) -> None:
    """The configurations by latency, what the budget buys, and where the page is."""
    from triton_repo.frontier_page import headline, lines, named
    from workflow.frontier import Frontier

    result = Frontier(job, sweep, output, force).carry_out()
    measured = [point for point in result["points"] if point["load"]]
    columns = ["configuration", "NDCG@10", "interval", "p99_ms", "CPU s/1,000", "frontier of"]
    rows = [_frontier_row(point, result) for point in sorted(measured, key=_by_latency)]
    title = f"{job.run}: {len(measured)} ways to serve it, {sweep.concurrency} requests in flight"
    output.table(title, columns, rows)
    bought = named(result, (result["budget"] or {}).get("configuration"))
    words = " ".join(f"--set {word}" for word in bought["words"]) if bought else ""
    page = job.run.frontier / "frontier.html"
    made = "\n".join([headline(result), *lines(result), f"Page: {page} (numbers beside it)."])
    next_step = (
        f"marquee run --run {job.run} {words}" if words else f"marquee serve --run {job.run}"
    )
    output.finish({"run": str(job.run), **result}, made, next_step)


def _by_latency(point: dict[str, Any]) -> float:
    return float(point["load"]["p99_ms"])


def _frontier_row(point: dict[str, Any], result: dict[str, Any]) -> list[str]:
    quality, load = point["quality"], point["load"]
    marks = [word for word, is_set in (
        ("latency", point["best_for_latency"]), ("CPU", point["best_for_cpu"]),
    ) if is_set]  # fmt: skip
    bought = (result["budget"] or {}).get("configuration") == point["name"]
    name = point["name"] + (" (present)" if point["present"] else "") + (" ←" if bought else "")
    return [
        name,
        f"{quality['mean']:.4f}",
        f"{quality['low']:.4f}–{quality['high']:.4f}",
        f"{load['p99_ms']:.1f}",
        f"{load['cpu_s_per_1000']:.2f}",
        ", ".join(marks),
    ]
