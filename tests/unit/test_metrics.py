"""Metrics against definitions written as loops, and values worked out by hand."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import metrics
from models.metrics import (
    Lists,
    auc,
    calibration_error,
    hits,
    list_quality,
    log_loss,
    per_user_auc,
    ranking_metrics,
    top_k,
)


def lists(*rows: list[int]) -> Lists:
    offsets = np.cumsum([0, *map(len, rows)])
    return Lists(np.array([x for row in rows for x in row], np.int64), offsets)


def random_case(seed: int) -> tuple[np.ndarray[Any, Any], list[list[int]]]:
    rng = np.random.default_rng(seed)
    found = np.stack([rng.permutation(np.arange(1, 151))[:100] for _ in range(20)])
    relevant = [
        sorted(rng.choice(np.arange(1, 151), rng.integers(1, 25), replace=False).tolist())
        for _ in range(20)
    ]
    return found, relevant


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics(seed: int) -> None:
    found, relevant = random_case(seed)
    got = ranking_metrics(found, lists(*relevant))
    recall10, recall100, ndcg, mrr = [], [], [], []
    for row, wanted in zip(found.tolist(), relevant, strict=True):
        recall10.append(len(set(row[:10]) & set(wanted)) / len(wanted))
        recall100.append(len(set(row[:100]) & set(wanted)) / len(wanted))
        gain = sum(1 / math.log2(i + 2) for i, v in enumerate(row[:10]) if v in wanted)
        ideal = sum(1 / math.log2(i + 2) for i in range(min(10, len(wanted))))
        ndcg.append(gain / ideal)
        mrr.append(next((1 / (i + 1) for i, v in enumerate(row) if v in wanted), 0.0))
    assert got["recall@10"] == pytest.approx(recall10)
    assert got["recall@100"] == pytest.approx(recall100)
    assert got["ndcg@10"] == pytest.approx(ndcg)
    assert got["mrr"] == pytest.approx(mrr)
    quality = (np.array(recall100) + ndcg) / 2
    assert list_quality(found, lists(*relevant)) == pytest.approx(quality)


def test_ranking_metrics_by_hand() -> None:
    found = np.array([[3, 1, 2], [4, 5, 6]])
    got = ranking_metrics(found, lists([1, 9], [7]))
    assert got["recall@10"].tolist() == got["recall@100"].tolist() == [0.5, 0]
    assert got["mrr"].tolist() == [0.5, 0]
    assert got["ndcg@10"] == pytest.approx([(1 / math.log2(3)) / (1 + 1 / math.log2(3)), 0])


def test_hits_and_lists() -> None:
    ragged = Lists.group(np.array([2, 0, 2]), np.array([5, 6, 7]), 4)
    assert [ragged[i].tolist() for i in range(len(ragged))] == [[6], [], [5, 7], []]
    found = np.array([[6, 5], [6, 5], [7, 1], [0, 0]])
    assert hits(found, ragged).tolist() == [[True, False], [False] * 2, [True, False], [False] * 2]


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_top_k_is_exact(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SCORES", batch_size * 41)
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(20, 5)).astype(np.float32)
    candidates = rng.normal(size=(41, 5)).astype(np.float32)
    excluded = [rng.choice(np.arange(1, 41), 6, replace=False).tolist() for _ in range(20)]
    found = top_k(queries, candidates, lists(*excluded), 12)
    for query, seen, row in zip(queries, excluded, found.tolist(), strict=True):
        scores = {v: float(query @ candidates[v]) for v in range(1, 41) if v not in seen}
        assert row == sorted(scores, key=lambda v: -scores[v])[:12]


def test_top_k_of_a_small_catalogue() -> None:
    found = top_k(np.ones((1, 1), np.float32), np.ones((4, 1), np.float32), lists([]), 100)
    assert sorted(found[0].tolist()) == [1, 2, 3]
    assert top_k(np.ones((0, 1), np.float32), np.ones((4, 1), np.float32), lists(), 2).shape == (
        0, 2,
    )  # fmt: skip


def pairs_auc(labels: list[bool], scores: list[int]) -> float:
    positive = [s for s, y in zip(scores, labels, strict=True) if y]
    negative = [s for s, y in zip(scores, labels, strict=True) if not y]
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positive, negative)]
    return sum(wins) / len(wins) if wins else float("nan")


# Few different scores, so that most are tied.
SCORED = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), max_size=40)


@given(SCORED)
def test_auc_counts_ties_half(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, _ = zip(*rows, strict=True) if rows else ((), (), ())
    got = auc(np.array(labels, np.float32), np.array(scores, np.float32))
    assert got == pytest.approx(pairs_auc(list(labels), list(scores)), nan_ok=True)


@given(SCORED)
def test_per_user_auc(rows: list[tuple[bool, int, int]]) -> None:
    total = weight = 0.0
    for user in {user for _, _, user in rows}:
        mine = [(y, s) for y, s, u in rows if u == user]
        value = pairs_auc([y for y, _ in mine], [s for _, s in mine])
        if not math.isnan(value):
            total, weight = total + len(mine) * value, weight + len(mine)
    array = np.array(rows, np.int64).reshape(-1, 3)
    got = per_user_auc(array[:, 0].astype(np.float32), array[:, 1].astype(np.float32), array[:, 2])
    assert got == pytest.approx(total / weight if weight else float("nan"), nan_ok=True)


def test_log_loss() -> None:
    labels = np.array([1, 0, 1], np.float32)
    p = np.array([0.9, 0.2, 0.5], np.float32)
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3
    assert log_loss(labels, p) == pytest.approx(expected, rel=1e-6)
    certain = log_loss(np.array([1, 0], np.float32), np.array([0, 1], np.float32))
    assert certain == pytest.approx(-math.log(1e-7), rel=1e-6)  # clipped, not infinite


def test_calibration_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000).astype(np.float32)
    labels = (rng.random(200_000) < p).astype(np.float32)
    assert calibration_error(labels, p) < 0.01
    assert calibration_error(labels, np.clip(p + 0.2, 0, 1)) == pytest.approx(0.18, abs=0.02)
    by_hand = calibration_error(
        np.array([0, 0, 1, 1], np.float32), np.array([0.1, 0.3, 0.6, 0.8], np.float32), bins=2
    )
    assert by_hand == pytest.approx((abs(0 - 0.2) + abs(1 - 0.7)) / 2)
