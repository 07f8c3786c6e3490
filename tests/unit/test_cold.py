"""The boost of cold videos, against counting them in sorted lists."""

from __future__ import annotations

import numpy as np
import pytest

from models.cold import cold_boost
from models.metrics import Lists, top_lists

NUM_QUERIES, NUM_VIDEOS = 50, 1_000
NONE = Lists(np.zeros(0, np.int64), np.zeros(NUM_QUERIES + 1, np.int64))


def planted(num_cold: int = 100, behind: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Cold videos, the first ones, score `behind` lower than the others."""
    scores = np.random.default_rng(0).normal(size=(NUM_QUERIES, NUM_VIDEOS + 1))
    cold = np.zeros(NUM_VIDEOS + 1, bool)
    cold[1 : num_cold + 1] = True
    return (scores - behind * cold).astype(np.float32), cold


def share_of_cold(scores: np.ndarray, cold: np.ndarray, boost: float, excluded: Lists) -> float:
    boosted = scores + np.float32(boost) * cold
    lists = top_lists(lambda at: boosted[at], NUM_VIDEOS + 1, excluded, 100)
    return float(cold[lists].mean())


@pytest.mark.parametrize("share", [0.01, 0.03, 0.08])
def test_they_get_their_share(share: float) -> None:
    scores, cold = planted()
    boost = cold_boost(scores, cold, NONE, share)
    assert boost > 0
    assert share_of_cold(scores, cold, boost + 1e-4, NONE) == pytest.approx(share, abs=1e-3)


def test_not_more_than_their_share_of_the_catalogue() -> None:
    scores, cold = planted(num_cold=20)
    boost = cold_boost(scores, cold, NONE, 0.5)
    assert share_of_cold(scores, cold, boost + 1e-4, NONE) == pytest.approx(0.02, abs=1e-3)


def test_what_is_excluded_does_not_count() -> None:
    scores, cold = planted()
    owner = np.repeat(np.arange(NUM_QUERIES), 300)
    watched = np.tile(np.arange(701, 1_001), NUM_QUERIES)
    excluded = Lists.group(owner, watched, NUM_QUERIES)
    boost = cold_boost(scores, cold, excluded, 0.05)
    assert share_of_cold(scores, cold, boost + 1e-4, excluded) == pytest.approx(0.05, abs=1e-3)
    assert boost < cold_boost(scores, cold, NONE, 0.05)


def test_no_boost_where_none_is_needed() -> None:
    scores, cold = planted(behind=-1.0)
    assert cold_boost(scores, cold, NONE, 0.05) == 0
    assert cold_boost(scores, np.zeros_like(cold), NONE, 0.05) == 0
    assert cold_boost(scores, cold, NONE, 0.0) == 0
