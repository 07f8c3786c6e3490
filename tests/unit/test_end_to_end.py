"""The served list on planted candidates: each step's gain and loss worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.end_to_end import Served, end_to_end, ranked_lists
from models.evaluation.retrieval import Bench, stacked
from models.metrics import Lists
from models.queries import Queries
from models.watches import Catalogue

NUM_USERS = 40


def bench() -> Bench:
    """User u wants videos 1, 2 and 3; everybody has watched 90."""
    wanted = Lists.group(
        np.repeat(np.arange(NUM_USERS), 3), np.tile([1, 2, 3], NUM_USERS), NUM_USERS
    )
    watched = Lists.group(np.arange(NUM_USERS), np.full(NUM_USERS, 90), NUM_USERS)
    queries = Queries({}, wanted, watched, np.arange(1, NUM_USERS + 1))
    return Bench(queries, Catalogue(np.r_[0, np.arange(100, 0, -1)]))


def every(row: list[int]) -> np.ndarray:
    return np.tile(np.array(row, np.int64), (NUM_USERS, 1))


def test_by_hand() -> None:
    exact = every([50, 1, 51, 2, 3])
    approximate = every([50, 1, 51, 2, 52])  # loses video 3
    scores = every([1, 9, 2, 8, 3]).astype(np.float32)
    served = Served(exact, approximate, ranked_lists(approximate, scores))
    assert served.ranked[0].tolist() == [1, 2, 52, 51, 50]
    ease = stacked([bench().judge_lists(every([1, 60, 61, 62, 63]))])
    got = end_to_end(bench(), [served], {"ease": ease})
    discount = 1 / np.log2(np.arange(2, 7))
    ideal = discount[:3].sum()
    assert got["users"] == NUM_USERS and got["num_candidates"] == 5
    assert got["recall_ceiling"]["mean"] == pytest.approx(2 / 3)
    assert got["approximate_loss"]["mean"] == pytest.approx(1 / 3)
    ndcg = {
        "served": discount[0] + discount[1],
        "retriever": discount[1] + discount[3],
        "ease": 1.0,
    }
    for name, gain in ndcg.items():
        assert got["metrics"][name]["ndcg@10"]["mean"] == pytest.approx(gain / ideal)
    assert got["ranker_lift"]["mean"] == pytest.approx((ndcg["served"] - ndcg["retriever"]) / ideal)
    assert got["paired"]["ease"]["ndcg@10"]["difference"] == pytest.approx(
        (ndcg["served"] - 1) / ideal
    )
    assert set(got["paired"]) == {"retriever", "ease"}
    # Recall beyond the number of candidates would not be comparable.
    assert "recall@10" not in got["metrics"]["served"]


def test_seeds_are_averaged_per_user() -> None:
    good, bad = every([1, 2, 3]), every([50, 51, 52])
    seeds = [Served(good, good, good), Served(bad, bad, bad)]
    got = end_to_end(bench(), seeds, {})
    assert got["recall_ceiling"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert got["metrics"]["served"]["ndcg@10"]["per_seed"] == [1.0, 0.0]
    assert got["ranker_lift"]["mean"] == 0


def test_fillers_stay_at_the_end() -> None:
    candidates = np.array([[4, 7, 0, 0], [3, 0, 0, 0]])
    scores = np.array([[-5, -1, 0, 9], [-2, 1, 1, 1]], np.float32)
    assert ranked_lists(candidates, scores).tolist() == [[7, 4, 0, 0], [3, 0, 0, 0]]


def test_intervals_hold_the_users() -> None:
    """Half of the users get everything: the interval is that of a coin's mean."""
    lists = every([1, 2, 3])
    lists[::2] = [50, 51, 52]
    got = end_to_end(bench(), [Served(lists, lists, lists)], {})["recall_ceiling"]
    half = 1.96 * 0.5 / np.sqrt(NUM_USERS)
    assert got["mean"] == 0.5
    assert (got["low"], got["high"]) == pytest.approx((0.5 - half, 0.5 + half), abs=0.05)
