"""What `marquee refresh` does and prints."""

from __future__ import annotations

from pathlib import Path

from workflow import pipeline
from workflow.console import Output
from workflow.errors import ConfigError
from workflow.job import Job


def refresh_run(job: Job, output: Output, videos: Path | None, withdrawn: Path | None) -> None:
    """Make the next bundle and say what is in it.

    Raises:
        ConfigError: neither file was given.
    """
    if videos is None and withdrawn is None:
        raise ConfigError(
            "nothing to refresh with", expected="--videos FILE, --withdrawn FILE or both"
        )
    result = pipeline.refresh(job, output, videos=videos, withdrawn=withdrawn)
    index = result["index"]
    next_step = f"marquee deploy {job.run}"
    if index is None:
        output.finish(result, f"Nothing to change: bundle {result['version']} stays.", next_step)
        return
    words = {
        "added": "added", "returned": "returned after having been withdrawn",
        "known": "known already, left as they are", "withdrawn": "withdrawn",
        "withdrawn_before": "withdrawn already",
    }  # fmt: skip
    rows = [[text, f"{result[name]:,}"] for name, text in words.items() if result[name]]
    rows.append(["can be recommended now", f"{result['num_videos']:,}"])
    output.table(f"Bundle {result['version']}, after {result['previous']}", ["videos", ""], rows)
    recall = f"recall@{index['num_candidates']} against exact search"
    effort = f"{index['kind']} index"
    if index["effort"] != index["effort_before"]:
        low, target = index["recall_before"], job.config.index.target_recall
        output.show(
            f"{recall} had fallen to {low:.4f}, below {target}: "
            f"effort {index['effort_before']} -> {index['effort']}."
        )
    if index["recall_vs_exact"] < job.config.index.target_recall:
        output.show(
            f"[yellow]{effort}[/] does not reach index.target_recall: marquee index --force"
        )
    made = f"Made bundle {result['version']} in {job.run.repository}: {effort}, {recall} "
    output.finish(result, f"{made}{index['recall_vs_exact']:.4f}.", next_step)
