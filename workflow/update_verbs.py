"""What `marquee update` does and prints."""

from __future__ import annotations

from pathlib import Path

from workflow.console import Output
from workflow.job import Job
from workflow.update import update


def update_run(
    job: Job, output: Output, events: Path, users: Path | None, videos: Path | None
) -> None:
    """Append a day, go on training, and say what came and what it cost."""
    result = update(job, output, events=events, users=users, videos=videos)
    rows = [
        ["events", f"{result['events']:,}"],
        ["new users", f"{result['users']:,}"],
        ["new videos", f"{result['videos']:,}"],
        *([f"dropped: {why}", f"{rows:,}"] for why, rows in result["dropped"].items()),
        ["samples trained on", f"{result['samples']:,}"],
        ["CPU seconds", f"{result['cpu_s']:.1f}"],
    ]
    output.table(f"Update {result['update']} of {job.run}", ["", ""], rows)
    made = f"Made bundle {result['version']} in {job.run.repository}."
    output.finish(result, made, f"marquee deploy {job.run}")
