"""The whole system on one page: raw watch logs in, a served two-stage recommender out.

    validate → features → train_retriever → train_ranker → index → export → serve → recommend

Each stage reads and writes the run folder only (workflow/run.py names every path) and is skipped
while its inputs have not changed. Imports sit inside the stages, so that asking for one verb does
not load TensorFlow for another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow.console import Output, Report
from workflow.job import Job, Stage, carry_out, locked, save_contract, saved_settings
from workflow.run import Run

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

    return build_features(job.run, job.config, job.contract, report)


def _train_retriever(job: Job, report: Report) -> dict[str, Any]:
    """Watches → query tower and candidate tower; the catalogue's vectors."""
    from models.retriever import train_retriever

    return train_retriever(job.run, job.config, report)


def _train_ranker(job: Job, report: Report) -> dict[str, Any]:
    """Exposures and retrieved lists → DLRM, and the weights of its tasks in the final score."""
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
        lambda job: [job.config.serving, sorted(SERVING_CODE.rglob("*.py"))], _export,
        lambda run: run.repository,
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


def run_all(job: Job, output: Output, **options: bool) -> list[dict[str, Any]]:
    """validate → … → export."""
    return run_stages(job, output, tuple(stage.name for stage in STAGES), **options)


def evaluate(job: Job, output: Output) -> dict[str, Any]:
    """Retrieval under both protocols, the ranker, and popularity for comparison.

    Leave-last-out holds out other events than the run's temporal split, so it trains a retriever
    of its own in `evaluation/leave_last_out` (skipped while current).
    """
    from models.evaluate import evaluate_popularity, evaluate_ranker, evaluate_retrieval
    from workflow.run import write_json

    with output.stage("Evaluate temporal"):
        job.run.require(job.run.ranker, "ranker", "marquee train")
        temporal = evaluate_retrieval(job.run, job.config)
        baselines = {
            "popularity": evaluate_popularity(job.run),
            "popularity_30_days": evaluate_popularity(job.run, recent_only=True),
        }
        ranker = evaluate_ranker(job.run, job.config)
    other = leave_last_out(job, output)
    with output.stage("Evaluate leave-last-out"):
        last_out = evaluate_retrieval(other.run, other.config)
        last_out_baselines = {"popularity": evaluate_popularity(other.run)}
    result = {
        "retrieval": {"temporal": temporal, "leave_last_out": last_out},
        "ranker": ranker,
        "baselines": {"temporal": baselines, "leave_last_out": last_out_baselines},
    }
    write_json(job.run.evaluation / "metrics.json", result)
    return result


def leave_last_out(job: Job, output: Output) -> Job:
    """The same data and settings, trained without each user's last watches.

    The validation part is one watch per user, too little to be worth a second training with it.
    """
    split = job.config.split.model_copy(update={"protocol": "leave_last_out"})
    retriever = job.config.retriever.model_copy(update={"refit": False})
    run = Run(job.run.evaluation / "leave_last_out")
    other = Job(run, job.config.model_copy(update={"split": split, "retriever": retriever}))
    run.root.mkdir(parents=True, exist_ok=True)
    if not run.data.exists():
        run.data.symlink_to("../../data")
    save_contract(run, job.contract)
    recorded = job.run.recorded("validate") or {"key": ""}
    run.record("validate", recorded["key"], 0.0, {})
    run_stages(other, output, ("features", "train_retriever"))
    return other
