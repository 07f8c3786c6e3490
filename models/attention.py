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
        user_numbers: float32 [batch, q, u]: log length and, with labels, their mean over
            everything and over the newest watches.
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
        self,
        item: Any,
        history: Any,
        label: Any | None,
        visible: Any,
        recent: Any,
        training: bool = False,
    ) -> Attended:
        """Attend.

        Args:
            item: float32 [batch, k, dim], the candidates.
            history: int32 [batch, length], watched videos.
            label: int32 [batch, length] as the feature has it, or None.
            visible: bool [batch, q, length], what each candidate (or all of them, q = 1) may see.
            recent: bool [batch, q, length], the newest models.inputs.RECENT_WATCHES.
        """
        seen = tf.cast(visible, tf.float32)
        count = tf.reduce_sum(seen, axis=2, keepdims=True)
        present = self._kept(seen, training)
        user_numbers, worth = [tf.math.log1p(count)], present
        if self.graded:
            liked = tf.cast(label == FIRST_VALUE + 1, tf.float32)[:, None, :]
            newest = tf.cast(recent, tf.float32)
            rate = _rate(liked, seen)
            worth = (liked - rate) * present
            user_numbers += [standard(rate), standard(_rate(liked, newest))]
        pooled = tf.matmul(worth / tf.sqrt(count + 1.0), self.pool(history))
        share, keys = self._attention(item, history, present)
        values = keys + self._label_vectors(label) if self.graded else keys
        pair_numbers = [tf.reduce_sum(share, axis=3)]
        if self.graded:
            surprise = (liked - rate) * seen
            pair_numbers.append(tf.reduce_sum(share * surprise[:, None], axis=3))
        return Attended(
            pooled,
            tf.transpose(tf.matmul(share, values), (0, 2, 1, 3)),
            tf.concat(user_numbers, axis=2),
            tf.concat([tf.transpose(numbers, (0, 2, 1)) for numbers in pair_numbers], axis=2),
        )

    def _kept(self, seen: Any, training: bool) -> Any:
        """`seen` without what dropout hides; the rest weighs more, so that sums stay."""
        if not training or self.dropout == 0:
            return seen
        keep = tf.random.uniform(tf.shape(seen)) >= self.dropout
        return seen * tf.cast(keep, tf.float32) / (1.0 - self.dropout)

    def _attention(self, item: Any, history: Any, present: Any) -> tuple[Any, Any]:
        """(weights [batch, heads, k, length], keys [batch, heads, length, dim])."""
        keys = self._split_heads(self.keys(history))
        queries = self._split_heads(self.query(item))
        scores = tf.matmul(queries, keys, transpose_b=True) * (SHARPNESS / np.sqrt(self.dim))
        # The logarithm lets what dropout leaves weigh more in the softmax too.
        scores += tf.where(present > 0, tf.math.log(tf.maximum(present, 1.0)), MASKED)[:, None]
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


def standard(rate: Any) -> Any:
    """A share on the scale of the other numbers: 0.5 becomes 0, a quarter more or less 1."""
    return (rate - 0.5) * 4.0


def _rate(liked: Any, counted: Any) -> Any:
    """Share of positives among the counted watches, pulled to one half; [batch, q, 1]."""
    total = tf.reduce_sum(liked * counted, axis=2, keepdims=True)
    count = tf.reduce_sum(counted, axis=2, keepdims=True)
    return (total + PRIOR_WATCHES / 2) / (count + PRIOR_WATCHES)
