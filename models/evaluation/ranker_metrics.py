"""Ranker metrics as values per user, so that users can be resampled (see bootstrap.py).

Every function returns one value per user whose mean is the metric over all events. The spread of
the values is what each user contributes: exact for ratios of sums up to first order, and for
pairwise metrics the influence values of their U-statistic (DeLong et al. 1988, for clustered data
Obuchowski 1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from models.metrics import Float32, Float64, Int64, calibration_bins, log_losses, user_aucs

RELIABILITY_BINS = 20


@dataclass(frozen=True)
class Events:
    """What happened at the judged events.

    Attributes:
        user_row: int64 [n].
        label: float32 [n], 0 or 1.
        watch_s: float32 [n], seconds watched; NaN where nothing was watched or measured.
    """

    user_row: Int64
    label: Float32
    watch_s: Float32

    @property
    def owner(self) -> Int64:
        """Position of each event's user among the distinct users, ascending; int64 [n]."""
        return np.unique(self.user_row, return_inverse=True)[1]


@dataclass(frozen=True)
class Predictions:
    """What a model says about the same events; `watch_s` is None where it says nothing."""

    p: Float32
    watch_s: Float32 | None = None


def ranker_values(events: Events, predictions: Predictions) -> dict[str, Float64]:
    """auc, per_user_auc, log_loss, ece and, where predicted, watch_mae_s and xauc.

    A metric that the events do not define (the AUC of one class) is left out.

    Returns:
        metric -> float64 [users], in ascending order of user_row.
    """
    owner, label, p = events.owner, events.label, predictions.p
    result = {
        "log_loss": ratio_values(log_losses(label, p), np.ones(len(label)), owner),
        "ece": calibration_values(label, p, owner),
    }
    if 0 < label.mean() < 1:
        result["auc"] = auc_values(label, p, owner)
    if np.isfinite(user_aucs(label, p, owner)[0]).any():
        result["per_user_auc"] = per_user_auc_values(label, p, owner)
    measured = np.isfinite(events.watch_s)
    if predictions.watch_s is not None and measured.any():
        error = np.abs(np.where(measured, predictions.watch_s - events.watch_s, 0.0))
        result["watch_mae_s"] = ratio_values(error, measured * 1.0, owner)
        if np.ptp(events.watch_s[measured]) > 0:
            result["xauc"] = xauc_values(events.watch_s, predictions.watch_s, owner)
    return result


def ratio_values(part: Float64, whole: Float64, owner: Int64) -> Float64:
    """Values of sum(part) / sum(whole), both float64 [n]."""
    parts, wholes = np.bincount(owner, part), np.bincount(owner, whole)
    ratio = parts.sum() / wholes.sum()
    result: Float64 = ratio + (parts - ratio * wholes) / wholes.mean()
    return result


def auc_values(label: Float32, p: Float32, owner: Int64) -> Float64:
    """Values of the AUC over all events, ties counted half."""
    positive = label > 0.5
    num_positive, num_negative = positive.sum(), (~positive).sum()
    rank = rankdata(p)
    share = np.empty(len(p))  # of the other class that each event is on the right side of
    share[positive] = (rank[positive] - rankdata(p[positive])) / num_negative
    share[~positive] = 1 - (rank[~positive] - rankdata(p[~positive])) / num_positive
    auc = share[positive].mean()
    influence = (share - auc) / np.where(positive, num_positive, num_negative)
    return _from_influence(auc, influence, owner)


def per_user_auc_values(label: Float32, p: Float32, owner: Int64) -> Float64:
    """Values of the mean AUC within users who have both classes, weighted by their events."""
    aucs, sizes = user_aucs(label, p, owner)
    known = np.isfinite(aucs)
    weights = np.where(known, sizes, 0)
    return ratio_values(np.where(known, aucs, 0) * weights, weights, np.arange(len(sizes)))


def calibration_values(label: Float32, p: Float32, owner: Int64) -> Float64:
    """Values of the expected calibration error over equally filled bins."""
    gap = label.astype(np.float64) - p
    for chosen in calibration_bins(p, RELIABILITY_BINS):
        gap[chosen] *= np.sign(gap[chosen].sum())
    return ratio_values(gap, np.ones(len(p)), owner)


def xauc_values(truth: Float32, predicted: Float32, owner: Int64) -> Float64:
    """Values of the share of pairs of events that are predicted in their true order.

    Pairs with the same truth do not count; equal predictions count half; events whose truth is
    NaN take no part.

    Source: Zhan et al., Deconfounding Duration Bias in Watch-time Prediction, KDD 2022.
    """
    known = np.flatnonzero(np.isfinite(truth))
    right, pairs = ordered_pairs(truth[known], predicted[known])
    xauc = right.sum() / pairs.sum()
    influence = np.zeros(len(truth))
    influence[known] = 2 * (right - xauc * pairs) / pairs.sum()
    return _from_influence(xauc, influence, owner)


def _from_influence(metric: float, influence: Float64, owner: Int64) -> Float64:
    by_user = np.bincount(owner, influence)
    result: Float64 = metric + len(by_user) * by_user
    return result


def ordered_pairs(truth: Float32, predicted: Float32) -> tuple[Float64, Int64]:
    """(pairs in the right order, pairs with different truth) of each event with all others.

    Exact in n log^2 n. Returns float64 [n] (equal predictions count half) and int64 [n].
    """
    y = rankdata(truth, "dense")
    p = rankdata(predicted, "dense")
    both = y.astype(np.int64) * (int(p.max(initial=0)) + 1) + p
    same_truth, same_predicted, same = (_times(values) for values in (y, p, both))
    right = smaller_in_both(y, p) + smaller_in_both(-y, -p) + (same_predicted - same) / 2
    return right, len(y) - same_truth


def _times(values: npt.NDArray[Any]) -> Int64:
    """How often each value occurs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    result: Int64 = counts[inverse]
    return result


def smaller_in_both(y: npt.NDArray[Any], p: npt.NDArray[Any]) -> Int64:
    """For each i the number of j with y[j] < y[i] and p[j] < p[i]; int64 [n].

    Merge counting: in order of y, each level of block sizes compares a right half with its left
    half. Equal y are sorted by falling p, so that they never count.
    """
    order = np.lexsort((-p, y))
    values = p[order].astype(np.int64)
    place = np.arange(len(values))
    counts = np.zeros(len(values), np.int64)
    size = 1
    while size < len(values):
        is_left = place // size % 2 == 0
        # Equal p: the right half comes first, so that only smaller ones are counted.
        by_pair = np.lexsort((is_left, values, place // (2 * size)))
        left = is_left[by_pair]
        before = np.cumsum(left)
        first = place[by_pair] // (2 * size) * (2 * size)  # the pair's elements start there
        counts[by_pair[~left]] += (before - np.r_[0, before][first])[~left]
        size *= 2
    result = np.empty_like(counts)
    result[order] = counts
    return result


def reliability(label: Float32, p: Float32) -> list[dict[str, float]]:
    """Mean prediction, share of positives and number of events per equally filled bin."""
    return [
        {
            "predicted": float(p[chosen].mean()),
            "observed": float(label[chosen].mean()),
            "count": len(chosen),
        }
        for chosen in calibration_bins(p, RELIABILITY_BINS)
    ]
