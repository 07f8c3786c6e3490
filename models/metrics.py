"""Ranking and classification metrics over arrays; no models here.

Sources: Recall@K counts hits over all relevant videos; NDCG@K as Järvelin & Kekäläinen 2002 with
binary gains; AUC by ranks (Mann-Whitney) with ties counted half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lists:
    """Ragged lists of video rows, one per user: values[offsets[i] : offsets[i + 1]]."""

    values: Int64
    offsets: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Int64:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def group(cls, owner: Int64, values: Int64, num_owners: int) -> Lists:
        """Lists from (owner, value) pairs in any order; owners are 0..num_owners - 1."""
        order = np.argsort(owner, kind="stable")
        offsets = np.searchsorted(owner[order], np.arange(num_owners + 1))
        return cls(values[order], offsets.astype(np.int64))


def top_k(
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.float32],
    excluded: Lists,
    k: int,
    batch_size: int = 512,
) -> Int64:
    """Best candidate rows by inner product over the full catalogue.

    Args:
        queries: float32 [n, dim].
        candidates: float32 [num_videos + 1, dim]; row 0 is padding and never returned.
        excluded: rows that query i must not return.
    Returns:
        int64 [n, k], best first.
    """
    k = min(k, len(candidates) - 1)
    results = []
    for start in range(0, len(queries), batch_size):
        scores = queries[start : start + batch_size] @ candidates.T
        scores[:, 0] = -np.inf
        for row in range(len(scores)):
            scores[row, excluded[start + row]] = -np.inf
        results.append(_sorted_top(scores, k))
    return np.concatenate(results) if results else np.zeros((0, k), np.int64)


def _sorted_top(scores: npt.NDArray[np.float32], k: int) -> Int64:
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    result: Int64 = np.take_along_axis(best, order, axis=1)
    return result


def hits(lists: Int64, relevant: Lists) -> npt.NDArray[np.bool_]:
    """Whether each recommended row is relevant; bool, same shape as `lists`."""
    result = np.zeros(lists.shape, bool)
    for row in range(len(lists)):
        result[row] = np.isin(lists[row], relevant[row])
    return result


def retrieval_metrics(lists: Int64, relevant: Lists, num_videos: int) -> dict[str, float]:
    """recall@10, recall@100, ndcg@10, mrr and coverage@10, averaged over users.

    Args:
        lists: int64 [n, at least 100 or the catalogue], best first.
        relevant: at least one row per user.
    """
    hit = hits(lists, relevant)
    sizes = np.maximum(np.diff(relevant.offsets), 1)
    first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
    reciprocal = np.divide(1.0, first, out=np.zeros(len(first)), where=first > 0)
    return {
        "recall@10": float((hit[:, :10].sum(axis=1) / sizes).mean()),
        "recall@100": float((hit[:, :100].sum(axis=1) / sizes).mean()),
        "ndcg@10": float(_ndcg(hit[:, :10], sizes).mean()),
        "mrr": float(reciprocal.mean()),
        "coverage@10": len(np.unique(lists[:, :10])) / num_videos,
    }


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
    order = np.argsort(users, kind="stable")
    bounds = np.flatnonzero(np.r_[True, np.diff(users[order]) != 0, True])
    total = weight = 0.0
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        chosen = order[start:end]
        value = auc(labels[chosen], scores[chosen])
        if not np.isnan(value):
            total, weight = total + value * len(chosen), weight + len(chosen)
    return total / weight if weight else float("nan")


def log_loss(labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32]) -> float:
    """Mean negative log-likelihood in nats, probabilities clipped to [1e-7, 1 - 1e-7]."""
    p = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)).mean())


def calibration_error(
    labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32], bins: int = 20
) -> float:
    """Expected calibration error over equally filled bins (Naeini et al., AAAI 2015)."""
    parts = np.array_split(np.argsort(probabilities, kind="stable"), bins)
    gaps = [
        abs(float(labels[p].mean() - probabilities[p].mean())) * len(p) for p in parts if len(p)
    ]
    return float(np.sum(gaps) / max(len(labels), 1))
