"""Target attention: what a candidate has in common with each video of the user's history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf

from workflow.features.spec import FIRST_VALUE

MASKED = -1e9
SHARPNESS = 4.0  # keys start small; this lets attention differ from a plain mean early on
PRIOR_WATCHES = 5.0  # a history's own label rate is pulled to one half by so many watches


@dataclass(frozen=True)
class Attended:
    """What history says; q is 1 where all candidates of a request share one history, else k.

    Attributes:
        pooled: float32 [batch, q, dim], the history whatever the candidate.
        vectors: float32 [batch, k, heads, dim], the history as each candidate sees it.
        user_numbers: float32 [batch, q, u]: log length and, with labels, their mean.
        pair_numbers: float32 [batch, k, p]: attention on the history per head and, with labels,
            how much more positive than the user's mean the attended videos are.
    """

    pooled: Any
    vectors: Any
    user_numbers: Any
    pair_numbers: Any


class TargetAttention(tf.keras.layers.Layer):
    """Attention of candidates over watched videos, with labels where watches have them.

    The value of a watched video is its key plus a vector of its label. The attended label itself
    is a number: a learned nearest-neighbour vote over what the user liked. An empty slot with
    score 0 lets a candidate attend to nothing.

    Args:
        cardinality: vocabulary of the videos.
        graded: whether the history has labels (FIRST_VALUE + 0 or 1).
        dropout: share of the history hidden from each training request, so that its exact
            content cannot be used as the user's name.

    Source: Zhou et al., Deep Interest Network, KDD 2018.
    """

    def __init__(
        self, cardinality: int, dim: int, heads: int, *, graded: bool, dropout: float
    ) -> None:
        super().__init__(name="target_attention")
        self.dim, self.heads, self.graded, self.dropout = dim, heads, graded, dropout
        self.keys = tf.keras.layers.Embedding(cardinality, heads * dim, name="keys")
        self.pool = tf.keras.layers.Embedding(cardinality, dim, name="pool")
        self.query = tf.keras.layers.Dense(heads * dim, use_bias=False, name="query")
        self.label_vectors = tf.keras.layers.Embedding(2, heads * dim, name="label")

    def call(
        self, item: Any, history: Any, label: Any | None, visible: Any, training: bool = False
    ) -> Attended:
        """Attend.

        Args:
            item: float32 [batch, k, dim], the candidates.
            history: int32 [batch, length], watched videos.
            label: int32 [batch, length] as the feature has it, or None.
            visible: bool [batch, q, length], what each candidate (or all of them, q = 1) may see.
        """
        present = self._present(visible, training)
        count = tf.reduce_sum(present, axis=2, keepdims=True)
        user_numbers, worth = [tf.math.log1p(count)], present
        if self.graded:
            liked = tf.cast(label == FIRST_VALUE + 1, tf.float32)[:, None, :]
            total = tf.reduce_sum(liked * present, axis=2, keepdims=True)
            rate = (total + PRIOR_WATCHES / 2) / (count + PRIOR_WATCHES)
            worth = (liked - rate) * present
            user_numbers.append(rate)
        pooled = tf.matmul(worth / tf.sqrt(count + 1.0), self.pool(history))
        share, keys = self._attention(item, history, present)
        values = keys + self._label_vectors(label) if self.graded else keys
        pair_numbers = [tf.reduce_sum(share, axis=3)]
        if self.graded:
            pair_numbers.append(tf.reduce_sum(share * worth[:, None], axis=3))
        return Attended(
            pooled,
            tf.transpose(tf.matmul(share, values), (0, 2, 1, 3)),
            tf.concat(user_numbers, axis=2),
            tf.concat([tf.transpose(numbers, (0, 2, 1)) for numbers in pair_numbers], axis=2),
        )

    def _present(self, visible: Any, training: bool) -> Any:
        present = tf.cast(visible, tf.float32)
        if training and self.dropout > 0:
            keep = tf.random.uniform(tf.shape(present)) >= self.dropout
            present *= tf.cast(keep, tf.float32)
        return present

    def _attention(self, item: Any, history: Any, present: Any) -> tuple[Any, Any]:
        """(weights [batch, heads, k, length], keys [batch, heads, length, dim])."""
        keys = self._split_heads(self.keys(history))
        queries = self._split_heads(self.query(item))
        scores = tf.matmul(queries, keys, transpose_b=True) * (SHARPNESS / np.sqrt(self.dim))
        scores += ((1.0 - present) * MASKED)[:, None]
        nothing = tf.zeros_like(scores[..., :1])
        return tf.nn.softmax(tf.concat([scores, nothing], axis=3))[..., :-1], keys

    def _label_vectors(self, label: Any) -> Any:
        positive = tf.cast(label == FIRST_VALUE + 1, tf.int32)
        return self._split_heads(self.label_vectors(positive))

    def _split_heads(self, x: Any) -> Any:
        """[batch, n, heads * dim] becomes [batch, heads, n, dim]."""
        shape = tf.shape(x)
        split = tf.reshape(x, (shape[0], shape[1], self.heads, self.dim))
        return tf.transpose(split, (0, 2, 1, 3))
