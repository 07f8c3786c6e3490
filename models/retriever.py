"""The retriever stage: train the two towers, then embed the catalogue."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, Literal

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf

from models.blend import MAX_QUERIES, Blend, Parts, choose_blend
from models.co_watch import co_watch_vectors, log_popularity, trend
from models.cold import cold_boost
from models.inputs import FeatureTables, SampleBatches, sample_columns
from models.metrics import Float32, Int64, list_quality, ranking_metrics, top_k
from models.queries import Queries, held_out_queries
from models.targets import OBJECTIVES, Goal, Targets
from models.team import team
from models.training import Fit, Progress, Setting, gradient_step, load_weights, save_weights
from models.two_tower import (
    TwoTower,
    candidate_vectors,
    log_draw_probability,
    query_vectors,
)
from models.watches import Watches
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.errors import TrainingError
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FIRST_VALUE, FeatureSpec
from workflow.run import Run, replaced_folder, write_json


def train_retriever(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Try the objectives on the training part, keep the best, then refit on train + validation.

    Training stops early on validation recall@100. The blend (models/blend.py) is chosen on the
    same queries. Writes weights.npz, candidate_vectors.npy, the same of the search phase with the
    prefix "search_" (which has not seen the validation part), and report.json.

    Returns:
        {"objective", "epochs", "valid_recall@100", "rows_per_s", "blend", "tried"};
        "tried" is the list_quality of each objective after the race.
    """
    tf.keras.utils.set_random_seed(config.seed)
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    setting = Setting(store, tables, config, run.checkpoints / "retriever", report)
    valid = _valid_queries(store, tables.spec, config)
    watches = Watches.read(store, tables.spec, "train")
    searched, progress, summary = _search(setting, watches, valid)
    blend = _choose_blend(searched, setting, watches, valid) if config.retriever.blend else Blend()
    fill_fixed(searched, setting, watches, blend, valid)
    blended = recall(searched, tables, valid)
    summary |= {"blend": blend.as_dict(), "valid_recall@100": round(blended, 4)}
    model = searched
    if config.retriever.refit:
        everything = Watches.read(store, tables.spec, "train", "valid")
        model, _ = _fit(
            setting, "refit", ("train", "valid"), everything, summary["objective"],
            epochs=progress.best_epoch,
        )  # fmt: skip
        fill_fixed(model, setting, everything, blend, valid)
    with replaced_folder(run.retriever) as target:
        for prefix, one in (("", model), ("search_", searched)):
            save_weights(one, target / f"{prefix}weights.npz")
            np.save(target / f"{prefix}candidate_vectors.npy", candidate_vectors(one, tables))
        write_json(target / "report.json", summary)
    shutil.rmtree(setting.checkpoints, ignore_errors=True)
    return summary


RACE_EPOCHS = 2  # of every objective; only the better one is trained to its end


def _search(
    setting: Setting, watches: Watches, valid: Queries
) -> tuple[TwoTower, Progress, dict[str, Any]]:
    """The best of the configured objectives: (model, its progress, what to report).

    The race is decided by both headline metrics: recall@100 alone leaves ties to chance, where
    the first ten may differ clearly.
    """
    goals = setting.config.retriever.objectives
    tried: dict[Goal, float] = {}
    if len(goals) > 1:
        for goal in goals:
            model, _ = _fit(
                setting, f"search {goal}", ("train",), watches, goal, valid=valid,
                epochs=RACE_EPOCHS,
            )  # fmt: skip
            lists = _best_lists(model, setting.tables, valid)
            [quality] = team().agreed([float(list_quality(lists, valid.relevant).mean())])
            tried[goal] = round(quality, 4)
    goal = max(goals, key=lambda goal: tried.get(goal, 0.0))
    # Continues from the checkpoints of the race.
    model, progress = _fit(setting, f"search {goal}", ("train",), watches, goal, valid=valid)
    summary = progress.summary("valid_recall@100")
    return model, progress, summary | {"objective": goal, "tried": tried}


def _valid_queries(store: FeatureStore, spec: FeatureSpec, config: Config) -> Queries:
    queries = held_out_queries(store, "valid", sample_columns(spec, ranker=False))
    if len(queries) == 0:
        raise TrainingError(
            "no user has a new watch in the validation part",
            expected="watches in the last part of the log",
            next_step="use more data, or raise split.valid_fraction",
        )
    return queries.sample(config.retriever.max_valid_users, config.seed)


def _fit(
    setting: Setting,
    name: str,
    parts: tuple[str, ...],
    watches: Watches,
    goal: Goal,
    *,
    valid: Queries | None = None,
    epochs: int | None = None,
) -> tuple[TwoTower, Progress]:
    """Train on `parts` for at most `epochs` epochs, with `valid` until its recall stops rising.

    The learning rate falls linearly over `max_epochs`, also where training ends before them.
    """
    store, tables, config = setting.store, setting.tables, setting.config
    settings = config.retriever
    model = build_two_tower(tables, config, goal)
    co_watch = co_watch_vectors(watches, settings.embedding_dim)
    model.start_from(by_video_index(co_watch.history, tables))
    batches = SampleBatches(
        store.samples(*parts),
        sample_columns(tables.spec, ranker=False),
        settings.batch_size,
        watched_only=True,
        shuffle=True,
        max_rows=settings.max_rows_per_epoch,
    )
    decay = tf.keras.optimizers.schedules.PolynomialDecay(
        settings.learning_rate, max(settings.max_epochs * len(batches), 1), 0.0
    )
    optimizer = tf.keras.optimizers.Adam(decay)
    fit = Fit(
        model=model,
        optimizer=optimizer,
        step=gradient_step(model, optimizer, batch_loss(model, setting, watches)),
        batches=batches,
        validate=None if valid is None else lambda: recall(model, tables, valid),
        checkpoints=setting.checkpoints / name.replace(" ", "_"),
        max_epochs=epochs or settings.max_epochs,
        patience=settings.patience,
    )
    return model, fit.run(setting.report, f"retriever {name}")


def batch_loss(model: TwoTower, setting: Setting, watches: Watches) -> Callable[[Any], Any]:
    """batch of samples -> loss over the distinct videos that the batch drew."""
    tables, settings, objective = setting.tables, setting.config.retriever, model.objective
    per_user = np.bincount(watches.user_row, minlength=watches.num_users + 1)
    targets = Targets(setting.store.histories(), per_user)
    draws = settings.batch_size * objective.num_targets
    log_q = tf.constant(log_draw_probability(watches.counts, draws))

    def loss_of(batch: Any) -> Any:
        drawn = targets.draw(batch, objective)
        distinct, place = tf.unique(tf.reshape(drawn, [-1]))
        position = tf.reshape(place, tf.shape(drawn))
        correction = tf.gather(log_q, distinct) if settings.logq_correction else None
        rows, position = team().mine((batch, position))
        return model.loss(tables.query(rows), tables.candidate(distinct), position, correction)

    return loss_of


def by_video_index(values: Float32, tables: FeatureTables) -> Float32:
    """[num_videos + 1, dim] by video_row -> [cardinality, dim] by video_index.

    Videos that share the out-of-vocabulary index get zeros.
    """
    index = np.asarray(tables.video_index)
    result = np.zeros((tables.spec["video_index"].cardinality, values.shape[1]), np.float32)
    known = index >= FIRST_VALUE
    result[index[known]] = values[known]
    return result


def _choose_blend(model: TwoTower, setting: Setting, watches: Watches, valid: Queries) -> Blend:
    """The blend that validation users with a history prefer; each part is scored once."""
    if valid.has_history.any():
        valid = valid.take(np.flatnonzero(valid.has_history))
    queries = valid.sample(MAX_QUERIES, setting.config.seed)
    _set_fixed(model, setting.tables, watches, Blend(co_watch=1.0))
    vectors = query_vectors(model, setting.tables, queries.samples)
    candidates = candidate_vectors(model, setting.tables)
    learned = setting.config.retriever.embedding_dim
    together = vectors @ candidates.T
    co_watch = vectors[:, learned:-1] @ candidates[:, learned:-1].T
    parts = Parts(together - co_watch, co_watch, trend(watches), log_popularity(watches))
    return choose_blend(parts, queries, setting.config.retriever.co_watch_weight)


def fill_fixed(
    model: TwoTower, setting: Setting, watches: Watches, blend: Blend, valid: Queries
) -> None:
    """Set what is computed from the log: co-watch vectors, trend, popularity, cold videos."""
    _set_fixed(model, setting.tables, watches, blend)
    cold = watches.counts == 0
    queries = valid.sample(MAX_QUERIES, setting.config.seed)
    vectors = query_vectors(model, setting.tables, queries.samples)
    scores = vectors @ candidate_vectors(model, setting.tables).T
    boost = cold_boost(scores, cold, queries.excluded, setting.config.retriever.cold_share)
    model.offset.assign_add(np.where(cold, np.float32(boost), np.float32(0)))


def _set_fixed(model: TwoTower, tables: FeatureTables, watches: Watches, blend: Blend) -> None:
    vectors = co_watch_vectors(watches, model.config.co_watch_dim)
    model.co_history.assign(by_video_index(vectors.history, tables))
    model.co_video.assign(by_video_index(vectors.video * np.float32(blend.co_watch), tables))
    model.offset.assign(blend.trend * trend(watches) - blend.popularity * log_popularity(watches))


def recall(model: TwoTower, tables: FeatureTables, queries: Queries) -> float:
    """Recall@100 of `queries` over the full catalogue, by exact search."""
    lists = _best_lists(model, tables, queries)
    return float(ranking_metrics(lists, queries.relevant)["recall@100"].mean())


def _best_lists(model: TwoTower, tables: FeatureTables, queries: Queries) -> Int64:
    """The 100 best videos of each query that its user has not watched; int64 [n, 100]."""
    vectors = query_vectors(model, tables, queries.samples)
    return top_k(vectors, candidate_vectors(model, tables), queries.excluded, 100)


def build_two_tower(tables: FeatureTables, config: Config, goal: Goal = "next") -> TwoTower:
    """A built model with fresh weights."""
    spec = tables.spec
    model = TwoTower(spec, config.retriever, OBJECTIVES[goal])
    model.videos({"video_index": tf.zeros([1, 1], tf.int32)})
    one = {name: tf.zeros([1], tf.int32) for name in sample_columns(spec, ranker=False)}
    model.query(tables.query(one))
    rows = tf.zeros([1], tf.int32)
    model.candidate(tables.candidate(rows), rows)
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
