"""Functions compiled once for batches of any length."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pytest
import tensorflow as tf

from models.tracing import any_length
from models.training import gradient_step

LENGTHS = ((5, 3), (5, 2), (4, 3), (1, 1), (5, 3))


def batch_of(rows: int, lists: int) -> dict[str, Any]:
    """Two tensors whose lengths change one by one, and a dictionary without any."""
    return {
        "rows": tf.range(rows, dtype=tf.float32),
        "lists": {"values": tf.ones([lists, 2])},
        "none": {},
    }


def test_one_trace_for_lengths_that_change_one_by_one() -> None:
    traces = []

    @any_length
    def total(batch: Any) -> Any:
        traces.append(batch["lists"]["values"].shape.as_list())
        return tf.reduce_sum(batch["rows"]) + tf.reduce_sum(batch["lists"]["values"])

    for rows, lists in LENGTHS:
        assert float(total(batch_of(rows, lists))) == sum(range(rows)) + 2 * lists
    assert traces == [[None, 2]]


def test_several_arguments_and_scalars() -> None:
    scaled = any_length(lambda values, factor: values * factor)
    for length in (3, 1):
        answer = scaled(tf.ones([length, 4]), tf.constant(2.0)).numpy()
        assert answer.tolist() == [[2.0] * 4] * length


@pytest.mark.parametrize(
    "learning_rate", [0.1, tf.keras.optimizers.schedules.CosineDecay(0.1, 200)]
)
def test_a_gradient_step_is_traced_once_and_learns(learning_rate: Any) -> None:
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.build([None, 2])
    traces = []

    def loss_of(batch: Any) -> Any:
        traces.append(None)
        return tf.reduce_mean((model(batch["x"]) - 3 * batch["x"][:, :1]) ** 2)

    step = gradient_step(model, tf.keras.optimizers.Adam(learning_rate), loss_of)
    random = np.random.default_rng(1)
    losses = [
        float(step({"x": tf.constant(random.normal(size=(length, 2)), tf.float32)}))
        for length in (8, 7, 8, 3) * 25
    ]
    assert len(traces) == 1
    assert losses[-1] < losses[0] / 10
