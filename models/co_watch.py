"""What the log says without any training: who watched what together, and what is on the rise.

Both become extra dimensions of the towers' vectors, so one inner product still finds everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from models.metrics import Float32
from models.watches import Watches

SECONDS_PER_DAY = 86_400
TREND_DAYS = (7, 14, 30, 60)


@dataclass(frozen=True)
class CoWatch:
    """Closed-form vectors: sum(history[watched]) / sqrt(count + 1) · video[v] scores video v.

    Attributes:
        history: float32 [num_videos + 1, dim], the side of what was watched.
        video: float32 [num_videos + 1, dim], the side of what may come; scores have a standard
            deviation of about one.
    """

    history: Float32
    video: Float32


def co_watch_vectors(watches: Watches, dim: int) -> CoWatch:
    """Leading singular vectors of the watch matrix, normalised by both degrees.

    The matrix is D_u^-1/2 X D_v^-1/2; its top right singular vectors are an ideal low-pass filter
    on the graph of users and videos. Cost grows with the number of watches, not with the square
    of the catalogue.

    Returns:
        Vectors of width `dim`; columns beyond the rank of the data are zero.
    Source: Shen et al., How Powerful is Graph Convolution for Recommendation?, CIKM 2021 (GF-CF).
    """
    matrix = watches.matrix
    shape = matrix.shape
    per_user = np.asarray(matrix.sum(axis=1)).ravel() + 1
    per_video = np.asarray(matrix.sum(axis=0)).ravel() + 1
    rank = min(dim, min(shape) - 1)
    normalised = sp.diags(per_user**-0.5) @ matrix @ sp.diags(per_video**-0.5)
    _, values, right = svds(normalised, k=rank, v0=np.ones(min(shape)))
    basis = np.zeros((shape[1], dim))
    basis[:, :rank] = right[np.argsort(-values)].T
    history, video = basis * per_video[:, None] ** -0.5, basis * per_video[:, None] ** 0.5
    sample = np.random.default_rng(0).permutation(watches.num_users)[:500] + 1
    users = (matrix[sample] @ history) / np.sqrt(per_user[sample])[:, None]
    scale = float((users @ video[1:].T).std()) or 1.0
    return CoWatch(history.astype(np.float32), (video / scale).astype(np.float32))


def log_popularity(watches: Watches) -> Float32:
    """log of each video's share of the watches, smoothed; float32 [num_videos + 1]."""
    counts = watches.counts + 0.5
    result: Float32 = np.log(counts / counts.sum()).astype(np.float32)
    return result


def trend(watches: Watches) -> Float32:
    """How much more a video is watched of late than over the whole log, in log units.

    The mean over the last 7, 14, 30 and 60 days of log(recent / expected from its overall share),
    shrunk towards 0 where few watches speak. What a model learned from the whole log estimates
    p(video | query) under the log's average popularity; adding this moves it to today's.

    Returns:
        float32 [num_videos + 1]; 0 for videos without watches.
    Source: prior correction for label shift, Saerens et al., Neural Computation 2002.
    """
    counts = watches.counts.astype(np.float64)
    share = counts / max(counts.sum(), 1)
    total = np.zeros(len(counts))
    last = watches.timestamp.max(initial=0)
    for days in TREND_DAYS:
        chosen = watches.timestamp > last - days * SECONDS_PER_DAY
        recent = np.bincount(watches.video_row[chosen], minlength=len(counts))
        expected = recent.sum() * share
        prior = 1 + 0.2 * expected
        total += np.log((recent + prior) / (expected + prior))
    result: Float32 = (total / len(TREND_DAYS)).astype(np.float32)
    return result
