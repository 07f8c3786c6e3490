"""Small vectorised helpers of the simulator: seeds, categorical draws, ranks within groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def generator(seed: int, *key: int) -> np.random.Generator:
    """The random stream of one part of the world; streams of different keys are independent."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_rows(rng: np.random.Generator, probabilities: Array) -> Array:
    """One category per row of unnormalised `probabilities` [n, k]; returns int64 [n]."""
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    target = rng.random(len(cumulative)) * cumulative[:, -1]
    picked = (cumulative <= target[:, None]).sum(axis=1)
    return np.asarray(np.minimum(picked, cumulative.shape[1] - 1))


def rank_in_group(keys: Array) -> Array:
    """How many earlier elements have the same key: [5, 7, 5] -> [0, 0, 1]."""
    order = np.argsort(keys, kind="stable")
    index = np.arange(len(keys))
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = keys[order[1:]] != keys[order[:-1]]
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = index - np.maximum.accumulate(np.where(starts, index, 0))
    return rank


def unit(vectors: Array) -> Array:
    """Rows scaled to length 1, float32."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return np.asarray(vectors / np.maximum(length, 1e-12)[:, None], dtype=np.float32)


def row_dot(left: Array, right: Array) -> Array:
    """Dot product of matching rows: [n, d] x [n, d] -> [n]."""
    return np.asarray(np.einsum("ij,ij->i", left, right))


def sigmoid(logit: Array) -> Array:
    """Log-odds to probability, float64."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(logit, dtype=np.float64))))
