"""What the verbs do and print, between the command line and the pipeline."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from workflow import pipeline
from workflow.console import Output
from workflow.errors import ConfigError, MarqueeError
from workflow.job import Job
from workflow.run import write_bytes

Entries = list[dict[str, Any]]


def finish_run(
    job: Job, output: Output, *, user: str | None, top_k: int, force: bool, resume: bool
) -> None:
    """All stages, then serve and recommend; a summary table and the next command."""
    started = time.monotonic()
    entries = pipeline.run_all(job, output, force=force, resume=resume)
    user = user or _some_user(job)
    with output.stage("Serve and recommend"):
        answer = _recommend(job, user, top_k=top_k, at=None, context={}, in_process=False)
    seconds = time.monotonic() - started
    output.table(f"Run {job.run}", ["stage", "seconds", "result"], _summary_rows(entries))
    _print_items(output, answer)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "run": str(job.run),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(memory),
        "stages": entries,
        "recommendations": answer,
    }
    made = f"Made {job.run} in {seconds:.0f} s, peak memory {memory:.0f} MB."
    output.finish(result, made, f"marquee bench --run {job.run}")


def report_stages(job: Job, output: Output, entries: Entries, next_step: str) -> None:
    """What the stages of one verb recorded."""
    output.table(f"Run {job.run}", ["stage", "seconds", "result"], _summary_rows(entries))
    result = {"run": str(job.run), "stages": entries}
    output.finish(result, next_step=next_step)


def train_run(
    job: Job, output: Output, names: tuple[str, ...], *, force: bool, resume: bool
) -> None:
    """Train, alone or as one of several workers; only the first one's models are kept."""
    workers = job.workers
    if workers is not None:
        who = "the first, whose models are kept" if workers.is_first else "keeps nothing"
        number = f"worker {workers.index} of {len(workers.addresses)}"
        output.say(f"• Data parallel: {number} ({who})")
    entries = pipeline.train(job, output, names, force=force, resume=resume)
    report_stages(job, output, entries, f"marquee index --run {job.run}")


def _summary_rows(entries: Entries) -> list[list[str]]:
    return [
        [
            entry["stage"],
            "up to date" if entry["skipped"] else f"{entry['seconds']:.1f}",
            _short(entry["summary"]),
        ]
        for entry in entries
    ]


HEADLINES = (
    "num_events", "num_users", "num_videos", "num_train", "num_features", "epochs",
    "valid_recall@100", "valid_auc", "rows_per_s", "kind", "effort", "recall_vs_exact",
    "num_candidates", "megabytes",
)  # fmt: skip


def _short(summary: dict[str, Any] | None) -> str:
    """The headline numbers of a stage's summary, on one line."""
    shown = {name: summary[name] for name in HEADLINES if name in summary} if summary else {}
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
        for name, value in shown.items()
    )


def _some_user(job: Job) -> str:
    """A user with a history, the same one every time."""
    import numpy as np

    from workflow.features.encoded import FeatureStore

    store = FeatureStore(job.run)
    watches = np.diff(store.histories().start)[1:]
    typical = int(np.argmin(np.abs(watches - np.median(watches[watches > 0]))))
    user = store.user("user_id")[typical]
    return user.decode() if isinstance(user, bytes) else str(user)


# --- validate ---------------------------------------------------------------------------
def report_validation(job: Job, output: Output, *, force: bool) -> None:
    """PASS or FAIL per column; on failure the table still appears, then the error."""
    from workflow.data.findings import columns_of

    try:
        entries = pipeline.run_stages(job, output, ("validate",), force=force)
    except MarqueeError as error:
        _print_columns(output, columns_of(error))
        raise
    summary = entries[0]["summary"]
    _print_columns(output, summary["columns"])
    made = (
        f"{summary['num_events']:,} events of {summary['num_users']:,} users and "
        f"{summary['num_videos']:,} videos in {job.run}."
    )
    result = {"run": str(job.run), "skipped": entries[0]["skipped"], **summary}
    output.finish(result, made, f"marquee features --run {job.run}")


def _print_columns(output: Output, columns: list[dict[str, Any]]) -> None:
    """One line per column: PASS events.user_id (user_id) detail, examples."""
    colours = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
    for column in columns:
        result = column["result"]
        words = [f"{column['table']}.{column['column']} ({column['role']})", column["detail"]]
        if column["examples"]:
            words.append("e.g. " + ", ".join(map(str, column["examples"])))
        line = "  ".join(word for word in words if word)
        output.show(f"[{colours[result]}]{result}[/]  {escape(line)}")


def write_draft(folder: Path, to: Path, output: Output, *, force: bool) -> None:
    """A first contract from the files of a folder."""
    from workflow.data.init import draft_contract

    if to.exists() and not force:
        raise ConfigError(
            f"{to} exists", next_step="choose --to FILE, or overwrite it with --force"
        )
    text = draft_contract(folder)
    write_bytes(to, text.encode())
    next_step = f"edit {to}, then: marquee run --contract {to} --source {folder}"
    output.finish({"contract": str(to)}, f"Wrote {to}.", next_step)


# --- recommend --------------------------------------------------------------------------
def print_recommendations(
    job: Job,
    output: Output,
    user: str,
    *,
    top_k: int,
    at: str | None,
    context: dict[str, str],
    in_process: bool,
) -> None:
    """One user\'s list as a table with titles, or as JSON."""
    with output.stage(f"Recommend for user {user}"):
        answer = _recommend(job, user, top_k=top_k, at=at, context=context, in_process=in_process)
    _print_items(output, answer)
    output.finish(answer, next_step=f"marquee bench --run {job.run}")


def context_options(arguments: list[str]) -> dict[str, str]:
    """--device tv --country=de → {"device": "tv", "country": "de"}."""
    pairs: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--") or not (equals or rest):
            raise ConfigError(
                f"{option!r} is not understood",
                expected="options like --device tv",
                next_step="marquee recommend --help",
            )
        pairs[option.removeprefix("--").replace("-", "_")] = value if equals else rest.pop(0)
    return pairs


def _recommend(job: Job, user: str, *, at: str | None, **options: Any) -> dict[str, Any]:
    from triton_repo.recommend import parse_time, recommend

    moment = None if at is None else parse_time(at)
    return recommend(job.run, job.contract, user, at=moment, **options)


def print_watch(
    job: Job, output: Output, user: str, video: str, *, at: str | None, **known: Any
) -> None:
    """Send one watch; say what is kept of the user."""
    from triton_repo.recommend import parse_time, typed_id
    from triton_repo.watch import watch

    moment = None if at is None else parse_time(at)
    with output.stage(f"Watch of user {user}"):
        kept = watch(job.run, user, video, at=moment, **known)
    if not kept["in_catalogue"]:
        output.say(f"[yellow]Video {escape(video)} is not in this run[/]: no effect for now.")
    ids = {
        "user_id": typed_id(job.contract, "user_id", user),
        "video_id": typed_id(job.contract, "video_id", video),
    }
    made = f"Kept; events of user {user} since the export: {kept['num_events']}."
    output.finish({**ids, **kept}, made, f"marquee recommend --run {job.run} --user {user}")


def _print_items(output: Output, answer: dict[str, Any]) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(answer["at"]))
    title = f"User {answer['user_id']}, {moment} UTC, status {answer['status']}"
    rows = [
        [rank, item["video_id"], f"{item['score']:.4f}", item["title"]]
        for rank, item in enumerate(answer["items"], start=1)
    ]
    output.table(title, ["#", "video_id", "score", "title"], rows)


# --- bench and evaluate -----------------------------------------------------------------
def print_benchmark(job: Job, output: Output, concurrencies: list[int], duration_s: float) -> None:
    """perf_analyzer's table of this run's server."""
    from triton_repo.bench import bench

    with output.stage("Benchmark") as report:
        result = bench(
            job.run, concurrencies=tuple(concurrencies), duration_s=duration_s, report=report
        )
    columns = [
        "concurrency", "p50_ms", "p95_ms", "p99_ms", "requests_per_s", "server_cpu_ms_per_request",
    ]  # fmt: skip
    rows = [[entry[column] for column in columns] for entry in result["results"]]
    title = (
        f"{result['num_videos']:,} videos, {result['num_candidates']} candidates, "
        f"recall against exact search {result['recall_vs_exact']}"
    )
    output.table(title, columns, rows)
    output.finish(result, f"Saved in {job.run.benchmark}.", f"marquee evaluate --run {job.run}")


def print_evaluation(job: Job, output: Output) -> None:
    """Tables of retrieval, ranking and off-policy estimates; where the report is."""
    from models.evaluation import names

    result = pipeline.evaluate(job, output)
    for protocol, part in result["retrieval"].items():
        title = f"Retrieval, {names.protocol(protocol)}, {part['users']:,} users"
        shown = ["recall@10", "recall@100", "ndcg@10", "coverage@10"]
        output.table(title, *_metric_table(part["models"], shown))
        for model, reason in part["skipped"].items():
            output.say(f"[yellow]{names.model(model)} was not run[/]: {reason}")
    if result["ranker"]:
        title = f"Ranker, {result['ranker']['events']:,} events of the test part"
        shown = ["auc", "per_user_auc", "log_loss", "ece", "watch_mae_s", "xauc"]
        output.table(title, *_metric_table(result["ranker"]["models"], shown))
    if result["end_to_end"]:
        title = f"Served list, {result['end_to_end']['users']:,} users"
        shown = ["recall@10", "ndcg@10", "coverage@10"]
        output.table(title, *_metric_table(result["end_to_end"]["metrics"], shown))
    made = f"Report: {job.run.evaluation / 'report.html'} (numbers in metrics.json beside it)."
    output.finish(result, made, f"marquee serve --run {job.run}")


def _metric_table(models: dict[str, Any], shown: list[str]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the means of those metrics that any of the models has."""
    from models.evaluation import names

    shown = [name for name in shown if any(name in metrics for metrics in models.values())]
    rows = [
        [
            names.model(model),
            *(names.shown(m, metrics[m]["mean"]) if m in metrics else "" for m in shown),
        ]
        for model, metrics in models.items()
    ]
    return ["model", *(names.metric(name).title for name in shown)], rows


def print_comparison(first: Job, second: Job, output: Output, report: Path | None) -> None:
    """Two runs side by side per protocol and metric, with a verdict on the second."""
    from models.evaluation import compare, names

    comparison = compare.compare_runs(first, second)
    for group, part in comparison["groups"].items():
        rows = [_compared_row(name, values) for name, values in part["metrics"].items()]
        columns = ["metric", "first", "second", "difference", "95% interval", "second run is"]
        title = f"{names.protocol(group)}, {part['users']:,} users in both"
        output.table(title, columns, rows)
    made = "\n".join([compare.headline(comparison), *compare.summary(comparison)])
    if report is not None:
        compare.write_comparison(comparison, report)
        made += f"\nWrote {report}."
    output.finish(comparison, made)


def _compared_row(name: str, values: dict[str, Any]) -> list[str]:
    from models.evaluation import names

    low, high = (names.shown(name, values[end], signed=True) for end in ("low", "high"))
    return [
        names.metric(name).title,
        names.shown(name, values["first"]["mean"]),
        names.shown(name, values["second"]["mean"]),
        names.shown(name, values["difference"], signed=True),
        f"{low} to {high}",
        names.VERDICTS.get(values["verdict"], ""),
    ]
