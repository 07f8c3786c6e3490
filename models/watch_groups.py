"""Duration groups: how long people watch videos of about the same length, as quantile tables.

Numpy only. A long video is watched for more seconds than a short one that is liked as much, so
seconds say more about duration than about interest. Within a group of similar durations they are
comparable: the quantile of a watch among the watches of its group is free of duration.

Source: Zhan et al., Deconfounding Duration Bias in Watch-time Prediction, KDD 2022 (D2Q).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workflow.errors import TrainingError

Float32 = npt.NDArray[np.float32]

MAX_GROUPS = 40
MIN_WATCHES_PER_GROUP = 200  # fewer would make the ends of a table random
NUM_BINS = 32


@dataclass(frozen=True)
class DurationGroups:
    """Groups of equal frequency by duration and the watch-time quantiles of each.

    Within a group quantiles are kept as parts of the duration: a group spans a range of
    durations, and a complete watch is the same part of each.

    Attributes:
        edges: float32 [groups - 1], ascending: where the second and later groups begin, seconds.
        tables: float32 [groups + 1, NUM_BINS + 1], each row ascending: watched part of the
            duration at the quantiles 0, 1 / NUM_BINS, ... 1. The last row is of videos whose
            duration is not known, in seconds.
    """

    edges: Float32
    tables: Float32

    @classmethod
    def fit(cls, watch_s: npt.ArrayLike, duration_s: npt.ArrayLike) -> DurationGroups:
        """Groups of watches.

        Args:
            watch_s: seconds [n] of watches; NaN = not measured.
            duration_s: seconds [n]; NaN or not positive = not known.
        Raises:
            TrainingError: no watch time was measured.
        """
        watch, duration = measured(watch_s, duration_s)
        known = duration > 0
        unknown = watch if (~known).sum() < MIN_WATCHES_PER_GROUP else watch[~known]
        edges = _edges(duration[known])
        group = np.searchsorted(edges, duration[known], side="right")
        part = watch[known] / duration[known]
        rows = [part[group == i] for i in range(len(edges) + 1)] if known.any() else []
        return cls(edges, np.stack([_quantiles(row) for row in [*rows, unknown]]))

    def thresholds(self, duration_s: Float32) -> Float32:
        """Watch-time quantiles of videos in seconds; float32 [n, NUM_BINS + 1], ascending."""
        last = len(self.tables) - 1
        found = np.minimum(np.searchsorted(self.edges, duration_s, side="right"), last)
        group = np.where(duration_s > 0, found, last)  # NaN is not > 0
        scale = np.where(group < last, duration_s, np.float32(1))
        result: Float32 = self.tables[group] * scale[:, None]
        return result


def measured(
    watch_s: npt.ArrayLike, duration_s: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The watches whose time was measured, and their durations (NaN = not known); float64 [m].

    Raises:
        TrainingError: there is none.
    """
    watch, duration = np.asarray(watch_s, np.float64), np.asarray(duration_s, np.float64)
    kept = np.isfinite(watch)
    if not kept.any():
        raise TrainingError(
            "no watch time was measured before the test period",
            expected="at least one watch with watch_s",
            found=f"{len(watch):,} watches without",
            next_step='give watch_s the role "ignore" in the contract',
        )
    return watch[kept], duration[kept]


def _edges(duration: npt.NDArray[np.float64]) -> Float32:
    """Starts of all groups but the first; each is a duration that occurs, so no group is empty."""
    wanted = int(np.clip(len(duration) // MIN_WATCHES_PER_GROUP, 1, MAX_GROUPS))
    if wanted == 1:
        return np.zeros(0, np.float32)
    levels = np.arange(1, wanted) / wanted
    edges = np.unique(np.quantile(duration, levels, method="lower").astype(np.float32))
    result: Float32 = edges[edges > np.float32(duration.min())]
    return result


def _quantiles(values: npt.NDArray[np.float64]) -> Float32:
    levels = np.linspace(0, 1, NUM_BINS + 1)
    return np.maximum.accumulate(np.quantile(values, levels)).astype(np.float32)
