"""The three orders against their definitions, computed the slow way."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from tests.pages import load

diversity = load("diversity")


def made(n: int, dim: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    return rng.random(n).astype(np.float32), vectors


def greedy(n: int, count: int, value: Any) -> list[int]:
    """The definition of a greedy order: value(chosen, candidate), again for every step."""
    chosen: list[int] = []
    for _ in range(count):
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: value(chosen, i)))
    return chosen


def mmr_value(relevance: Any, vectors: Any, s: float) -> Any:
    def value(chosen: list[int], i: int) -> float:
        likeness = max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
        return float((1 - s) * relevance[i] - s * likeness)

    return value


def spectrum_value(relevance: Any, vectors: Any, s: float) -> Any:
    def value(chosen: list[int], i: int) -> float:
        left = vectors[i].astype(np.float64)
        if chosen:
            basis = vectors[chosen].T.astype(np.float64)
            left = left - basis @ np.linalg.lstsq(basis, left, rcond=None)[0]
        return float((1 - s) * relevance[i] + s * np.linalg.norm(left))

    return value


def dpp_value(relevance: Any, vectors: Any, s: float) -> Any:
    likeness = (1 + vectors.astype(np.float64) @ vectors.T) / 2
    ridge = diversity.RIDGE
    likeness = (1 - ridge) * likeness + ridge * np.eye(len(vectors))
    quality = np.exp(relevance.astype(np.float64) * (1 - s) / (2 * s))
    kernel = quality[:, None] * likeness * quality

    def value(chosen: list[int], i: int) -> float:
        some = [*chosen, i]
        return float(np.linalg.slogdet(kernel[np.ix_(some, some)])[1])

    return value


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("s", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("name", "definition", "count"),
    # A sliding spectrum keeps a window's basis, so the definition holds up to its length.
    [("mmr", mmr_value, 25), ("spectrum", spectrum_value, 10), ("dpp", dpp_value, 25)],
)
def test_it_is_the_greedy_order(
    name: str, definition: Any, count: int, s: float, seed: int
) -> None:
    relevance, vectors = made(40, 12, seed)
    order = diversity.METHODS[name](relevance.copy(), vectors.copy(), count, s)
    assert order == greedy(40, count, definition(relevance, vectors, s))


@pytest.mark.parametrize("name", diversity.METHODS)
def test_all_are_chosen_once_and_arguments_stay(name: str) -> None:
    relevance, vectors = made(60, 4)
    before = relevance.copy(), vectors.copy()
    order = diversity.METHODS[name](relevance, vectors, 100, 0.4)
    assert sorted(order) == list(range(60))
    np.testing.assert_array_equal(relevance, before[0])
    np.testing.assert_array_equal(vectors, before[1])
    assert diversity.METHODS[name](relevance[:0], vectors[:0], 5, 0.4) == []


@pytest.mark.parametrize("name", diversity.METHODS)
def test_without_strength_relevance_decides(name: str) -> None:
    relevance, vectors = made(50, 6)
    order = diversity.METHODS[name](relevance, vectors, 50, 0.0)
    assert order == np.argsort(-relevance, kind="stable").tolist()


@pytest.mark.parametrize("name", ["mmr", "spectrum", "dpp"])
def test_twins_are_kept_apart(name: str) -> None:
    """Of ten pairs of the same video, one of each comes before any second one."""
    relevance, vectors = made(10, 16)
    order = diversity.METHODS[name](
        np.repeat(0.9 + 0.1 * relevance, 2), np.repeat(vectors, 2, axis=0), 10, 0.5
    )
    assert sorted(i // 2 for i in order) == list(range(10))


def test_a_spectrum_forgets_what_left_its_window() -> None:
    relevance, vectors = made(40, 24)
    s, axes, chosen = 0.6, deque[Any](maxlen=diversity.WINDOW), []
    for step in range(40):
        left = vectors.astype(np.float64)
        if axes:
            left = left - (left @ np.array(axes).T) @ np.array(axes)
        value = (1 - s) * relevance + s * np.linalg.norm(left, axis=1)
        value[chosen] = -np.inf
        best = int(value.argmax())
        chosen.append(best)
        if step >= diversity.WINDOW:
            axes.popleft()
        axis = vectors[best].astype(np.float64)
        axis = axis - sum((axis @ one) * one for one in axes)
        axes.append(axis / np.linalg.norm(axis))
    assert diversity.spectrum(relevance, vectors, 40, s) == chosen
