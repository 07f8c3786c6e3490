"""The average of a model's weights over the last part of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import models.compat  # noqa: F401

import tensorflow as tf

POWER = 10.0  # step k of n weighs about k ** POWER: the last tenth of the steps counts


class WeightAverage(tf.Module):
    """Polynomial-decay average of trainable weights over gradient steps.

    The weights of a single step depend on its batch, more so before the learning rate has fallen:
    the mean of the predictions wanders, and with it calibration.

    Source: Shamir & Zhang, Stochastic Gradient Descent for Non-smooth Optimization, ICML 2013.
    """

    def __init__(self, variables: list[Any]) -> None:
        super().__init__()
        self._weights = variables
        self.steps = tf.Variable(0.0, trainable=False)
        self.average = [tf.Variable(weight, trainable=False) for weight in variables]

    @tf.function(autograph=False)
    def update(self) -> None:
        """Take in the weights after one more step."""
        self.steps.assign_add(1.0)
        share = tf.minimum(1.0, (POWER + 1) / (POWER + self.steps))
        for average, weight in zip(self.average, self._weights, strict=True):
            average.assign_add(share * (weight - average))

    def keep(self) -> None:
        """Give the model the average for good."""
        for average, weight in zip(self.average, self._weights, strict=True):
            weight.assign(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average within the block, and its own weights again after it."""
        own = [weight.numpy() for weight in self._weights]
        self.keep()
        try:
            yield
        finally:
            for values, weight in zip(own, self._weights, strict=True):
                weight.assign(values)
