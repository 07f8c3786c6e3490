"""The watches that retrieval learns from, and histories as sparse matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix

from models.metrics import Float64, Int64, Lists
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame

HEAD_SHARE, TORSO_SHARE = 0.5, 0.9  # of the training watches, most watched videos first
VIDEO_SEGMENTS = ("head", "torso", "tail", "cold")


@dataclass(frozen=True)
class Watches:
    """Training watches; repeats stay separate entries.

    Attributes:
        user_row, video_row: int64 [n].
        timestamp: int64 [n], unix seconds.
    """

    user_row: Int64
    video_row: Int64
    timestamp: Int64
    num_users: int
    num_videos: int

    @classmethod
    def read(cls, store: FeatureStore, spec: FeatureSpec, *parts: str) -> Watches:
        """The watches of the named parts."""
        names = ["user_row", "video_row", "timestamp", "watched"]
        frames = [read_frame(path, columns=names) for path in store.samples(*parts)]
        frame = pd.concat(frames, ignore_index=True)
        frame = frame[frame["watched"] == 1]
        user, video, time = (frame[name].to_numpy(np.int64) for name in names[:3])
        return cls(user, video, time, spec.num_users, spec.num_videos)

    @property
    def matrix(self) -> csr_matrix:
        """Who watched what; float32 CSR of ones [num_users + 1, num_videos + 1]."""
        shape = (self.num_users + 1, self.num_videos + 1)
        return _ones(csr_matrix((np.ones(len(self.user_row)), self._pairs), shape=shape))

    @property
    def _pairs(self) -> tuple[Int64, Int64]:
        return self.user_row, self.video_row

    @property
    def counts(self) -> Int64:
        """Watches per video row; int64 [num_videos + 1]."""
        return np.bincount(self.video_row, minlength=self.num_videos + 1)

    def since(self, timestamp: int) -> Watches:
        """The watches at or after `timestamp`."""
        return self._chosen(self.timestamp >= timestamp)

    def of_some_users(self, max_watches: int) -> Watches:
        """All of them, or those of random users who have about `max_watches` together."""
        share = max_watches / max(len(self.user_row), 1)
        if share >= 1:
            return self
        lucky = np.random.default_rng(0).random(self.num_users + 1) < share
        return self._chosen(lucky[self.user_row])

    def _chosen(self, kept: npt.NDArray[np.bool_]) -> Watches:
        columns = (self.user_row[kept], self.video_row[kept], self.timestamp[kept])
        return Watches(*columns, self.num_users, self.num_videos)


def history_matrix(histories: Lists, num_videos: int) -> csr_matrix:
    """Watched videos of each query; float32 CSR of ones [n, num_videos + 1]."""
    ones = np.ones(len(histories.values), np.float32)
    shape = (len(histories), num_videos + 1)
    return _ones(csr_matrix((ones, histories.values, histories.offsets), shape=shape))


def _ones(matrix: Any) -> csr_matrix:
    matrix.sum_duplicates()
    matrix.data = np.ones(len(matrix.data), np.float32)
    return matrix


@dataclass(frozen=True)
class Catalogue:
    """How often each video was watched in training.

    Attributes:
        counts: int64 [num_videos + 1]; row 0 is padding.
    """

    counts: Int64

    @property
    def num_videos(self) -> int:
        return len(self.counts) - 1

    @property
    def self_information(self) -> Float64:
        """-log2 of each video's share of watches, one watch added to each; float64, in bits."""
        share = (self.counts + 1) / (self.counts.sum() + self.num_videos)
        result: Float64 = -np.log2(share)
        return result

    @property
    def relative_popularity(self) -> Float64:
        """Each video's watches over those of the video of an average watch; float64."""
        average = (self.counts.astype(np.float64) ** 2).sum() / max(self.counts.sum(), 1)
        result: Float64 = self.counts / max(average, 1e-12)
        return result

    @property
    def segments(self) -> Int64:
        """Position in VIDEO_SEGMENTS of each video.

        Head are the most watched videos that make up half of the watches, torso those that make
        up the next 40%, tail the others that were watched, cold those that were not.
        """
        order = np.argsort(-self.counts, kind="stable")
        before = np.cumsum(self.counts[order]) - self.counts[order]
        share = before / max(self.counts.sum(), 1)
        result = np.zeros(len(self.counts), np.int64)
        result[order] = np.searchsorted([HEAD_SHARE, TORSO_SHARE], share, side="right")
        result[self.counts == 0] = VIDEO_SEGMENTS.index("cold")
        return result
