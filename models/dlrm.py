"""The ranker: a DLRM over a request and its candidates, with one head per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import numpy as np
import tensorflow as tf

from models.attention import TargetAttention
from models.blocks import drop_ids, embedding_tables, split_kinds
from models.inputs import Tensors
from models.scoring import Scoring
from models.team import team
from models.watch_time import WatchTime
from workflow.config import RankerConfig
from workflow.features.spec import QUERY_GROUPS, Feature, FeatureSpec

# Not fields of their own. Lists of the past are attended to through the long history; a mean of the
# open session, like the user's id, is learned by heart: training gains, later weeks lose.
NOT_FIELDS = ("user_index", "history", "session_history", "long_history", "long_history_label")


@dataclass(frozen=True)
class RankerFields:
    """Which feature goes where in the ranker.

    Attributes:
        query, video: categorical and multi-hot features that become interacting vectors.
        query_numbers, video_numbers: continuous features, read by the bottom perceptron.
        item_numbers: those of video_numbers that never change; they help to describe a candidate.
    """

    query: tuple[Feature, ...]
    video: tuple[Feature, ...]
    query_numbers: tuple[str, ...]
    video_numbers: tuple[str, ...]
    item_numbers: tuple[str, ...]
    history: Feature
    graded: bool

    @classmethod
    def of(cls, spec: FeatureSpec) -> RankerFields:
        query, query_numbers = split_kinds(spec.of_group(*QUERY_GROUPS))
        video, numbers = split_kinds(spec.of_group("video", "video_state", "cross"))
        return cls(
            query=tuple(f for f in query if f.name not in NOT_FIELDS),
            video=video,
            query_numbers=tuple(f.name for f in query_numbers),
            video_numbers=tuple(f.name for f in numbers),
            item_numbers=tuple(f.name for f in numbers if f.group == "video"),
            history=spec["long_history"],
            graded=any(f.name == "long_history_label" for f in spec.features),
        )


@dataclass(frozen=True)
class Outputs:
    """Per candidate, float32 [batch, k] each.

    Attributes:
        label: logit of the positive label, given that the video is shown.
        watch: logit of the candidate being watched.
        watch_time: raw output of the watch-time head (models.watch_time).
    """

    label: Any
    watch: Any
    watch_time: Any


class Ranker(tf.keras.Model):
    """DLRM with target attention over the history as further interacting vectors.

    Tasks: p(positive label | shown) and watch time share everything below their heads; p(watched)
    has a perceptron of its own on the same vectors. A candidate's own vector is the sum of its
    features' vectors. `watch_time` and `scoring` say what the outputs mean; the ranker stage fits
    them.

    Source: Naumov et al., Deep Learning Recommendation Model, 2019; models.attention.
    """

    def __init__(self, spec: FeatureSpec, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.has_label, self.has_watch_time = spec.has_label, spec.has_watch_time
        self.fields = fields = RankerFields.of(spec)
        dim = config.embedding_dim
        dims = {feature.domain: dim for feature in (*fields.query, *fields.video)}
        self.query_embeddings = embedding_tables(fields.query, dims)
        self.video_embeddings = embedding_tables(fields.video, dims)
        self.item_numbers = tf.keras.layers.Dense(dim, name="item_numbers")
        self.attention = TargetAttention(
            fields.history.cardinality,
            dim,
            config.attention_heads,
            graded=fields.graded,
            dropout=config.history_dropout,
        )
        self.bottom = mm.MLPBlock([*config.bottom_layers, dim])
        self.top = mm.MLPBlock(list(config.top_layers), dropout=config.dropout or None)
        self.watch_top = mm.MLPBlock(list(config.top_layers), dropout=config.dropout or None)
        self.label_head = tf.keras.layers.Dense(1, name="label_head")
        self.watch_head = tf.keras.layers.Dense(1, name="watch_head")
        self.time_head = tf.keras.layers.Dense(WatchTime.width, name="time_head")
        self.watch_time: WatchTime | None = None
        self.scoring = Scoring()

    def call(self, query: Tensors, candidates: Tensors, training: bool = False) -> Outputs:
        """Score candidates.

        Args:
            query: features of the requests, [batch, q, 1 or length]; q is 1, or k where each
                candidate has a moment of its own. The long history and its labels are
                [batch, length]; "visible" and "recent", bool [batch, q, length], say what of
                them counts.
            candidates: features of the videos, [batch, k, 1 or length].
        """
        joined = self._joined(query, candidates, training)
        hidden = self.top(joined, training=training)
        # What is watched of a list must not bend what the label has taught the layers below.
        below = tf.stop_gradient(joined) if self.has_label else joined
        watch = self.watch_top(below, training=training)
        return Outputs(
            self.label_head(hidden)[..., 0],
            self.watch_head(watch)[..., 0],
            self.time_head(hidden)[..., 0],
        )

    def _joined(self, query: Tensors, candidates: Tensors, training: bool) -> Any:
        """Inputs of the top perceptrons: [numbers, bottom, interactions, candidate]."""
        fields = self.fields
        video = self._embedded(self.video_embeddings, fields.video, candidates)
        item = tf.reduce_sum(video, axis=2)
        if fields.item_numbers:
            item += self.item_numbers(_joined(candidates, fields.item_numbers))
        label = query["long_history_label"] if fields.graded else None
        seen = self.attention(
            item,
            query["long_history"],
            label,
            query["visible"],
            query["recent"],
            training=training,
        )
        k = tf.shape(item)[1]
        numbers = self._numbers(query, candidates, seen, k)
        bottom = self.bottom(numbers, training=training)
        user = [self._embedded(self.query_embeddings, fields.query, query)] if fields.query else []
        user = _for_each(tf.concat([*user, seen.pooled[:, :, None, :]], axis=2), k)
        stacked = tf.concat([user, video, seen.vectors, bottom[:, :, None, :]], axis=2)
        return tf.concat([numbers, bottom, interactions(stacked), item], axis=2)

    def _embedded(self, tables: Any, fields: tuple[Feature, ...], values: Tensors) -> Any:
        """Vectors of fields [batch, n, 1 or length]; float32 [batch, n, fields, dim]."""
        shape = tf.shape(values[fields[0].name])
        flat = {f.name: tf.reshape(values[f.name], (-1, f.length)) for f in fields}
        vectors = tables(flat)
        stacked = tf.stack([vectors[f.name] for f in fields], axis=1)
        return tf.reshape(stacked, (shape[0], shape[1], len(fields), self.config.embedding_dim))

    def _numbers(self, query: Tensors, candidates: Tensors, seen: Any, k: Any) -> Any:
        """Inputs of the bottom perceptron; float32 [batch, k, n]."""
        user = tf.concat([_joined(query, self.fields.query_numbers), seen.user_numbers], axis=2)
        video = _joined(candidates, self.fields.video_numbers)
        return tf.concat([_for_each(user, k), video, seen.pair_numbers], axis=2)

    def event_loss(self, query: Tensors, candidates: Tensors, batch: Tensors) -> Any:
        """Cross-entropy of the label plus the weighted error of watch times, on logged events.

        Args:
            batch: "label" and, with watch times, "watched", "log_watch" and "duration_s",
                [batch, k]; "present", bool [batch, k], says which of them are events.
        """
        out = self(query, self._dropped(candidates), training=True)
        label, present = batch["label"], batch["present"]
        loss = tf.constant(0.0)
        if self.has_label:
            errors = tf.nn.sigmoid_cross_entropy_with_logits(label, out.label)
            loss += mean_where(present, errors)
        if self.watch_time is not None:
            watched = present & (batch["watched"] > 0)
            error = self.watch_time.loss(
                tf.reshape(out.watch_time, (-1, WatchTime.width)),
                tf.math.expm1(tf.reshape(batch["log_watch"], [-1])),
                tf.reshape(batch["duration_s"], [-1]),
                tf.reshape(tf.cast(watched, tf.float32), [-1]),
            )
            loss += self.config.watch_time_loss_weight * error
        return loss

    def list_loss(self, query: Tensors, candidates: Tensors, watched: Any, present: Any) -> Any:
        """Cross-entropy of "is it watched" over sampled candidates; scalar.

        Args:
            watched: float32 [batch, k].
            present: bool [batch, k]; absent candidates count for nothing.
        """
        out = self(query, self._dropped(candidates), training=True)
        return mean_where(present, tf.nn.sigmoid_cross_entropy_with_logits(watched, out.watch))

    def _dropped(self, candidates: Tensors) -> Tensors:
        return drop_ids(candidates, self.config.id_dropout)


def interactions(vectors: Any) -> Any:
    """Inner products of all pairs, row by row of the upper triangle.

    Args:
        vectors: float32 [batch, k, n, dim].
    Returns:
        float32 [batch, k, n * (n - 1) / 2].
    """
    n = vectors.shape[2]
    products = tf.matmul(vectors, vectors, transpose_b=True)
    flat = tf.reshape(products, (tf.shape(vectors)[0], -1, n * n))
    first, second = np.triu_indices(n, 1)
    return tf.gather(flat, first * n + second, axis=2)


def _for_each(values: Any, k: Any) -> Any:
    """[batch, 1 or k, ...] becomes [batch, k, ...]."""
    shape = tf.shape(values)
    return tf.broadcast_to(values, tf.concat([shape[:1], [k], shape[2:]], axis=0))


def _joined(features: Tensors, names: tuple[str, ...]) -> Any:
    return tf.concat([features[name] for name in names], axis=2)


def mean_where(chosen: Any, values: Any) -> Any:
    """This worker's part (models.team) of the mean of the chosen values, 0 if there are none."""
    total = tf.reduce_sum(tf.where(chosen, values, 0.0))
    count = team().whole(tf.reduce_sum(tf.cast(chosen, tf.float32)))
    return total / tf.maximum(count, 1.0)
