"""`marquee update`: one more day of watch logs, and models that have learned from it.

    append → features go on → retriever and ranker go on → index → export

What changes is made in `<run>/update` and takes its place at once (workflow/staging.py).
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from workflow.console import Output
from workflow.errors import ConfigError
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.job import Job, locked
from workflow.pipeline import STAGES, run_stages
from workflow.run import Run
from workflow.staging import commit, finish, is_updated, updated_manifest

TRAINED = ("features", "train_retriever", "train_ranker")


def update(
    job: Job, output: Output, *, events: Path, users: Path | None = None, videos: Path | None = None
) -> dict[str, Any]:
    """Append new events and make the next bundle.

    Args:
        events: a raw file, or a folder of raw files, as the run's contract declares events.
        users, videos: raw files of new users and videos, or of known ones with new values.
    Returns:
        {"events", "users", "videos", "dropped", "first_timestamp", "last_timestamp", "samples",
        "cpu_s", "seconds", "version", "update": how many this run has had}.
    Raises:
        ConfigError: the run is not finished, or its protocol is leave_last_out.
        ContractError, DataError: as `append_events`.
    """
    started, cpu_before = time.monotonic(), cpu_s()
    files = {"events": events, "users": users, "videos": videos}
    given = {name: path for name, path in files.items() if path is not None}
    with locked(job.run):
        _check(job)
        try:
            record = _make(job, output, given)
        except Exception:
            finish(job.run)
            raise
    [_, exported] = run_stages(job, output, ("index", "export"))
    return record | {
        "version": exported["summary"]["version"],
        "cpu_s": round(cpu_s() - cpu_before, 1),
        "seconds": round(time.monotonic() - started, 1),
        "update": len(job.run.updates()),
    }


def _check(job: Job) -> None:
    if job.config.split.protocol != "temporal":
        raise ConfigError(
            "a run that holds out each user's last watches cannot be updated",
            expected='split.protocol = "temporal"',
        )
    for stage in STAGES:
        if stage.name in TRAINED and not stage.is_current(job):
            raise ConfigError(
                f"run {job.run} is not finished: {stage.name} is out of date",
                next_step=f"marquee run --run {job.run}",
            )


def _make(job: Job, output: Output, files: dict[str, Path]) -> dict[str, Any]:
    """The new data, features and models, in their place."""
    from models.update import update_models
    from triton_repo.catalogue import Catalogue
    from workflow.data.append import append_events
    from workflow.features.extend import extend_features

    run, staged = job.run, Run(job.run.staged)
    with output.stage("Append") as report:
        refreshed = Catalogue.of(run).added
        new = append_events(
            run, staged, job.config, job.contract, files, report, refreshed=refreshed
        )
    with output.stage("Features") as report:
        counts = extend_features(run, staged, job.config, job.contract, report)
    with output.stage("Train") as report:
        trained = update_models(run, staged, job.config, _new_since(run, job), report)
    shown = ("events", "users", "videos", "dropped", "first_timestamp", "last_timestamp")
    record = {name: new[name] for name in shown} | trained
    totals = {f"num_{name}": new[f"num_{name}"] for name in ("users", "videos")}
    summaries = {
        "validate": totals | {"last_timestamp": new["last_timestamp"]},
        "features": counts,
        "train_retriever": {},
        "train_ranker": {},
    }
    commit(run, updated_manifest(run, record, summaries))
    return record


def _new_since(run: Run, job: Job) -> int:
    """From which second on the log is new to the models of the run."""
    spec = FeatureSpec.load(FeatureStore(run).root / "spec.json")
    if is_updated(run, "train_retriever"):
        return spec.last_event + 1
    whole = job.config.retriever.refit and job.config.ranker.refit
    return spec.test_from if whole else spec.valid_from


def cpu_s() -> float:
    """Processor seconds of this process and the ones that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
