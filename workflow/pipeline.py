"""The whole system on one page: raw watch logs in, a served two-stage recommender out.

    validate → features → train_retriever → train_ranker → index → export → serve → recommend

Each stage reads and writes the run folder only (workflow/run.py names every path) and is skipped
while its inputs have not changed. Imports sit inside the stages, so that asking for one verb does
not load TensorFlow for another.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workflow.console import Output, Report
from workflow.job import Job, Stage, carry_out, locked, save_contract, saved_settings
from workflow.run import Run
from workflow.staging import check_held_out

SERVING_CODE = Path(__file__).parent.parent / "triton_repo"


def _validate(job: Job, report: Report) -> dict[str, Any]:
    """Raw files → checked tables with row numbers instead of ids."""
    from workflow.data.sources import prepare_source
    from workflow.data.validate import validate

    contract, source = prepare_source(
        job.run, job.config, source=job.source, contract_file=job.contract_file, report=report
    )
    summary = validate(job.run, job.config, contract, source, report)
    save_contract(job.run, contract)
    return summary


def _features(job: Job, report: Report) -> dict[str, Any]:
    """Tables → encoded features by NVTabular, point-in-time histories, train/valid/test."""
    from workflow.features.build import build_features
    from workflow.features.cluster import dask_cluster

    with dask_cluster(job.dask_scheduler):
        return build_features(job.run, job.config, job.contract, report)


def _join(job: Job) -> None:
    """Meet the other workers before Merlin is imported, which starts TensorFlow."""
    from models.team import join

    join(job.workers)


def _train_retriever(job: Job, report: Report) -> dict[str, Any]:
    """Watches → query tower and candidate tower; the catalogue's vectors."""
    _join(job)
    from models.retriever import train_retriever

    return train_retriever(job.run, job.config, report)


def _train_ranker(job: Job, report: Report) -> dict[str, Any]:
    """Exposures and retrieved lists → DLRM, and the weights of its tasks in the final score."""
    _join(job)
    from models.ranker import train_ranker

    return train_ranker(job.run, job.config, report)


def _index(job: Job, report: Report) -> dict[str, Any]:
    """Candidate vectors → FAISS index, its search effort chosen by measured recall."""
    from models.index import build_index

    return build_index(job.run, job.config, report)


def _export(job: Job, report: Report) -> dict[str, Any]:
    """Everything → a Triton model repository that runs alone."""
    from triton_repo.export import export_repository

    return export_repository(job.run, job.config, job.contract, report)


def _source_key(job: Job) -> Any:
    from workflow.data.sources import source_key

    return [source_key(job.config, job.source, job.contract_file), job.config.validation]


STAGES = (
    Stage("validate", "Validate", (), _source_key, _validate, lambda run: run.data),
    Stage(
        "features", "Features", ("validate",),
        lambda job: [job.config.features, job.config.split, job.config.seed], _features,
        lambda run: run.features,
    ),
    Stage(
        "train_retriever", "Train retriever", ("features",),
        lambda job: [job.config.retriever, job.config.seed], _train_retriever,
        lambda run: run.retriever,
    ),
    Stage(
        "train_ranker", "Train ranker", ("features", "train_retriever"),
        lambda job: [job.config.ranker, job.config.seed], _train_ranker, lambda run: run.ranker,
    ),
    Stage(
        "index", "Index", ("train_retriever",),
        lambda job: [job.config.index, job.config.serving.num_candidates], _index,
        lambda run: run.index,
    ),
    Stage(
        "export", "Export", ("index", "train_ranker"),
        lambda job: [job.config.serving, job.config.page, sorted(SERVING_CODE.rglob("*.py"))],
        _export, lambda run: run.repository,
    ),
)  # fmt: skip


def run_stages(
    job: Job, output: Output, names: tuple[str, ...], *, force: bool = False, resume: bool = False
) -> list[dict[str, Any]]:
    """Carry out the named stages in pipeline order; one entry per stage."""
    with locked(job.run), saved_settings(job):
        return [
            carry_out(stage, job, output, force=force, resume=resume)
            for stage in STAGES
            if stage.name in names
        ]


def train(
    job: Job, output: Output, names: tuple[str, ...], *, force: bool = False, resume: bool = False
) -> list[dict[str, Any]]:
    """Carry out training stages, with other workers where `job` has some.

    Every worker computes the whole stage but for the gradients, of which it computes its share;
    what the first one writes stays, the others write into a folder that is removed.
    """
    if job.workers is None or job.workers.is_first:
        entries = run_stages(job, output, names, force=force, resume=resume)
    else:
        with TemporaryDirectory(prefix="marquee-worker-") as folder:
            other = replace(job, run=Run(folder))
            current = ("validate", "features", *_current(job, names, force))
            link_stages(other, job, *current)
            entries = run_stages(other, output, tuple(n for n in names if n not in current))
    if job.workers is not None:
        from models.team import leave

        leave()
    return entries


def _current(job: Job, names: tuple[str, ...], force: bool) -> list[str]:
    """Training stages that the first worker does not carry out."""
    current = []
    for stage in STAGES:
        if stage.name.startswith("train_"):
            if stage.name in names and (force or not stage.is_current(job)):
                break
            current.append(stage.name)
    return current


def run_all(job: Job, output: Output, **options: bool) -> list[dict[str, Any]]:
    """validate → … → export."""
    return run_stages(job, output, tuple(stage.name for stage in STAGES), **options)


def export_container(
    job: Job, output: Output, *, device: str, tensorrt: bool, force: bool
) -> dict[str, Any]:
    """The exported bundle → a repository for a stock Triton; see triton_repo/container.py."""
    from triton_repo.container import export_container as lay_out

    run_stages(job, output, ("export",), force=force)
    with locked(job.run), output.stage("Lay out for containers"):
        return lay_out(job.run, job.config, job.contract, device=device, tensorrt=tensorrt)


def refresh(
    job: Job, output: Output, *, videos: Path | None, withdrawn: Path | None
) -> dict[str, Any]:
    """New and withdrawn videos → the next bundle, without training; see triton_repo/refresh.py.

    An export that is out of date is made first: rows and vectors must be of the same models.
    """
    from triton_repo.refresh import refresh_repository

    run_stages(job, output, ("index", "export"))
    with locked(job.run), output.stage("Refresh") as report:
        return refresh_repository(
            job.run, job.config, job.contract, videos=videos, withdrawn=withdrawn, report=report
        )


def evaluate(job: Job, output: Output) -> dict[str, Any]:
    """All protocols, baselines, the ranker, the served list, off-policy; see models/evaluation.

    Further seeds are trained in `evaluation/seed-<n>`. Leave-last-out holds out other events than
    the run's temporal split, so it trains retrievers of its own in `evaluation/leave_last_out` of
    each seed. What is current is not trained again.

    Raises:
        ConfigError: `marquee update` has trained the models on the test part.
    """
    from models.evaluation.evaluate import evaluate as evaluate_models
    from models.evaluation.learned import Trained
    from models.evaluation.off_policy_run import evaluate_off_policy
    from models.evaluation.report import write_report

    job.run.require(job.run.ranker, "ranker", "marquee train")
    check_held_out(job.run)
    first = job.config.seed
    jobs = [job]
    jobs += [_seed(job, first + n, output) for n in range(1, job.config.evaluation.seeds)]
    others: list[Job] = []
    if job.config.split.protocol == "temporal":
        for one in jobs:
            others.append(leave_last_out(one, output, others[0] if others else None))
    with output.stage("Evaluate") as report:
        evaluation = evaluate_models(
            [Trained(one.run, one.config) for one in jobs],
            [Trained(one.run, one.config) for one in others],
            report=report,
        )
        evaluation.result["off_policy"] = evaluate_off_policy(
            job.run, job.config, job.contract, report
        )
        evaluation.save(job.run)
        write_report(evaluation.result, job.run.evaluation / "report.html")
    return evaluation.result


def _seed(job: Job, seed: int, output: Output) -> Job:
    """The same data, features and settings, trained with another seed."""
    other = Job(
        Run(job.run.evaluation / f"seed-{seed}"), job.config.model_copy(update={"seed": seed})
    )
    link_stages(other, job, "validate", "features")
    run_stages(other, output, ("train_retriever", "train_ranker", "index"))
    return other


def leave_last_out(job: Job, output: Output, first: Job | None = None) -> Job:
    """The same data and settings, trained without each user's last watches.

    The validation part is one watch per user, too little to be worth a second training with it.

    Args:
        first: the leave-last-out job of another seed, whose features are used.
    """
    split = job.config.split.model_copy(update={"protocol": "leave_last_out"})
    retriever = job.config.retriever.model_copy(update={"refit": False})
    settings = job.config.model_copy(update={"split": split, "retriever": retriever})
    other = Job(Run(job.run.evaluation / "leave_last_out"), settings)
    link_stages(other, job, "validate")
    if first is None:
        run_stages(other, output, ("features", "train_retriever"))
    else:
        link_stages(other, first, "features")
        run_stages(other, output, ("train_retriever",))
    return other


def link_stages(job: Job, source: Job, *stages: str) -> None:
    """Let `job` use the results of stages that `source` has carried out."""
    save_contract(job.run, source.contract)
    made = {stage.name: stage.made for stage in STAGES}
    for name in stages:
        ours, theirs = made[name](job.run), made[name](source.run)
        if not ours.exists():
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.unlink(missing_ok=True)
            ours.symlink_to(os.path.relpath(theirs, ours.parent))
        recorded = source.run.recorded(name) or {"key": ""}
        job.run.record(name, recorded["key"], 0.0, {})
