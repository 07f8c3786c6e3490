"""How far a column moved: the population stability index, and when there are too few to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 10
MOST_VALUES = 20  # of a category; what is rarer counts as one
MOVED, DRIFTED = 0.1, 0.25  # the usual bounds
_SMOOTH = 0.5  # imagined observations per bin, so that an empty one has a logarithm


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Sum over bins of (p - q) * log(p / q), of two arrays of counts by bin.

    Source: Siddiqi, Credit Risk Scorecards, 2006; the symmetric Kullback-Leibler divergence.
    """
    p, q = (np.asarray(one, np.float64) + _SMOOTH for one in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def of_numbers(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """PSI of two samples of numbers, over bins that the first one fills equally."""
    before, after = (np.asarray(one, np.float64) for one in (expected, actual))
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if len(before) == 0 or len(after) == 0:
        return 0.0
    edges = np.unique(np.quantile(before, np.arange(1, BINS) / BINS))
    counts = [
        np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1)
        for one in (before, after)
    ]
    return psi(*counts)


def of_categories(expected: Sequence[Any], actual: Sequence[Any]) -> float:
    """PSI of two samples of values; those that the first has seldom are one bin."""
    before, after = Counter(expected), Counter(actual)
    kept = [value for value, _ in before.most_common(MOST_VALUES)]
    counts = [
        [*(one[value] for value in kept), one.total() - sum(one[value] for value in kept)]
        for one in (before, after)
    ]
    return psi(*counts)


def judged(name: str, value: float, count: int, least: int) -> dict[str, Any]:
    """{"column", "psi", "count", "verdict"} of an index over `count` observations."""
    return {
        "column": name,
        "psi": round(value, 4),
        "count": count,
        "verdict": verdict(value, count, least),
    }


def verdict(value: float, count: int, least: int) -> str:
    """In a word; with fewer than `least` observations chance alone moves the index."""
    if count < least:
        return "too few"
    if value < MOVED:
        return "steady"
    return "moved" if value < DRIFTED else "drifted"


def row(
    name: str, expected: Sequence[Any], actual: Sequence[Any], least: int, *, numbers: bool
) -> dict[str, Any]:
    """`judged` of two samples; `count` is of the later one."""
    value = (of_numbers if numbers else of_categories)(expected, actual)
    return judged(name, value, len(actual), least)
