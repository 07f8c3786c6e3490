"""The ranker: Merlin's DLRM with two heads, p(positive) and expected log watch time."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import tensorflow as tf

from models.blocks import drop_ids, embedding_tables, split_kinds
from models.inputs import Tensors, merlin_schema
from workflow.config import RankerConfig
from workflow.features.spec import FeatureSpec


class Ranker(tf.keras.Model):
    """DLRM over all features of a (user, video, request).

    Heads: the logit of the label, and, where the data has watch times, the expected
    log(1 + seconds) of a watch.

    Source: Naumov et al., Deep Learning Recommendation Model, 2019 (merlin.models.tf.DLRMBlock).
    """

    def __init__(self, spec: FeatureSpec, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.has_watch_time = spec.has_watch_time
        categorical, _ = split_kinds(spec.features)
        dims = {feature.domain: config.embedding_dim for feature in categorical}
        self.embeddings = embedding_tables(categorical, dims)
        self.bottom = mm.MLPBlock([*config.bottom_layers, config.embedding_dim])
        self.top = mm.MLPBlock(list(config.top_layers))
        self.body = mm.DLRMBlock(
            merlin_schema(spec.features),
            embeddings=self.embeddings,
            bottom_block=self.bottom,
            top_block=self.top,
        )
        self.label_head = tf.keras.layers.Dense(1, name="label_head")
        self.watch_head = tf.keras.layers.Dense(1, activation="relu", name="watch_head")

    def call(self, features: Tensors) -> tuple[Any, Any]:
        """(logit of the label, expected log watch); float32 [batch] each."""
        hidden = self.body(features)
        return self.label_head(hidden)[:, 0], self.watch_head(hidden)[:, 0]

    def loss(self, features: Tensors, batch: Tensors) -> Any:
        """Cross-entropy of the label plus the weighted squared error of watched events."""
        dropped = drop_ids(features, ("user_index", "video_index"), self.config.id_dropout)
        logit, log_watch = self(dropped)
        label = tf.cast(batch["label"], tf.float32)
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logit))
        if self.has_watch_time:
            loss += self.config.watch_loss_weight * watch_loss(batch["log_watch"], log_watch, label)
        return loss

    def score(self, logit: Any, log_watch: Any) -> Any:
        """What lists are sorted by; float32 [batch].

        p ** positive_power, times expected log watch ** watch_power where there are watch times.
        """
        score = tf.sigmoid(logit) ** self.config.positive_power
        return score * log_watch**self.config.watch_power if self.has_watch_time else score


def watch_loss(target: Any, predicted: Any, label: Any) -> Any:
    """Mean squared error of log watch time over positives whose time was measured; scalar."""
    measured = tf.logical_and(tf.math.is_finite(target), label > 0.5)
    error = tf.where(measured, predicted - tf.where(measured, target, 0.0), 0.0)
    count = tf.reduce_sum(tf.cast(measured, tf.float32))
    return tf.reduce_sum(tf.square(error)) / tf.maximum(count, 1.0)
