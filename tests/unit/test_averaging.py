"""Averages of weights against their definition."""

from __future__ import annotations

import models.compat  # noqa: F401

import numpy as np
import pytest
import tensorflow as tf

from models.averaging import POWER, WeightAverage


def run_steps(values: list[float]) -> tuple[tf.Variable, WeightAverage]:
    weight = tf.Variable([0.0, 100.0])
    average = WeightAverage([weight])
    for value in values:
        weight.assign([value, 1.0])
        average.update()
    return weight, average


def test_the_first_step_replaces_what_was_there() -> None:
    _, average = run_steps([3.0])
    assert average.average[0].numpy().tolist() == [3.0, 1.0]


def test_polynomial_decay() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    expected = 0.0
    for step, value in enumerate(values, start=1):
        share = (POWER + 1) / (POWER + step)
        expected = (1 - share) * expected + share * value
    _, average = run_steps(values)
    assert average.average[0].numpy()[0] == pytest.approx(expected, abs=1e-5)


def test_the_last_tenth_counts_most() -> None:
    _, average = run_steps([0.0] * 900 + [1.0] * 100)
    assert 0.6 < average.average[0].numpy()[0] < 0.75  # 1 - 0.9 ** (POWER + 1) is 0.69


def test_applied_and_kept() -> None:
    weight, average = run_steps([1.0, 2.0, 3.0])
    mean = average.average[0].numpy()
    with average.applied():
        assert weight.numpy().tolist() == mean.tolist() != [3.0, 1.0]
    assert weight.numpy().tolist() == [3.0, 1.0]
    average.keep()
    assert weight.numpy().tolist() == mean.tolist()
