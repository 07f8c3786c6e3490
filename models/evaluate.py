"""Evaluation of a run: retrieval over the full catalogue, the ranker, and popularity to compare."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.inputs import FeatureTables, sample_columns
from models.metrics import retrieval_metrics, top_k
from models.queries import Queries, held_out_queries
from models.ranker import load_ranker, ranker_metrics
from models.retriever import load_two_tower
from models.two_tower import candidate_vectors, query_vectors
from workflow.config import Config
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run

DAYS_30_S = 30 * 86_400


def evaluate_retrieval(run: Run, config: Config) -> dict[str, Any]:
    """Metrics of the test part under the run's own split protocol.

    Full catalogue, exact search, videos that the user had watched before left out; users with at
    least one watch before the test part, as in most published comparisons ("all_users" has the
    others too).

    Returns:
        {"recall@10", "recall@100", "ndcg@10", "mrr", "coverage@10", "users", "all_users": {...}}.
    """
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    tables = FeatureTables(store, spec)
    model = load_two_tower(run, config, tables)
    queries = held_out_queries(store, "test", sample_columns(spec, ranker=False))
    vectors = query_vectors(model, tables, queries.samples)
    found = top_k(vectors, candidate_vectors(model, tables), queries.excluded, 100)
    return _by_population(found, queries, spec.num_videos)


def evaluate_popularity(run: Run, *, recent_only: bool = False) -> dict[str, Any]:
    """The same metrics for the most watched videos, of all time or of the last 30 days."""
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    counts = _watch_counts(store, spec, recent_only)
    queries = held_out_queries(store, "test", [])
    ones = np.ones((len(queries), 1), np.float32)
    found = top_k(ones, counts[:, None], queries.excluded, 100)
    return _by_population(found, queries, spec.num_videos)


def _watch_counts(
    store: FeatureStore, spec: FeatureSpec, recent_only: bool
) -> npt.NDArray[np.float32]:
    files = store.samples("train", "valid")
    columns = ["video_row", "timestamp", "watched"]
    frame = pd.concat([read_frame(path, columns=columns) for path in files])
    frame = frame[frame["watched"] == 1]
    if recent_only:
        frame = frame[frame["timestamp"] > frame["timestamp"].max() - DAYS_30_S]
    return np.bincount(frame["video_row"], minlength=spec.num_videos + 1).astype(np.float32)


def _by_population(
    found: npt.NDArray[np.int64], queries: Queries, num_videos: int
) -> dict[str, Any]:
    known = np.flatnonzero(queries.has_history)
    metrics: dict[str, Any] = retrieval_metrics(
        found[known], queries.take(known).relevant, num_videos
    )
    everyone = retrieval_metrics(found, queries.relevant, num_videos)
    return metrics | {"users": len(known), "all_users": everyone | {"users": len(queries)}}


def evaluate_ranker(run: Run, config: Config) -> dict[str, float]:
    """auc, per_user_auc, log_loss, ece, ... of the test part."""
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    return ranker_metrics(load_ranker(run, config, tables), tables, store, "test")
