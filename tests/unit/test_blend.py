"""The blend on planted validation queries."""

from __future__ import annotations

import numpy as np
import pytest

from models.blend import Blend, Parts, choose_blend
from models.metrics import Lists
from models.queries import Queries

NUM_QUERIES, NUM_VIDEOS = 60, 400


def queries(relevant: np.ndarray) -> Queries:
    none = Lists(np.zeros(0, np.int64), np.zeros(NUM_QUERIES + 1, np.int64))
    owner = np.arange(NUM_QUERIES)
    return Queries({}, Lists.group(owner, relevant, NUM_QUERIES), none, owner)


def parts(**given: np.ndarray) -> Parts:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (NUM_QUERIES, NUM_VIDEOS + 1)).astype(np.float32)
    flat = np.zeros(NUM_VIDEOS + 1, np.float32)
    return Parts(**({
        "learned": noise, "co_watch": np.zeros_like(noise), "trend": flat, "log_popularity": flat,
    } | given))  # fmt: skip


def quality(blend: Blend, given: Parts, relevant: np.ndarray) -> float:
    """Share of queries whose relevant video comes first."""
    scores = given.scores(blend)
    scores[:, 0] = -np.inf
    return float((scores.argmax(axis=1) == relevant).mean())


def test_a_trend_that_knows_the_answer_is_used() -> None:
    relevant = np.random.default_rng(1).integers(1, 6, NUM_QUERIES)
    learned = np.random.default_rng(0).normal(0, 1, (NUM_QUERIES, NUM_VIDEOS + 1))
    rising = np.zeros(NUM_VIDEOS + 1, np.float32)
    rising[1:6] = 2
    given = parts(learned=learned.astype(np.float32), trend=rising)
    blend = choose_blend(given, queries(relevant), 0.0)
    assert blend.trend >= 1 and blend.co_watch == 0


def test_a_trend_that_misleads_is_left_out() -> None:
    """The relevant videos fall in the trend; without it the towers find them."""
    relevant = np.arange(1, NUM_QUERIES + 1)
    learned = np.random.default_rng(0).normal(0, 0.3, (NUM_QUERIES, NUM_VIDEOS + 1))
    learned[np.arange(NUM_QUERIES), relevant] = 2
    falling = np.zeros(NUM_VIDEOS + 1, np.float32)
    falling[1 : NUM_QUERIES + 1] = -3
    given = parts(learned=learned.astype(np.float32), trend=falling)
    blend = choose_blend(given, queries(relevant), 0.25)
    assert blend.trend == 0 and blend.co_watch == 0.25
    assert quality(blend, given, relevant) == 1


def test_among_equals_more_videos_are_shown() -> None:
    """Popularity decides nothing about recall here; leaving it out shows more of the catalogue."""
    relevant = np.random.default_rng(1).integers(201, NUM_VIDEOS + 1, NUM_QUERIES)
    learned = np.random.default_rng(2).normal(0, 0.01, (NUM_QUERIES, NUM_VIDEOS + 1))
    learned[:, 1:11] += 0.05  # ten videos that everybody is shown
    learned[np.arange(NUM_QUERIES), relevant] += 2
    popularity = np.full(NUM_VIDEOS + 1, -9, np.float32)
    popularity[1:11] = -1
    given = parts(learned=learned.astype(np.float32), log_popularity=popularity)
    blend = choose_blend(given, queries(relevant), 0.0)
    assert blend.popularity > 0 and quality(blend, given, relevant) == 1


def test_scores() -> None:
    given = parts(trend=np.arange(NUM_VIDEOS + 1, dtype=np.float32))
    np.testing.assert_allclose(
        given.scores(Blend(trend=0.5))[3], given.learned[3] + 0.5 * given.trend, rtol=1e-6
    )
    assert Blend().as_dict() == {"trend": 0.0, "co_watch": 0.0, "popularity": 0.0}
    with pytest.raises(TypeError):
        Blend(unknown=1.0)  # type: ignore[call-arg]
