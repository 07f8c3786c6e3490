"""What `marquee batch` and `marquee frontier` do and print."""

from __future__ import annotations

import os
from pathlib import Path

from workflow.console import Output
from workflow.job import Job
from workflow.verbs import request_time


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
    from triton_repo.local import bundle_key

    answering = Answering(bundle_key(job.run), request_time(job, at), top_k)
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
