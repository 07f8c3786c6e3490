"""Closed-form vectors and trend on planted watches."""

from __future__ import annotations

import numpy as np
import pytest

from models.co_watch import co_watch_vectors, log_popularity, trend
from models.watches import Watches

DAY = 86_400


def planted(per_user: int = 6, groups: int = 3, size: int = 10, seed: int = 0) -> Watches:
    """User u watches only videos of group u % groups; videos 1..size are group 0, and so on."""
    rng = np.random.default_rng(seed)
    user, video = [], []
    for one in range(1, 61):
        mine = 1 + (one % groups) * size + rng.permutation(size)[:per_user]
        user += [one] * per_user
        video += mine.tolist()
    zeros = np.zeros(len(user), np.int64)
    return Watches(np.array(user), np.array(video), zeros, 60, groups * size)


def score(watches: Watches, watched: list[int], dim: int = 8) -> np.ndarray:
    vectors = co_watch_vectors(watches, dim)
    query = vectors.history[watched].sum(axis=0) / np.sqrt(len(watched) + 1)
    return vectors.video @ query


def test_videos_watched_together_score_higher() -> None:
    scores = score(planted(), [1, 2], dim=3)
    assert scores[1:11].min() > scores[11:].max()


def test_scores_are_those_of_the_dense_decomposition() -> None:
    """Against numpy's full singular value decomposition of the normalised matrix."""
    watches = planted(per_user=3)
    matrix = np.zeros((61, 31))
    matrix[watches.user_row, watches.video_row] = 1
    per_user, per_video = matrix.sum(axis=1) + 1, matrix.sum(axis=0) + 1
    _, _, right = np.linalg.svd(matrix / np.sqrt(per_user)[:, None] / np.sqrt(per_video))
    expected = (right[:5, [1, 2]] / np.sqrt(per_video[[1, 2]])).sum(axis=1) @ right[:5]
    expected *= np.sqrt(per_video)
    got = score(watches, [1, 2], dim=5)
    assert np.corrcoef(got[1:], expected[1:])[0, 1] == pytest.approx(1, abs=1e-4)
    assert got[1:].std() > 0


def test_more_dimensions_than_the_data_has() -> None:
    vectors = co_watch_vectors(planted(), 64)
    assert vectors.history.shape == vectors.video.shape == (31, 64)
    assert vectors.history.dtype == np.float32 and np.isfinite(vectors.video).all()
    assert not vectors.video[:, 40:].any()


def test_the_same_watches_give_the_same_vectors() -> None:
    one, two = co_watch_vectors(planted(), 8), co_watch_vectors(planted(), 8)
    np.testing.assert_array_equal(one.video, two.video)


def test_trend() -> None:
    """Video 1 rises, 2 falls, 3 is steady, 4 was never watched."""
    video = np.r_[np.full(100, 1), np.full(100, 2), np.full(4_000, 3)]
    time = (
        np.r_[np.linspace(90, 100, 100), np.linspace(0, 10, 100), np.linspace(0, 100, 4_000)] * DAY
    )
    watches = Watches(np.ones(4_200, np.int64), video, time.astype(np.int64), 1, 4)
    rising, falling, steady, unseen = trend(watches)[1:]
    assert rising > 0.5 and falling < -0.5
    assert abs(steady) < 0.3 and unseen == 0


def test_log_popularity() -> None:
    watches = Watches(np.ones(4, np.int64), np.array([1, 1, 1, 2]), np.zeros(4, np.int64), 1, 3)
    got = np.exp(log_popularity(watches))
    assert got.sum() == pytest.approx(1)
    assert got[1] / got[2] == pytest.approx(3.5 / 1.5)
