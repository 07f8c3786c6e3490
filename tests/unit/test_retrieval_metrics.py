"""Retrieval metrics per user and segment against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.retrieval import Bench, coverage_values, hits_within, query_metrics
from models.metrics import Int64, Lists, top_lists
from models.queries import Queries
from models.watches import VIDEO_SEGMENTS, Catalogue, Watches


def lists_of(*rows: list[int]) -> Lists:
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return Lists.group(owner, np.array([v for row in rows for v in row], np.int64), len(rows))


def queries_of(user_row: list[int], relevant: Lists, excluded: Lists) -> Queries:
    return Queries({}, relevant, excluded, np.array(user_row, np.int64))


def random_case(seed: int, num_videos: int = 40) -> tuple[Int64, Queries, Catalogue]:
    """20 queries of 12 users, lists of 30, some without a history."""
    rng = np.random.default_rng(seed)
    user_row = np.sort(rng.integers(1, 13, 20))
    rows = [rng.permutation(num_videos) + 1 for _ in range(20)]
    excluded = lists_of(*[row[: rng.integers(0, 5)].tolist() for row in rows])
    relevant = lists_of(*[row[10 : 11 + rng.integers(1, 20)].tolist() for row in rows])
    lists = np.stack([rng.permutation(row[5:])[:30] for row in rows])
    counts = np.r_[0, rng.integers(0, 30, num_videos)]
    counts[1:4] = 0
    return lists, queries_of(user_row.tolist(), relevant, excluded), Catalogue(counts)


def by_hand(recommended: list[int], relevant: set[int], counts: Int64) -> dict[str, float]:
    places = [place for place, row in enumerate(recommended, start=1) if row in relevant]
    found = {k: sum(place <= k for place in places) / len(relevant) for k in (10, 100, 500)}
    gain = sum(1 / math.log2(place + 1) for place in places if place <= 10)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(relevant), 10) + 1))
    total, average = counts.sum(), (counts**2).sum() / counts.sum()
    bits = [-math.log2((counts[r] + 1) / (total + len(counts) - 1)) for r in recommended[:10]]
    return {
        **{f"recall@{k}": value for k, value in found.items()},
        "ndcg@10": gain / ideal,
        "mrr": 1 / places[0] if places else 0.0,
        "novelty@10": sum(bits) / len(bits),
        "popularity_lift@10": sum(counts[r] / average for r in recommended[:10]) / 10,
    }


@pytest.mark.parametrize("seed", range(5))
def test_query_metrics(seed: int) -> None:
    lists, queries, catalogue = random_case(seed)
    got = query_metrics(lists, queries, catalogue)
    for at in range(len(queries)):
        expected = by_hand(lists[at].tolist(), set(queries.relevant[at]), catalogue.counts)
        assert {name: values[at] for name, values in got.items()} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_values_per_user(seed: int) -> None:
    """Requests of a user are averaged; those without a history are only a segment."""
    lists, queries, catalogue = random_case(seed)
    bench = Bench(queries, catalogue)
    got = bench.judge_lists(lists)
    per_query = query_metrics(lists, queries, catalogue)
    known = [at for at in range(len(queries)) if len(queries.excluded[at])]
    users = sorted({int(queries.user_row[at]) for at in known})
    assert bench.user_row.tolist() == users
    for name, values in per_query.items():
        expected = [
            np.mean([values[at] for at in known if queries.user_row[at] == u]) for u in users
        ]
        np.testing.assert_allclose(got.values[name], expected)
    shown = {int(row) for at in known for row in lists[at, :10]}
    assert got.values["coverage@10"].mean() == pytest.approx(len(shown) / 40)


@pytest.mark.parametrize("seed", range(5))
def test_segments(seed: int) -> None:
    lists, queries, catalogue = random_case(seed)
    lists = lists[:, :15]
    got = Bench(queries, catalogue).judge_lists(lists).segments
    sizes = queries.excluded.sizes
    median = np.median(sizes[sizes > 0])
    kinds = ["new" if s == 0 else "light" if s <= median else "heavy" for s in sizes]
    per_query = query_metrics(lists, queries, catalogue)
    for kind in ("new", "light", "heavy"):
        users = {u for u, k in zip(queries.user_row, kinds, strict=True) if k == kind}
        assert got[kind]["users"] == len(users)
        of_user = [
            np.mean(
                [
                    per_query["recall@100"][at]
                    for at in range(len(queries))
                    if kinds[at] == kind and queries.user_row[at] == user
                ]
            )
            for user in users
        ]
        assert ("recall@100" in got[kind]) == bool(users)
        if users:
            assert got[kind]["recall@100"] == pytest.approx(np.mean(of_user))
    videos = catalogue.segments
    for number, name in enumerate(VIDEO_SEGMENTS):
        found = [
            row in set(lists[at])
            for at in range(len(queries))
            for row in queries.relevant[at]
            if videos[row] == number
        ]
        assert got[name]["events"] == len(found)
        assert ("recall@100" in got[name]) == bool(found)
        if found:
            assert got[name]["recall@100"] == pytest.approx(np.mean(found))


def test_video_segments_by_share_of_watches() -> None:
    catalogue = Catalogue(np.array([0, 10, 50, 1, 35, 0, 4]))
    names = [VIDEO_SEGMENTS[s] for s in catalogue.segments[1:]]
    # In order 50, 35, 10, 4, 1: what came before is 0, .5, .85, .95, .99 of the watches.
    assert names == ["torso", "head", "tail", "torso", "cold", "tail"]


def test_average_watch_has_lift_one() -> None:
    counts = np.array([0, 8, 1, 1])
    lift = Catalogue(counts).relative_popularity
    assert (lift * counts).sum() / counts.sum() == pytest.approx(1)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_coverage_values_are_jackknife(seed: int) -> None:
    """The mean is the coverage; the spread is that of leaving each user out."""
    rng = np.random.default_rng(seed)
    owner = np.sort(np.r_[np.arange(6), rng.integers(0, 6, 4)])
    lists = rng.integers(0, 15, (10, 4))
    got = coverage_values(lists, owner, 14)

    def coverage(kept: Int64) -> float:
        return len(set(lists[kept].ravel().tolist()) - {0}) / 14

    without = np.array([coverage(owner != user) for user in range(6)])
    assert got.mean() == pytest.approx(coverage(owner >= 0))
    np.testing.assert_allclose(got - got.mean(), -5 * (without - without.mean()), atol=1e-12)


def test_short_lists() -> None:
    """0 fills up lists of users who have nearly everything watched; it counts as nothing."""
    queries = queries_of([1, 2], lists_of([3], [2]), lists_of([1, 2], [1]))
    scores = np.array([[9, 8, 7, 6], [9, 8, 7, 6]], np.float32)
    lists = top_lists(lambda at: scores[at].copy(), 4, queries.excluded, 500)
    assert lists.tolist() == [[3, 0, 0], [2, 3, 0]]
    got = Bench(queries, Catalogue(np.array([0, 5, 1, 1]))).judge_lists(lists)
    assert got.values["recall@10"].tolist() == [1, 1]
    assert got.values["coverage@10"].mean() == pytest.approx(2 / 3)
    assert hits_within(lists, queries).tolist() == [1, 1]


def test_watches() -> None:
    watches = Watches(*(np.array(c) for c in ([1, 1, 2], [2, 2, 1], [5, 6, 9])), 2, 3)
    assert watches.counts.tolist() == [0, 1, 2, 0]
    assert watches.matrix.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert watches.since(6).counts.tolist() == [0, 1, 1, 0]
