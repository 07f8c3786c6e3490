"""The retriever stage: train the two towers, then embed the catalogue."""

from __future__ import annotations

import shutil
from typing import Any, Literal

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.inputs import FeatureTables, SampleBatches, sample_columns
from models.metrics import retrieval_metrics, top_k
from models.queries import Queries, held_out_queries
from models.training import Fit, Progress, Setting, gradient_step, load_weights, save_weights
from models.two_tower import (
    TwoTower,
    candidate_vectors,
    log_sampling_probability,
    query_vectors,
)
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.errors import TrainingError
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run, replaced_folder, write_json


def train_retriever(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Train with early stopping on validation recall@100, then refit on train + validation.

    Writes weights.npz, candidate_vectors.npy and report.json into the run's retriever folder.

    Returns:
        {"epochs", "valid_recall@100", "rows_per_s", "scores"}.
    """
    tf.keras.utils.set_random_seed(config.seed)
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    tables = FeatureTables(store, spec)
    setting = Setting(store, tables, config, run.checkpoints / "retriever", report)
    valid = _valid_queries(store, spec, config)
    model, progress = _fit(setting, "search", ("train",), valid=valid)
    searched = model
    if config.retriever.refit:
        model, _ = _fit(setting, "refit", ("train", "valid"), epochs=progress.best_epoch)
    summary = progress.summary("valid_recall@100")
    with replaced_folder(run.retriever) as target:
        for prefix, one in (("", model), ("search_", searched)):
            save_weights(one, target / f"{prefix}weights.npz")
            np.save(target / f"{prefix}candidate_vectors.npy", candidate_vectors(one, tables))
        write_json(target / "report.json", summary)
    shutil.rmtree(setting.checkpoints, ignore_errors=True)
    return summary


def _valid_queries(store: FeatureStore, spec: FeatureSpec, config: Config) -> Queries:
    columns = sample_columns(spec, ranker=False)
    queries = held_out_queries(store, "valid", columns)
    if len(queries) == 0:
        raise TrainingError(
            "no user has a new watch in the validation part",
            expected="watches in the last part of the log",
            next_step="use more data, or raise split.valid_fraction",
        )
    chosen = np.random.default_rng(config.seed).permutation(len(queries))
    return queries.take(np.sort(chosen[: config.retriever.max_valid_users]))


def _fit(
    setting: Setting,
    name: str,
    parts: tuple[str, ...],
    *,
    valid: Queries | None = None,
    epochs: int | None = None,
) -> tuple[TwoTower, Progress]:
    """Train on `parts`: with `valid` until its recall stops rising, else for `epochs` epochs."""
    store, tables, config = setting.store, setting.tables, setting.config
    settings = config.retriever
    counts = watch_counts(store, tables.spec, parts)
    model = build_two_tower(tables, config, log_sampling_probability(counts))
    optimizer = tf.keras.optimizers.Adam(settings.learning_rate)

    def loss_of(batch: Any) -> Any:
        rows = batch["video_row"]
        return model.loss(tables.query(batch), tables.candidate(rows), rows)

    batches = SampleBatches(
        store.samples(*parts),
        sample_columns(tables.spec, ranker=False),
        settings.batch_size,
        watched_only=True,
        shuffle=True,
    )
    fit = Fit(
        model=model,
        optimizer=optimizer,
        step=gradient_step(model, optimizer, loss_of),
        batches=batches,
        validate=None if valid is None else lambda: recall(model, tables, valid),
        checkpoints=setting.checkpoints / name,
        max_epochs=epochs or settings.max_epochs,
        patience=settings.patience,
    )
    return model, fit.run(setting.report, f"retriever {name}")


def watch_counts(
    store: FeatureStore, spec: FeatureSpec, parts: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """Watches per video row in the given parts; int64 [num_videos + 1]."""

    counts = np.zeros(spec.num_videos + 1, np.int64)
    for path in store.samples(*parts):
        frame = read_frame(path, columns=["video_row", "watched"])
        rows = frame["video_row"].to_numpy()[frame["watched"].to_numpy() == 1]
        counts += np.bincount(rows, minlength=len(counts))
    return counts


def recall(model: TwoTower, tables: FeatureTables, queries: Queries) -> float:
    """Recall@100 of `queries` over the full catalogue, by exact search."""
    found = top_k(
        query_vectors(model, tables, queries.samples),
        candidate_vectors(model, tables),
        queries.excluded,
        100,
    )
    return retrieval_metrics(found, queries.relevant, tables.spec.num_videos)["recall@100"]


def build_two_tower(
    tables: FeatureTables, config: Config, log_q: npt.NDArray[np.float32] | None = None
) -> TwoTower:
    """A built model with fresh weights."""
    spec = tables.spec
    zeros = np.zeros(spec.num_videos + 1, np.float32)
    model = TwoTower(spec, config.retriever, zeros if log_q is None else log_q)
    one = {name: tf.zeros([1], tf.int32) for name in sample_columns(spec, ranker=False)}
    model.query(tables.query(one))
    model.candidate(tables.candidate(tf.zeros([1], tf.int32)))
    return model


def load_two_tower(
    run: Run, config: Config, tables: FeatureTables, phase: Literal["final", "search"] = "final"
) -> TwoTower:
    """The trained model of a run; "search" has not seen the validation part."""
    name = "weights.npz" if phase == "final" else "search_weights.npz"
    path = run.require(run.retriever / name, "retriever", "marquee train")
    model = build_two_tower(tables, config)
    load_weights(model, path)
    return model
