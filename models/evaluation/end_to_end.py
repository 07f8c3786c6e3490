"""The list that is served, beside what retrieval alone would show: one number per step of loss.

Works on plain arrays, so that it judges whatever was really retrieved and ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.evaluation import bootstrap
from models.evaluation.results import Values, summarise
from models.evaluation.retrieval import Bench, hits_within, means_by, stacked
from models.metrics import Float32, Float64, Int64

SERVED, RETRIEVER = "served", "retriever"


@dataclass(frozen=True)
class Served:
    """What one seed's models answered to every query of a Bench.

    Attributes:
        exact: int64 [queries, num_candidates], the retriever's best unwatched videos by exact
            search, best first; 0 fills up.
        approximate: the same by the index that is served.
        ranked: int64 [queries, num_candidates], `approximate` in the order of the ranker.
    """

    exact: Int64
    approximate: Int64
    ranked: Int64


def ranked_lists(candidates: Int64, scores: Float32) -> Int64:
    """Candidates by falling score; int64, same shape.

    Args:
        candidates: int64 [n, num_candidates], video rows; 0 fills up and stays at the end.
        scores: float32 [n, num_candidates] of the ranker.
    """
    order = np.argsort(-np.where(candidates > 0, scores, -np.inf), axis=1, kind="stable")
    result: Int64 = np.take_along_axis(candidates, order, axis=1)
    return result


def end_to_end(bench: Bench, seeds: list[Served], baselines: Values) -> dict[str, Any]:
    """Served list, retriever order and baselines, with intervals over users.

    Args:
        seeds: one entry per seed.
        baselines: values per user of retrieval baselines on the same bench.
    Returns:
        "users", "num_candidates"; "metrics": {"retriever" (approximate search, no ranker),
        "served", baseline...: {metric: {"mean", "low", "high", "per_seed"}}}; "recall_ceiling" (of
        the approximate candidates: what no ranker can exceed), "ranker_lift" (ndcg@10 served
        minus retriever order), "approximate_loss" (recall of the candidates, exact minus
        approximate): each {"mean", "low", "high"}; "paired": served minus each other list.
    """
    num_candidates = seeds[0].approximate.shape[1]
    kept = [f"recall@{k}" for k in (10, 100, 500) if k <= num_candidates]
    kept += ["ndcg@10", "mrr", "coverage@10", "novelty@10", "popularity_lift@10"]
    lists = {
        RETRIEVER: stacked([bench.judge_lists(one.approximate) for one in seeds]),
        SERVED: stacked([bench.judge_lists(one.ranked) for one in seeds]),
    }
    models = {
        name: {metric: values[metric] for metric in kept}
        for name, values in (lists | baselines).items()
    }
    ceiling = _mean_recall(bench, [s.approximate for s in seeds])
    loss = _mean_recall(bench, [s.exact for s in seeds]) - ceiling
    lift = (models[SERVED]["ndcg@10"] - models[RETRIEVER]["ndcg@10"]).mean(axis=0)
    metrics, paired = summarise(models, SERVED)
    return {
        "users": len(ceiling),
        "num_candidates": num_candidates,
        "metrics": metrics,
        "recall_ceiling": bootstrap.interval(ceiling),
        "ranker_lift": bootstrap.interval(lift),
        "approximate_loss": bootstrap.interval(loss),
        "paired": paired,
    }


def _mean_recall(bench: Bench, lists: list[Int64]) -> Float64:
    """Recall of whole candidate sets per user, averaged over seeds; float64 [users]."""
    known = np.flatnonzero(bench.queries.has_history)
    owner = np.searchsorted(bench.user_row, bench.queries.user_row[known])
    recalls = [means_by(owner, hits_within(one, bench.queries)[known]) for one in lists]
    result: Float64 = np.mean(recalls, axis=0)
    return result
