"""Ranking and classification metrics over arrays; no models here.

Sources: Recall@K counts hits over all relevant videos; NDCG@K as Järvelin & Kekäläinen 2002 with
binary gains; AUC by ranks (Mann-Whitney) with ties counted half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
# Positions of queries in, float32 [positions, num_videos + 1] out; a fresh array each time.
Scorer = Callable[[Int64], Float32]

MAX_SCORES = 16_000_000  # floats in memory at once: 64 MB


@dataclass(frozen=True)
class Lists:
    """Ragged lists of video rows, one per user: values[offsets[i] : offsets[i + 1]]."""

    values: Int64
    offsets: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Int64:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> Int64:
        return np.diff(self.offsets)

    @property
    def owner(self) -> Int64:
        """Position of the list that each value belongs to; int64, same shape as `values`."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @classmethod
    def group(cls, owner: Int64, values: Int64, num_owners: int) -> Lists:
        """Lists from (owner, value) pairs in any order; owners are 0..num_owners - 1."""
        order = np.argsort(owner, kind="stable")
        offsets = np.searchsorted(owner[order], np.arange(num_owners + 1))
        return cls(values[order], offsets.astype(np.int64))

    @classmethod
    def ranges(cls, flat: npt.NDArray[Any], start: Int64, end: Int64) -> Lists:
        """List i is flat[start[i] : end[i]]."""
        offsets = np.r_[0, np.cumsum(end - start)].astype(np.int64)
        at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start, end - start)
        return cls(np.asarray(flat)[at].astype(np.int64), offsets)

    def take(self, chosen: Int64) -> Lists:
        """The lists at positions `chosen`."""
        return Lists.ranges(self.values, self.offsets[chosen], self.offsets[chosen + 1])


def top_k(queries: Float32, candidates: Float32, excluded: Lists, k: int) -> Int64:
    """Best candidate rows by inner product over the full catalogue.

    Args:
        queries: float32 [n, dim].
        candidates: float32 [num_videos + 1, dim]; row 0 is padding and never returned.
        excluded: rows that query i must not return.
    Returns:
        int64 [n, k], best first.
    """
    return top_lists(lambda at: queries[at] @ candidates.T, len(candidates), excluded, k)


def top_lists(scorer: Scorer, width: int, excluded: Lists, k: int) -> Int64:
    """Best rows of each query by full-catalogue scores.

    Args:
        scorer: scores of the queries at given positions.
        width: number of videos + 1.
        excluded: rows that query i must not return.
    Returns:
        int64 [n, min(k, width - 1)], best first; 0 where a query has fewer rows left.
    """
    k = min(k, width - 1)
    batch = max(1, MAX_SCORES // width)
    results = [np.zeros((0, k), np.int64)]
    for start in range(0, len(excluded), batch):
        chosen = np.arange(start, min(start + batch, len(excluded)))
        scores = scorer(chosen)
        scores[:, 0] = -np.inf
        left_out = excluded.take(chosen)
        scores[left_out.owner, left_out.values] = -np.inf
        results.append(_sorted_top(scores, k))
    return np.concatenate(results)


def _sorted_top(scores: Float32, k: int) -> Int64:
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    rows = np.where(np.isneginf(values), 0, best)
    result: Int64 = np.take_along_axis(rows, order, axis=1)
    return result


def hits(lists: Int64, relevant: Lists) -> npt.NDArray[np.bool_]:
    """Whether each recommended row is relevant; bool, same shape as `lists`."""
    stride = int(max(lists.max(initial=0), relevant.values.max(initial=0))) + 1
    wanted = relevant.owner * stride + relevant.values
    found: npt.NDArray[np.bool_] = np.isin(lists + np.arange(len(lists))[:, None] * stride, wanted)
    return found


def ranking_metrics(lists: Int64, relevant: Lists) -> dict[str, Float64]:
    """recall@10, recall@100, recall@500, ndcg@10 and mrr of each list; float64 [n] each.

    Args:
        lists: int64 [n, k], best first; what lies beyond k counts as not found.
        relevant: at least one row per list.
    """
    hit = hits(lists, relevant)
    sizes = np.maximum(relevant.sizes, 1)
    first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
    return {
        **{f"recall@{k}": hit[:, :k].sum(axis=1) / sizes for k in (10, 100, 500)},
        "ndcg@10": _ndcg(hit[:, :10], sizes),
        "mrr": np.divide(1.0, first, out=np.zeros(len(first)), where=first > 0),
    }


def list_quality(lists: Int64, relevant: Lists) -> Float64:
    """What retrievers are chosen by: the mean of recall@100 and NDCG@10 of each list; float64 [n].

    Args:
        lists: int64 [n, at least 100 where there are so many videos], best first.
    """
    values = ranking_metrics(lists, relevant)
    result: Float64 = (values["recall@100"] + values["ndcg@10"]) / 2
    return result


def _ndcg(hit: npt.NDArray[np.bool_], sizes: Int64) -> Float64:
    discount = 1 / np.log2(np.arange(2, hit.shape[1] + 2))
    ideal = np.r_[0.0, np.cumsum(discount)][np.minimum(sizes, hit.shape[1])]
    result: Float64 = (hit @ discount) / ideal
    return result


def auc(labels: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> float:
    """Probability that a positive scores above a negative; NaN when one class is missing."""
    positive = labels > 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_rank[inverse][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def per_user_auc(
    labels: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], users: Int64
) -> float:
    """Mean AUC over users with both classes, weighted by their number of events."""
    values, sizes = user_aucs(labels, scores, users)
    known = np.isfinite(values)
    if not known.any():
        return float("nan")
    return float(np.average(values[known], weights=sizes[known]))


def user_aucs(
    labels: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], users: Int64
) -> tuple[Float64, Int64]:
    """(AUC, number of events) of each distinct user in ascending order; NaN with one class."""
    _, owner, sizes = np.unique(users, return_inverse=True, return_counts=True)
    order = np.lexsort((scores, owner))
    new_value = np.r_[True, (np.diff(owner[order]) != 0) | (np.diff(scores[order]) != 0)]
    first = np.flatnonzero(new_value)
    group = np.cumsum(new_value) - 1
    mean_place = first + (np.diff(np.r_[first, len(order)]) + 1) / 2  # from 1, ties share
    start = np.r_[0, np.cumsum(sizes)[:-1]]
    rank = mean_place[group] - start[owner[order]]
    positive = labels[order] > 0.5
    of_user = owner[order][positive]
    num_positive = np.bincount(of_user, minlength=len(sizes)).astype(np.float64)
    rank_sum = np.bincount(of_user, rank[positive], minlength=len(sizes))
    pairs = num_positive * (sizes - num_positive)
    above = rank_sum - num_positive * (num_positive + 1) / 2
    return np.divide(above, pairs, out=np.full(len(sizes), np.nan), where=pairs > 0), sizes


def log_loss(labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32]) -> float:
    """Mean negative log-likelihood in nats, probabilities clipped to [1e-7, 1 - 1e-7]."""
    return float(log_losses(labels, probabilities).mean())


def log_losses(labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32]) -> Float64:
    """The terms of `log_loss`; float64 [n]."""
    p = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    result: Float64 = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return result


def calibration_error(
    labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32], bins: int = 20
) -> float:
    """Expected calibration error over equally filled bins (Naeini et al., AAAI 2015)."""
    gaps = [
        abs(float(labels[p].mean() - probabilities[p].mean())) * len(p)
        for p in calibration_bins(probabilities, bins)
    ]
    return float(np.sum(gaps) / max(len(labels), 1))


def calibration_bins(probabilities: npt.NDArray[np.float32], bins: int = 20) -> list[Int64]:
    """Positions of each equally filled bin, lowest probabilities first; no empty bins."""
    parts = np.array_split(np.argsort(probabilities, kind="stable"), bins)
    return [part for part in parts if len(part)]
