"""The two towers as Keras layers on Merlin blocks; both read one table of video embeddings."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import tensorflow as tf

from models.blocks import embedding_tables, split_kinds, tower_dims
from models.inputs import Tensors, merlin_schema
from workflow.config import RetrieverConfig
from workflow.features.spec import Feature, FeatureSpec

VIDEO_LISTS = ("history", "session_history", "long_history")  # read through the shared table
HEADS = 2


def video_table(spec: FeatureSpec, dim: int) -> Any:
    """Merlin's embedding table of videos, by video_index; shared by both towers."""
    schema = merlin_schema((spec["video_index"],))
    start = tf.keras.initializers.RandomNormal(stddev=0.05)
    return mm.EmbeddingTable(dim, *schema, embeddings_initializer=start, name="videos")


def look_up(table: Any, index: Any) -> Any:
    """Embeddings of int32 indices of any shape; float32 [..., dim]."""
    return tf.gather(table.table.embeddings, index)


def masked_mean(vectors: Any, mask: Any) -> Any:
    """Mean over the list entries with mask 1; zeros for an empty list.

    Args:
        vectors: float32 [batch, length, dim].
        mask: float32 [batch, length].
    Returns:
        float32 [batch, dim].
    """
    total = tf.matmul(mask[:, None, :], vectors)[:, 0]
    return total / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)


def masked_mean_of_rows(table: Any, index: Any, mask: Any) -> Any:
    """`masked_mean` of looked-up rows that never exist side by side in memory.

    Args:
        table: float32 [rows, dim].
        index: int32 [batch, length], rows of the table.
        mask: float32 [batch, length].
    Returns:
        float32 [batch, dim].
    """
    where = tf.where(mask > 0)
    rows = tf.gather_nd(index, where)
    total = tf.sparse.segment_sum(table, rows, where[:, 0], num_segments=tf.shape(index)[0])
    return total / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)


def hide(values: Any, rate: float) -> Any:
    """Dropout with one random byte a number; three times as fast as with a float.

    The rate is rounded to 1/256, and what is kept is scaled by what that keeps on average.
    """
    threshold = round(rate * 256)
    if threshold == 0:
        return values
    size = tf.size(values)
    words = tf.random.uniform([(size + 3) // 4], tf.int32.min, tf.int32.max, tf.int32)
    drawn = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size]
    kept = tf.reshape(tf.cast(drawn >= threshold, values.dtype), tf.shape(values))
    return values * (kept * (256 / (256 - threshold)))


def side_features(features: tuple[Feature, ...], widest: int) -> Any | None:
    """Merlin's input block of the features that are not videos; None when there are none."""
    if not features:
        return None
    categorical, _ = split_kinds(features)
    tables = embedding_tables(categorical, tower_dims(categorical, widest)) if categorical else None
    return mm.InputBlockV2(merlin_schema(features), categorical=tables)


def query_side(spec: FeatureSpec) -> tuple[Feature, ...]:
    """Query features other than watched videos and the user's id: a new user has them too."""
    return tuple(f for f in spec.query() if f.name not in (*VIDEO_LISTS, "user_index"))


def candidate_side(spec: FeatureSpec) -> tuple[Feature, ...]:
    """Candidate features other than the id: what is known of a new video too."""
    return tuple(f for f in spec.candidate() if f.name != "video_index")


@tf.keras.utils.register_keras_serializable(package="marquee")
class HistoryAttention(tf.keras.layers.Layer):
    """Each head mixes the recent watches, asked by the last one and their mean.

    Single-query attention: keys know position and video, values are the embeddings themselves, so
    what comes out lies in the space of the candidates.

    Input: vectors float32 [batch, length, dim], mask [batch, length], question [batch, dim].
    Output: float32 [batch, HEADS, dim].
    Source: after SASRec (Kang & McAuley, ICDM 2018) with one block, asked at its last position.
    """

    def build(self, shapes: Any) -> None:
        _, length, dim = shapes
        self.position = self.add_weight("position", (length, dim), initializer="random_normal")
        self.recency = self.add_weight("recency", (length, HEADS), initializer="zeros")
        self.query = self.add_weight("query", (dim, HEADS * dim))
        self.key = self.add_weight("key", (dim, dim))
        super().build(shapes)

    def call(self, vectors: Any, mask: Any = None, question: Any = None) -> Any:
        dim = vectors.shape[-1]
        asked = tf.reshape(tf.matmul(question, self.query), [-1, HEADS, dim])
        # asked · (key of vector + position), with the key matrix on the side that is shorter.
        asked = tf.matmul(asked, self.key, transpose_b=True)
        scores = tf.matmul(asked, vectors, transpose_b=True)
        scores += tf.matmul(asked, self.position, transpose_b=True)
        scores = scores * dim**-0.5 + tf.transpose(self.recency) - 1e9 * (1 - mask[:, None, :])
        weights = tf.nn.softmax(scores) * mask[:, None, :]
        return tf.matmul(weights, vectors)


@tf.keras.utils.register_keras_serializable(package="marquee")
class QueryTower(tf.keras.layers.Layer):
    """Watched videos, long past, recent and of the open session apart, and side features.

    `dropout` hides numbers, `history_dropout` whole watches, both in training only.

    Output: float32 [batch, dim].
    """

    def __init__(self, spec: FeatureSpec, config: RetrieverConfig, videos: Any) -> None:
        super().__init__()
        self.config, self.videos = config, videos
        self.dropout = self.history_dropout = 0.0
        self.attention = HistoryAttention()
        self.side = side_features(query_side(spec), config.embedding_dim)
        self.hidden = mm.MLPBlock(list(config.tower_layers))
        self.top = tf.keras.layers.Dense(config.embedding_dim)
        self.profile_scale = self.add_weight("profile_scale", (config.embedding_dim,), None, "ones")

    def call(self, features: Tensors, training: bool = False) -> Any:
        rate = self.dropout if training else 0.0
        index = features["history"]
        mask = self._mask(index, training)
        recent = hide(look_up(self.videos, index), rate)
        mean = masked_mean(recent, mask)
        heads = self.attention(recent, mask=mask, question=recent[:, -1] * mask[:, -1:] + mean)
        session = features["session_history"]
        session_mean = masked_mean(look_up(self.videos, session), self._mask(session, training))
        profile = self._profile(features["long_history"], training)
        dim = self.config.embedding_dim
        parts = [mean, tf.reshape(heads, [-1, HEADS * dim]), session_mean, profile]
        if self.side is not None:
            parts.append(self.side(features))
        hidden = self.hidden(hide(tf.concat(parts, axis=-1), rate))
        vector = self.top(hide(hidden, rate))
        return vector + mean + tf.reduce_mean(heads, axis=1) + profile * self.profile_scale

    def _profile(self, index: Any, training: bool) -> Any:
        """Mean of the long past; its gradient is left out, which would cost more than the rest."""
        table = tf.stop_gradient(self.videos.table.embeddings)
        return masked_mean_of_rows(table, index, self._mask(index, training))

    def _mask(self, index: Any, training: bool) -> Any:
        """1 where a list has a video; in training some watches are hidden."""
        mask = tf.cast(index > 0, tf.float32)
        if training and self.history_dropout > 0:
            kept = tf.random.uniform(tf.shape(mask)) >= self.history_dropout
            mask *= tf.cast(kept, tf.float32)
        return mask


@tf.keras.utils.register_keras_serializable(package="marquee")
class CandidateTower(tf.keras.layers.Layer):
    """A video's id and contents; output float32 [batch, dim] and a bias [batch]."""

    def __init__(self, spec: FeatureSpec, config: RetrieverConfig, videos: Any) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.videos = videos
        self.side = side_features(candidate_side(spec), dim)
        self.content = tf.keras.layers.Dense(dim, use_bias=False)
        self.hidden = mm.MLPBlock([dim])
        self.top = tf.keras.layers.Dense(dim, use_bias=False)
        self.bias = self.add_weight("bias", (spec["video_index"].cardinality,), None, "zeros")

    def call(self, features: Tensors) -> tuple[Any, Any]:
        index = features["video_index"][:, 0]
        vector = look_up(self.videos, index)
        if self.side is not None:
            vector += self.content(self.side(features))
        return vector + self.top(self.hidden(vector)), tf.gather(self.bias, index)
