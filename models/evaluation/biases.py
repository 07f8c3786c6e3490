"""Ranker baseline: how much a user likes things, and how much a video is liked, so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.metrics import Float32, Float64, Int64, log_loss
from workflow.features.encoded import FeatureStore
from workflow.features.history import SECONDS_PER_DAY, count_before, positions
from workflow.frames import read_frame

PARTS = ("train", "valid", "test")
DAMPING = (1.0, 3.0, 10.0, 30.0)  # events at the mean that are added to a user's or video's own
NEWTON_STEPS = 10


class Biases:
    """logit p = a + b * bias of the video + c * bias of the user, as of each event.

    The biases are damped means (Koren, ACM TKDD 2010): of a video, label - mean over its events
    up to the day before; of a user, what is left of that after the video's bias, over the user's
    strictly earlier events. So they know what the ranker's point-in-time counts know. Damping is
    chosen by validation log loss of a fit on train; the coefficients are then fitted on
    train + validation.
    """

    def __init__(self, store: FeatureStore) -> None:
        names = ["user_row", "video_row", "timestamp", "label"]
        frames, part = [], []
        for number, name in enumerate(PARTS):
            for path in store.samples(name):
                frames.append(read_frame(path, columns=names))
                part.append(np.full(len(frames[-1]), number))
        frame = pd.concat(frames, ignore_index=True)
        self._part = np.concatenate(part)
        self._label = frame["label"].to_numpy(np.float64)
        user, video, time = (frame[name].to_numpy(np.int64) for name in names[:3])
        self._of_user = _Past.of(user, time)
        self._of_video = _Past.of(video, time // SECONDS_PER_DAY)

    def fit(self) -> Biases:
        settings = [(video, user) for video in DAMPING for user in DAMPING]
        train, valid = self._part == 0, self._part == 1
        losses = []
        for damping in settings:
            columns = self._columns(train, *damping)
            weights = logistic_regression(columns[train], self._label[train])
            p = _sigmoid(columns[valid] @ weights)
            losses.append(log_loss(self._label[valid].astype(np.float32), p.astype(np.float32)))
        self.damping = settings[int(np.argmin(losses))]
        known = train | valid
        self._values = self._columns(known, *self.damping)
        self._weights = logistic_regression(self._values[known], self._label[known])
        return self

    def predict(self, part: str) -> Float32:
        """p(positive) of the samples of a part, in file order; float32 [n]."""
        chosen = self._values[self._part == PARTS.index(part)]
        return _sigmoid(chosen @ self._weights).astype(np.float32)

    def encodings(self, *parts: str) -> Float32:
        """Video bias and user bias of the samples of `parts`, in file order; float32 [n, 2]."""
        chosen = [self._values[self._part == PARTS.index(part), 1:] for part in parts]
        encodings: Float32 = np.concatenate(chosen).astype(np.float32)
        return encodings

    def _columns(
        self, fitted: npt.NDArray[np.bool_], video_damping: float, user_damping: float
    ) -> Float64:
        """1, video bias and user bias of every event; float64 [events, 3]."""
        centred = self._label - self._label[fitted].mean()
        video = self._of_video.damped_mean(centred, video_damping)
        user = self._of_user.damped_mean(centred - video, user_damping)
        return np.stack([np.ones(len(video)), video, user], axis=1)


@dataclass(frozen=True)
class _Past:
    """The events of the same owner at strictly earlier times, for events in any order."""

    order: Int64
    owner: Int64
    time: Int64

    @classmethod
    def of(cls, owner: Int64, time: Int64) -> _Past:
        order = np.lexsort((time, owner))
        return cls(order, owner[order], time[order])

    def damped_mean(self, values: Float64, damping: float) -> Float64:
        """Sum of the earlier values over (their number + damping); float64 [n]."""
        at = positions(self.owner, self.time)
        total = count_before(values[self.order], at)
        count = at.known_until - at.user_first
        result = np.empty(len(values))
        result[self.order] = total / (count + damping)
        return result


def logistic_regression(columns: Float64, label: Float64) -> Float64:
    """Weights of maximum likelihood by Newton's method; float64 [columns]."""
    weights = np.zeros(columns.shape[1])
    ridge = 1e-6 * len(label) * np.eye(len(weights))
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(columns @ weights)
        slope = columns.T @ (label - p) - ridge @ weights
        curvature = (columns * (p * (1 - p))[:, None]).T @ columns + ridge
        weights = weights + np.linalg.solve(curvature, slope)
    return weights


def _sigmoid(logit: Float64) -> Float64:
    result: Float64 = 1 / (1 + np.exp(-logit))
    return result
