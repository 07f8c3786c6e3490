"""What the verbs about pages do and print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from workflow.console import Output
from workflow.errors import ConfigError, DataError
from workflow.job import Job
from workflow.run import Run


def print_page(job: Job, output: Output, user: str, *, at: str | None, **options: Any) -> None:
    """One user's page, a line per row, or as JSON."""
    from triton_repo.page import page
    from triton_repo.recommend import parse_time

    moment = None if at is None else parse_time(at)
    with output.stage(f"Page for user {user}"):
        answer = page(job.run, job.contract, user, at=moment, **options)
    _print_rows(output, answer)
    record = options["record"]
    if record is not None:
        answer["record"] = str(record)
    next_step = f"marquee page --run {job.run} --user {user} --cursor …"
    if record is not None:
        next_step = f"marquee replay {record} --run {job.run}"
    output.finish(answer, _summary(answer), next_step if answer["cursor"] or record else "")


def print_replay(job: Job, output: Output, record: Path) -> None:
    """The page of a log record, made again.

    Raises:
        DataError: it is another page than the record's.
    """
    from triton_repo.page import replay

    with output.stage(f"Replay {record}"):
        answer = replay(job.run, job.contract, record)
    if not answer["identical"]:
        raise DataError(
            f"the page made from {record} is another one",
            found="different " + ", ".join(answer["different"]),
            next_step="check that the record was not changed",
        )
    _print_rows(output, answer)
    output.finish(answer, f"{_summary(answer)} It is the page in the record.")


def open_ui(
    run: Path | None, deployment: Path | None, host: str, port: int, output: Output, *, opens: bool
) -> None:
    """The web page of a run or a deployment, until Ctrl-C.

    Raises:
        ConfigError: both are given.
    """
    from triton_repo.deployment import Deployment
    from triton_repo.ui.serve import serve_ui

    if deployment is None:
        job = Job.load(Run(run or Path("runs") / "sim"))
        serve_ui(job.run, job.contract, host, port, output, opens=opens)
        return
    if run is not None:
        raise ConfigError("--run and --deployment were both given", expected="one of them")
    serve_ui(Deployment(deployment), None, host, port, output, opens=opens)


def _summary(answer: dict[str, Any]) -> str:
    count = sum(len(row["videos"]) for row in answer["rows"])
    return f"{len(answer['rows'])} rows, {count} videos, bundle {answer['version']}."


def _print_rows(output: Output, answer: dict[str, Any]) -> None:
    """Title and videos of each row; what is there by chance has its chance beside it."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(answer["at"]))
    output.show(
        f"[bold]User {escape(str(answer['user_id']))}, {moment} UTC, status {answer['status']}[/]"
    )
    for row in answer["rows"]:
        output.show(f"[bold]{escape(row['title'])}[/] [dim]({len(row['videos'])})[/]")
        shown = [_video(video) for video in row["videos"]]
        output.show("  " + _fitting(shown, output.results.width - 4))


def _video(video: dict[str, Any]) -> str:
    text = video["title"] or str(video["video_id"])
    return text if video["propensity"] == 1 else f"{text} (new, 1 in {1 / video['propensity']:.0f})"


def _fitting(texts: list[str], width: int) -> str:
    """As many of the texts as one line holds."""
    line = ""
    for text in texts:
        longer = f"{line} · {text}" if line else text
        if len(longer) > width:
            return escape(f"{line or text[:width]} …")
        line = longer
    return escape(line)
