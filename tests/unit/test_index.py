"""The index: recall against exact search, tuned effort, and which kind is chosen."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pytest

from models import index as module
from models.index import _choose, _flat, _ivf, _timed_search, recall_against
from workflow.config import IndexConfig


def clustered(num_videos: int = 4000, dim: int = 16) -> tuple[Any, Any]:
    """(videos, queries) around 40 centres, of length 1 as the towers make them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, dim))
    videos = centres[rng.integers(0, 40, num_videos)] + 0.6 * rng.normal(size=(num_videos, dim))
    queries = centres[rng.integers(0, 40, 200)] + 0.6 * rng.normal(size=(200, dim))
    both = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (videos, queries)]
    return both[0].astype(np.float32), both[1].astype(np.float32)


VIDEOS, QUERIES = clustered()
EXACT = np.argsort(-(QUERIES @ VIDEOS.T), axis=1, kind="stable")[:, :50].astype(np.int64)


def chosen(exact_ms: float = 1e9, **settings: Any) -> tuple[Any, dict[str, Any]]:
    return _choose(VIDEOS, QUERIES, EXACT, exact_ms, IndexConfig(**settings))


def measured(index: Any) -> float:
    _, found = index.search(QUERIES, 50)
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), EXACT.tolist(), strict=True)]
    return sum(shared) / EXACT.size


def test_recall_against() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall_against(exact[:, ::-1], exact) == 1.0  # order does not count
    assert recall_against(np.array([[1, 2, 9, -1], [8, 0, 0, 0]]), exact) == 3 / 8
    assert recall_against(np.full((2, 4), -1), exact) == 0.0
    assert recall_against(np.zeros((0, 4), int), np.zeros((0, 4), int)) == 1.0


def test_flat_is_exact() -> None:
    found, milliseconds = _timed_search(_flat(VIDEOS), QUERIES, 50)
    assert recall_against(found, EXACT) > 0.999
    assert milliseconds > 0


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("target", [0.8, 0.99])
def test_effort_is_tuned_to_the_target(kind: str, target: float) -> None:
    index, report = chosen(kind=kind, target_recall=target)
    assert report["kind"] == kind
    assert measured(index) >= target
    assert report["recall_vs_exact"] == pytest.approx(measured(index), abs=1e-4)
    lower = [effort for effort in module.EFFORTS if effort < report["effort"]]
    if lower:  # the next smaller effort does not reach it
        module.set_effort(index, kind, lower[-1])
        assert measured(index) < target


def test_more_recall_takes_more_effort() -> None:
    efforts = [chosen(kind="ivf", target_recall=t)[1]["effort"] for t in (0.5, 0.9, 1.0)]
    assert efforts == sorted(efforts) and efforts[0] < efforts[-1]


def test_effort_ends_at_the_number_of_lists() -> None:
    index = _ivf(VIDEOS)
    effort, recall, _ = module._tune(index, "ivf", QUERIES, EXACT, 1.1)  # cannot be reached
    assert effort >= index.nlist > effort // 2
    assert recall > 0.999


def test_auto_takes_flat_up_to_the_threshold() -> None:
    assert chosen(flat_up_to_videos=4000)[1]["kind"] == "flat"
    assert chosen(flat_up_to_videos=3999)[1]["kind"] == "ivf"


def test_auto_takes_what_is_faster_than_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(exact_ms=0.0, flat_up_to_videos=1)[1] == {
        "kind": "flat", "effort": 0, "recall_vs_exact": 1.0, "search_ms": 0.0,
    }  # fmt: skip

    def no_ivf(index: Any, kind: str, *rest: Any) -> tuple[int, float, float]:
        return (8, 0.5 if kind == "ivf" else 0.995, 0.1)

    monkeypatch.setattr(module, "_tune", no_ivf)
    assert chosen(flat_up_to_videos=1)[1]["kind"] == "hnsw"
    assert chosen(flat_up_to_videos=1, target_recall=0.999)[1]["kind"] == "flat"


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_kind_that_was_asked_for_is_used(kind: str) -> None:
    index, report = chosen(exact_ms=0.0, kind=kind, flat_up_to_videos=1_000_000)
    assert report["kind"] == kind and index.ntotal == len(VIDEOS)


def test_a_catalogue_smaller_than_a_list() -> None:
    few = VIDEOS[:20]
    index = _ivf(few)
    _, found = index.search(few[:5], 1)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
