"""The ranker's watch-time target: the quantile of a watch among those of videos as long.

Seconds grow with a video's duration whatever the interest, so a ranker that learns seconds sorts
by duration. Within a group of similar durations the quantile is free of it; seconds come back
through the group's table. One raw output per (user, video): its sigmoid is the expected quantile.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.team import team
from models.watch_groups import NUM_BINS, DurationGroups, Float32
from workflow.errors import MissingArtifactError

# A complete watch must count as one although log1p and expm1 in float32 changed its last digits:
# a part of the seconds, and seconds.
ROUNDING, ROUNDING_S = 1e-5, 1e-6


class WatchTime:
    """Learns watch time free of duration, and turns outputs into relevance and seconds.

    Tensors are float32. Watch times that were not measured and durations that are not known are
    NaN.

    Args:
        groups: statistics of the training watches, from `fit`.

    Source: Zhan et al., Deconfounding Duration Bias in Watch-time Prediction, KDD 2022 (D2Q).
    Compared with other targets by tests/bench/watch_time.py.
    """

    width = 1

    def __init__(self, groups: DurationGroups) -> None:
        self.groups = groups

    @classmethod
    def fit(cls, watch_s: npt.ArrayLike, duration_s: npt.ArrayLike) -> WatchTime:
        """Read the statistics off training watches; see DurationGroups.fit."""
        return cls(DurationGroups.fit(watch_s, duration_s))

    def save(self, path: Path) -> None:
        """Write the statistics as an .npz file (no pickle)."""
        np.savez(path, edges=self.groups.edges, tables=self.groups.tables)

    @classmethod
    def load(cls, path: Path) -> WatchTime:
        """Read what `save` wrote.

        Raises:
            MissingArtifactError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(DurationGroups(arrays["edges"], arrays["tables"]))
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise MissingArtifactError(
                f"{path} is damaged or missing",
                found=str(error),
                next_step=f"marquee train --run {path.parents[2]} --force",
            ) from error

    def loss(self, outputs: Any, watch_s: Any, duration_s: Any, watched: Any) -> Any:
        """Mean squared error of the quantile over watches whose time was measured; scalar.

        Of several workers (models.team), this one's part of it.

        Doubled, so that its gradient at one half is that of the label's cross-entropy.

        Args:
            outputs: [batch, width], as the network gives them.
            watch_s: seconds [batch].
            duration_s: seconds [batch].
            watched: [batch], above 0.5 where the event is a watch.
        """
        counted = tf.logical_and(tf.math.is_finite(watch_s), watched > 0.5)
        target = self.quantile(tf.where(counted, watch_s, 0.0), duration_s)
        errors = 2 * tf.square(self.relevance(outputs) - target)
        total = tf.reduce_sum(tf.where(counted, errors, 0.0))
        count = team().whole(tf.reduce_sum(tf.cast(counted, tf.float32)))
        return total / tf.maximum(count, 1.0)

    def quantile(self, watch_s: Any, duration_s: Any) -> Any:
        """Quantile of watches among those of videos as long, in [0, 1]; [batch].

        Equal watches (all complete ones) share the middle of the quantiles they cover, so the
        mean over a group's watches is one half whatever its share of complete ones.
        """
        least, most = self.quantile_range(watch_s, duration_s)
        return (least + most) / 2

    def quantile_range(self, watch_s: Any, duration_s: Any) -> tuple[Any, Any]:
        """Least and largest quantile that watches of these seconds cover; [batch] each."""
        thresholds = self._thresholds(duration_s)
        least = _share_below(watch_s * (1 - ROUNDING) - ROUNDING_S, thresholds)
        most = _share_below(watch_s * (1 + ROUNDING) + ROUNDING_S, thresholds)
        return least, most

    def relevance(self, outputs: Any) -> Any:
        """What lists are sorted by: the expected quantile, in (0, 1); [batch]."""
        return tf.sigmoid(outputs[:, 0])

    def watch_s(self, outputs: Any, duration_s: Any) -> Any:
        """Seconds at the expected quantile; [batch]."""
        thresholds = self._thresholds(duration_s)
        passed = self.relevance(outputs)[:, None] * NUM_BINS - tf.range(NUM_BINS, dtype=tf.float32)
        steps = thresholds[:, 1:] - thresholds[:, :-1]
        return thresholds[:, 0] + tf.reduce_sum(steps * tf.clip_by_value(passed, 0.0, 1.0), axis=1)

    def decode(self, outputs: Float32, duration_s: Float32) -> tuple[Float32, Float32]:
        """(watch_s, relevance) in numpy, equal to the methods of these names; float32 [n] each."""
        relevance = np.exp(-np.logaddexp(np.float32(0), -outputs[:, 0]))  # never overflows
        thresholds = self.groups.thresholds(duration_s)
        passed = relevance[:, None] * NUM_BINS - np.arange(NUM_BINS, dtype=np.float32)
        steps = np.diff(thresholds, axis=1)
        return thresholds[:, 0] + (steps * np.clip(passed, 0, 1)).sum(axis=1), relevance

    def _thresholds(self, duration_s: Any) -> Any:
        """DurationGroups.thresholds in TensorFlow."""
        tables = self.groups.tables
        last = len(tables) - 1
        found = tf.minimum(tf.searchsorted(self.groups.edges, duration_s, side="right"), last)
        group = tf.where(duration_s > 0, found, last)
        scale = tf.where(group < last, duration_s, 1.0)
        return tf.gather(tables, group) * scale[:, None]


def _share_below(value: Any, thresholds: Any) -> Any:
    """Share of the steps between thresholds that lies below a value; [batch]."""
    steps = tf.maximum(thresholds[:, 1:] - thresholds[:, :-1], 1e-9)
    passed = (value[:, None] - thresholds[:, :-1]) / steps
    return tf.reduce_mean(tf.clip_by_value(passed, 0.0, 1.0), axis=1)
