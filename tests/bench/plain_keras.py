"""The retriever's architecture as one would write it in plain Keras, fed by tf.data.

What tests/bench/training_speed.py compares the retriever's training with. Only the look-ups of
features (models.inputs.FeatureTables) and the drawing of targets are the product's own.
"""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf

from models.blocks import drop_ids, tower_dims
from models.inputs import FeatureTables, Tensors
from models.targets import Objective, Targets
from models.towers import candidate_side, query_side
from workflow.config import RetrieverConfig
from workflow.features.spec import Feature, FeatureSpec

layers = tf.keras.layers
HEADS = 2
SHUFFLE_BUFFER = 100_000


def mean_of(vectors: Any, mask: Any) -> Any:
    """Mean over the entries with mask 1; float32 [batch, dim]."""
    total = tf.einsum("bld,bl->bd", vectors, mask)
    return total / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)


class SideFeatures(layers.Layer):
    """Embeddings of categories, means over lists, and numbers, side by side."""

    def __init__(self, features: tuple[Feature, ...], widest: int) -> None:
        super().__init__()
        self.features = features
        dims = tower_dims(tuple(f for f in features if f.kind != "continuous"), widest)
        self.tables = {
            f.name: layers.Embedding(f.cardinality, dims[f.domain])
            for f in features
            if f.kind != "continuous"
        }

    def call(self, inputs: Tensors) -> Any:
        parts = []
        for feature in self.features:
            values = inputs[feature.name]
            if feature.kind == "continuous":
                parts.append(values)
            else:
                known = tf.cast(values > 0, tf.float32) if feature.is_list else tf.ones_like(values)
                vectors = self.tables[feature.name](values)
                parts.append(mean_of(vectors, tf.cast(known, tf.float32)))
        return tf.concat(parts, axis=-1)


class Attention(layers.Layer):
    """Two heads over the recent watches, asked once; the values are the embeddings themselves."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.positions = layers.Embedding(length, dim)
        self.recency = layers.Embedding(length, HEADS, embeddings_initializer="zeros")
        self.query = layers.Dense(HEADS * dim, use_bias=False)
        self.key = layers.Dense(dim, use_bias=False)

    def call(self, vectors: Any, mask: Any, question: Any) -> Any:
        places = tf.range(tf.shape(vectors)[1])
        keys = self.key(vectors + self.positions(places))
        asked = tf.reshape(self.query(question), [-1, HEADS, self.dim])
        scores = tf.einsum("bhd,bld->bhl", asked, keys) / self.dim**0.5
        scores += tf.transpose(self.recency(places)) - 1e9 * (1 - mask[:, None, :])
        weights = tf.nn.softmax(scores) * mask[:, None, :]
        return tf.einsum("bhl,bld->bhd", weights, vectors)


class PlainTwoTower(tf.keras.Model):
    """Two towers over a shared embedding of videos.

    Args:
        distinct: the columns of the softmax are the distinct videos of the batch, as the product
            does it; otherwise every drawn target is a column (the usual in-batch softmax) and
            other rows' columns with one of a row's own targets are masked.
        log_share: float32 [num_videos + 1], log of each video's share of the watches.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        config: RetrieverConfig,
        objective: Objective,
        *,
        distinct: bool,
        log_share: Any,
    ) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.config, self.objective, self.distinct = config, objective, distinct
        self.log_share = tf.constant(log_share)
        self.num_rows = spec.num_videos + 1
        cardinality = spec["video_index"].cardinality
        self.videos = layers.Embedding(cardinality, dim)
        self.attention = Attention(spec["history"].length, dim)
        self.user = SideFeatures(query_side(spec), dim)
        self.hidden = [layers.Dense(units, "relu") for units in config.tower_layers]
        self.top = layers.Dense(dim)
        self.scale = self.add_weight("scale", (dim,), initializer="ones")
        self.hide = layers.Dropout(objective.dropout)
        self.hide_watches = layers.Dropout(objective.history_dropout)
        self.side = candidate_side(spec)
        self.content = SideFeatures(self.side, dim)
        self.mix = layers.Dense(dim, use_bias=False)
        self.video_hidden = layers.Dense(dim, "relu")
        self.video_top = layers.Dense(dim, use_bias=False)
        self.bias = layers.Embedding(cardinality, 1, embeddings_initializer="zeros")

    def query(self, features: Tensors) -> Any:
        """Query vectors in training; float32 [batch, dim]."""
        recent = self.hide(self.videos(features["history"]), training=True)
        mask = self.mask(features["history"])
        mean = mean_of(recent, mask)
        heads = self.attention(recent, mask, mean + recent[:, -1] * mask[:, -1:])
        session = features["session_history"]
        past = features["long_history"]
        session_mean = mean_of(self.videos(session), self.mask(session))
        profile = mean_of(tf.stop_gradient(self.videos(past)), self.mask(past))
        parts = [mean, heads[:, 0], heads[:, 1], session_mean, profile]
        if self.user.features:
            parts.append(self.user(features))
        hidden = self.hide(tf.concat(parts, axis=-1), training=True)
        for layer in self.hidden:
            hidden = layer(hidden)
        vector = self.top(self.hide(hidden, training=True))
        return vector + mean + (heads[:, 0] + heads[:, 1]) / 2 + profile * self.scale

    def mask(self, index: Any) -> Any:
        known = tf.cast(index > 0, tf.float32)
        kept = self.hide_watches(known, training=True)
        return tf.cast(kept > 0, tf.float32)

    def candidate(self, features: Tensors) -> tuple[Any, Any]:
        """Candidate vectors float32 [n, dim] and biases [n]."""
        index = features["video_index"][:, 0]
        vector = self.videos(index)
        if self.side:
            vector += self.mix(self.content(features))
        return vector + self.video_top(self.video_hidden(vector)), self.bias(index)[:, 0]

    def train_step(self, data: tuple[Tensors, Tensors, Any, Any]) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self.softmax_loss(*data)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}

    def softmax_loss(self, query: Tensors, candidate: Tensors, rows: Any, position: Any) -> Any:
        """Mean loss of a batch; what the arguments are says `dataset`."""
        queries = self.query(query)
        vectors, bias = self.candidate(candidate)
        bias -= tf.gather(self.log_share, rows)
        logits = tf.matmul(queries, vectors, transpose_b=True) + bias
        found = tf.gather(logits, position, batch_dims=1)
        if not self.distinct:
            own = tf.gather(rows, position)
            logits = tf.concat([found, self.without(logits, rows, own)], axis=1)
        chosen = tf.linalg.matvec(found, self.objective.weights())
        return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - chosen)

    def without(self, logits: Any, rows: Any, own: Any) -> Any:
        """Logits with -1e9 wherever the column holds a target of the row itself."""
        if own.shape[1] == 1:
            return tf.where(own == rows[None, :], -1e9, logits)
        batch = tf.shape(own)[0]
        places = tf.stack([tf.repeat(tf.range(batch), own.shape[1]), tf.reshape(own, [-1])], axis=1)
        table = tf.zeros([batch, self.num_rows], tf.bool)
        table = tf.tensor_scatter_nd_update(table, places, tf.ones(tf.size(own), tf.bool))
        return tf.where(tf.gather(table, rows, axis=1), -1e9, logits)


def dataset(
    columns: dict[str, Any],
    tables: FeatureTables,
    targets: Targets,
    config: RetrieverConfig,
    objective: Objective,
    *,
    distinct: bool,
) -> Any:
    """Batches (query features, candidate features, video rows of the columns, targets' places)."""

    def look_up(batch: Tensors) -> Any:
        drawn = targets.draw(batch, objective)
        rows = tf.reshape(drawn, [-1])
        place = tf.range(tf.size(rows))
        if distinct:
            rows, place = tf.unique(rows)
        candidate = drop_ids(tables.candidate(rows), config.id_dropout)
        return tables.query(batch), candidate, rows, tf.reshape(place, tf.shape(drawn))

    rows = tf.data.Dataset.from_tensor_slices(columns).shuffle(SHUFFLE_BUFFER).repeat()
    batches = rows.batch(config.batch_size, drop_remainder=True)
    return batches.map(look_up).prefetch(2)


def log_share(counts: Any) -> Any:
    """log of each video's share of the watches; float32."""
    return np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)
