"""Compiled functions that are traced once: a trace of the ranker's step takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models.compat  # noqa: F401

import tensorflow as tf


def any_length(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for batches of any length, at its first call.

    Left to itself, TensorFlow traces for the lengths of the first batch, and again each time that
    another tensor of a batch has another length than before. And it would rewrite the source of
    all that is called (AutoGraph), which takes more than half of a trace; what the models do does
    not depend on values of tensors, so there is nothing to rewrite.

    Args:
        function: takes tensors whose first axis is the batch, or dictionaries of them.
    """
    compiled = tf.function(function, reduce_retracing=True, autograph=False)

    def call(*batch: Any) -> Any:
        if not compiled.experimental_get_tracing_count():
            compiled.get_concrete_function(*tf.nest.map_structure(_of_any_length, batch))
        return compiled(*batch)

    return call


def _of_any_length(tensor: Any) -> Any:
    shape = tensor.shape.as_list()
    return tf.TensorSpec([None, *shape[1:]] if shape else shape, tensor.dtype)
