"""Parts of the towers against brute force: means of looked-up rows, attention, hidden numbers."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pytest
import tensorflow as tf

from models.towers import HEADS, HistoryAttention, hide, masked_mean, masked_mean_of_rows


def test_means_of_lists() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(9, 4)).astype(np.float32)
    index = rng.integers(0, 9, (5, 6))
    mask = (rng.random((5, 6)) < 0.6).astype(np.float32)
    mask[:, 2], mask[3] = 1, 0
    wanted = np.zeros((5, 4))
    for row in (0, 1, 2, 4):
        wanted[row] = table[index[row][mask[row] > 0]].mean(axis=0)
    got = masked_mean_of_rows(tf.constant(table), tf.constant(index), tf.constant(mask))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    np.testing.assert_allclose(masked_mean(table[index], mask), wanted, atol=1e-6)


def test_attention() -> None:
    """Keys are (vector + position) · key; each head asks with its own part of the query matrix."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 5, 4)).astype(np.float32)
    question = rng.normal(size=(3, 4)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    layer = HistoryAttention()
    layer(vectors, mask=mask, question=question)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    got = layer(vectors, mask=mask, question=question).numpy()
    assert got.shape == (3, HEADS, 4) and not got[1].any()
    for row in (0, 2):
        for head in range(HEADS):
            wanted = attended(layer, vectors[row], question[row], mask[row] > 0, head)
            np.testing.assert_allclose(got[row, head], wanted, atol=1e-5)


def attended(layer: Any, vectors: Any, question: Any, known: Any, head: int) -> Any:
    keys = (vectors + layer.position.numpy()) @ layer.key.numpy()
    asked = (question @ layer.query.numpy())[head * 4 : head * 4 + 4]
    scores = (keys @ asked / 2.0 + layer.recency.numpy()[:, head])[known]
    weights = np.exp(scores - scores.max())
    return weights @ vectors[known] / weights.sum()


@pytest.mark.parametrize(("rate", "share"), [(0.5, 0.5), (0.2, 51 / 256), (0.0, 0.0)])
def test_hide(rate: float, share: float) -> None:
    """Independent of place, about `rate` of the numbers, and right on average."""
    tf.random.set_seed(0)
    values = tf.fill([301, 7, 97], 3.0)
    hidden = hide(values, rate).numpy()
    assert hidden.shape == (301, 7, 97)
    gone = hidden == 0
    assert gone.mean() == pytest.approx(share, abs=0.005)
    np.testing.assert_allclose(hidden[~gone], 3.0 / (1 - share), rtol=1e-6)
    flat = gone.ravel()
    for lag in (1, 2, 3, 4):  # four neighbours share a random word
        assert np.mean(flat[lag:] & flat[:-lag]) == pytest.approx(share**2, abs=0.005)
    if rate:
        assert (hide(values, rate).numpy() != hidden).any()
