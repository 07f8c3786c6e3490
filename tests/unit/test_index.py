"""The index: recall against exact search, tuned effort, and which kind is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np
import pytest

from models import index_tuning
from models.index import choose
from models.index_kinds import QueryLists, flat, list_count, read_index, score_space, set_effort
from models.index_tuning import (
    EFFORTS,
    Sample,
    Tuned,
    exact_search,
    recall_against,
    timed_search,
    tune,
)
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


KNOWN, ASKED = QUERIES[:100], QUERIES[100:]
SAMPLE = Sample(KNOWN, ASKED, EXACT[100:], 1e9)


def chosen(sample: Sample = SAMPLE, **settings: Any) -> tuple[Any, Tuned]:
    return choose(VIDEOS, sample, IndexConfig(**settings))[:2]


def measured(index: Any, asked: Any = ASKED, exact: Any = EXACT[100:]) -> float:
    _, found = index.search(asked, exact.shape[1])
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    return sum(shared) / exact.size


def test_recall_against() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall_against(exact[:, ::-1], exact) == 1.0  # order does not count
    assert recall_against(np.array([[1, 2, 9, -1], [8, 0, 0, 0]]), exact) == 3 / 8
    assert recall_against(np.full((2, 4), -1), exact) == 0.0
    assert recall_against(np.zeros((0, 4), int), np.zeros((0, 4), int)) == 1.0


def test_flat_is_exact() -> None:
    found, milliseconds = timed_search(flat(VIDEOS), QUERIES, 50)
    assert recall_against(found, EXACT) > 0.999
    assert milliseconds > 0


@pytest.mark.parametrize("block", [37, 1000, 4000])
def test_exact_search_in_blocks_finds_the_same(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_tuning, "BLOCK", block)
    found, milliseconds = exact_search(VIDEOS, QUERIES, 50)
    scores = np.take_along_axis(QUERIES @ VIDEOS.T, found, axis=1)
    best = np.take_along_axis(QUERIES @ VIDEOS.T, EXACT, axis=1)
    np.testing.assert_allclose(scores, best, atol=1e-6)
    assert found.shape == EXACT.shape and all(len(set(row)) == 50 for row in found.tolist())
    assert milliseconds > 0


@pytest.mark.parametrize("kind", ["ivf", "ivf_fp16"])
def test_tuning_states_the_size_of_the_file(kind: str, tmp_path: Path) -> None:
    index, tuned = chosen(kind=kind)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    assert tuned.megabytes == round((tmp_path / "index.faiss").stat().st_size / 1e6, 1)


@pytest.mark.parametrize("kind", ["ivf", "ivf_fp16", "hnsw"])
@pytest.mark.parametrize("target", [0.8, 0.99])
def test_effort_is_tuned_to_the_target(kind: str, target: float) -> None:
    index, tuned = chosen(kind=kind, target_recall=target)
    assert tuned.kind == kind
    assert measured(index) >= target
    assert tuned.recall_vs_exact == pytest.approx(measured(index), abs=1e-4)
    lower = [effort for effort in EFFORTS if effort < tuned.effort]
    if lower:  # the next smaller effort does not reach it
        set_effort(index, kind, lower[-1])
        assert measured(index) < target


def test_more_recall_takes_more_effort() -> None:
    efforts = [chosen(kind="ivf", target_recall=t)[1].effort for t in (0.5, 0.9, 1.0)]
    assert efforts == sorted(efforts) and efforts[0] < efforts[-1]


def test_effort_ends_at_the_number_of_lists() -> None:
    index = QueryLists.fitted(VIDEOS, KNOWN).index(VIDEOS, half=False)
    tuned = tune(index, "ivf", SAMPLE, 1.1)  # cannot be reached
    assert tuned.effort == index.nlist == list_count(len(VIDEOS))
    assert tuned.recall_vs_exact > 0.999


def test_auto_takes_flat_up_to_the_threshold() -> None:
    assert chosen(flat_up_to_videos=4000)[1].kind == "flat"
    assert chosen(flat_up_to_videos=3999)[1].kind.startswith("ivf")


def test_auto_takes_the_least_cpu_time_that_reaches_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = {"ivf": (0.995, 0.3), "ivf_fp16": (0.991, 0.2)}

    def planted(index: Any, kind: str, *rest: Any) -> Tuned:
        return Tuned(kind, 8, *results[kind])

    monkeypatch.setattr("models.index.tune", planted)

    def kind(exact_ms: float = 0.4, target: float = 0.99) -> str:
        sample = Sample(KNOWN, ASKED, EXACT[100:], exact_ms)
        settings = IndexConfig(flat_up_to_videos=1, target_recall=target)
        _, tuned, tried = choose(VIDEOS, sample, settings)
        assert [one.kind for one in tried] == ["flat", "ivf", "ivf_fp16"]
        return tuned.kind

    assert kind() == "ivf_fp16"
    assert kind(target=0.993) == "ivf"
    assert kind(target=0.999) == "flat"
    assert kind(exact_ms=0.1) == "flat"


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf_fp16", "hnsw"])
def test_a_kind_that_was_asked_for_is_used(kind: str) -> None:
    sample = Sample(KNOWN, ASKED, EXACT[100:], 0.0)
    index, tuned = chosen(sample, kind=kind, flat_up_to_videos=1_000_000)
    assert tuned.kind == kind and index.ntotal == len(VIDEOS)


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf_fp16", "hnsw"])
def test_a_written_index_answers_as_before(kind: str, tmp_path: Path) -> None:
    index, tuned = chosen(kind=kind)
    faiss.write_index(index, str(tmp_path / "index"))
    again = read_index(str(tmp_path / "index"), kind, tuned.effort)
    for one, other in zip(index.search(ASKED, 50), again.search(ASKED, 50), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_catalogue_smaller_than_a_list() -> None:
    few = VIDEOS[:20]
    index = QueryLists.fitted(few, KNOWN).index(few, half=False)
    _, found = index.search(few[:5], 1)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_without_any_query() -> None:
    none = np.zeros((0, VIDEOS.shape[1]), np.float32)
    index = QueryLists.fitted(VIDEOS, none).index(VIDEOS, half=False)
    index.nprobe = index.nlist
    assert measured(index) > 0.999


# --- vectors as the retriever makes them ----------------------------------------------------------
def uneven(count: int, seed: int) -> tuple[Any, Any]:
    """(videos, queries) with a part that few queries ask about and that is long for few videos."""
    rng = np.random.default_rng(seed)
    videos, _ = clustered(count)
    queries = np.concatenate([QUERIES] * 5) + 0.3 * rng.normal(size=(1000, 16))
    scale = 10 ** rng.uniform(-1, 2, (count, 1))
    loud = rng.normal(size=(count, 8)) * scale
    rare = rng.normal(size=(1000, 8)) * (rng.random((1000, 1)) < 0.3) * 1e-2
    bias = rng.choice([-0.5, 0.8], (count, 1))
    both = np.hstack([videos, loud, bias]), np.hstack([queries, rare, np.ones((1000, 1))])
    return both[0].astype(np.float32), both[1].astype(np.float32)


def test_score_space_keeps_products_and_measures_score_differences() -> None:
    videos, queries = uneven(500, 1)
    forward, back = score_space(queries)
    y, asked = videos @ forward, queries @ back
    scale = np.abs(queries @ videos.T).max()
    np.testing.assert_allclose(asked @ y.T / scale, queries @ videos.T / scale, atol=1e-4)
    differences = queries @ (videos[:100] - videos[100:200]).T
    distance = ((y[:100] - y[100:200]) ** 2).sum(axis=1)
    expected = (differences.astype(np.float64) ** 2).mean(axis=0)
    np.testing.assert_allclose(distance, expected, rtol=0.01)


def test_lists_fitted_to_queries_need_less_effort() -> None:
    """Against FAISS's own clustering of the same vectors, by inner product, at equal effort."""
    videos, queries = uneven(4000, 2)
    known, asked = queries[:700], queries[700:]
    exact = np.argsort(-(asked @ videos.T), axis=1, kind="stable")[:, :50]
    fitted = QueryLists.fitted(videos, known).index(videos, half=False)
    quantizer = faiss.IndexFlatIP(videos.shape[1])
    usual = faiss.IndexIVFFlat(quantizer, videos.shape[1], fitted.nlist, faiss.METRIC_INNER_PRODUCT)
    usual.train(videos)
    usual.add(videos)
    fitted.nprobe = usual.nprobe = fitted.nlist // 6
    assert measured(fitted, asked, exact) > measured(usual, asked, exact) + 0.1
