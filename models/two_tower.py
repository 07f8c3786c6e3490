"""The retriever: two towers, and what the log says without training, in one inner product.

    score(query, video) = learned query · learned video + bias
                        + co-watch query · co-watch video + offset

The query vector is [learned, co-watch, 1], the candidate vector [learned, co-watch, bias + offset].
"""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.blocks import drop_ids
from models.inputs import FeatureTables, Tensors
from models.targets import Objective
from models.team import team
from models.towers import CandidateTower, QueryTower, masked_mean, video_table
from models.tracing import any_length
from workflow.config import RetrieverConfig
from workflow.features.spec import FeatureSpec

SCORE_BATCH = 4096


class TwoTower(tf.keras.Model):
    """Query and candidate tower over one table of videos.

    Weights that are computed and not trained: `co_history` and `co_video` float32 [cardinality,
    co_watch_dim] by video_index, `offset` float32 [num_videos + 1] by video_row.
    """

    def __init__(self, spec: FeatureSpec, config: RetrieverConfig, objective: Objective) -> None:
        super().__init__()
        self.config, self.objective = config, objective
        self.videos = video_table(spec, config.embedding_dim)
        self.query_tower = QueryTower(spec, config, self.videos)
        self.query_tower.dropout = objective.dropout
        self.query_tower.history_dropout = objective.history_dropout
        self.candidate_tower = CandidateTower(spec, config, self.videos)
        fixed = {"initializer": "zeros", "trainable": False}
        shape = (spec["video_index"].cardinality, config.co_watch_dim)
        self.co_history = self.add_weight("co_history", shape, **fixed)
        self.co_video = self.add_weight("co_video", shape, **fixed)
        self.offset = self.add_weight("offset", (spec.num_videos + 1,), **fixed)

    def query(self, features: Tensors) -> Any:
        """Query vectors; float32 [batch, output_dim(config)]."""
        learned = self.query_tower(features)
        ones = tf.ones_like(learned[:, :1])
        return tf.concat([learned, self.co_watch_query(features["long_history"]), ones], axis=-1)

    def co_watch_query(self, profile: Any) -> Any:
        """The co-watch part of the query vector; float32 [batch, co_watch_dim]."""
        mask = tf.cast(profile > 0, tf.float32)
        count = tf.reduce_sum(mask, axis=1, keepdims=True)
        mean = masked_mean(tf.gather(self.co_history, profile), mask)
        return mean * count / tf.sqrt(count + 1.0)

    def candidate(self, features: Tensors, video_row: Any) -> Any:
        """Candidate vectors; float32 [n, output_dim(config)]."""
        learned, bias = self.candidate_tower(features)
        co_watch = tf.gather(self.co_video, features["video_index"][:, 0])
        last = bias + tf.gather(self.offset, video_row)
        return tf.concat([learned, co_watch, last[:, None]], axis=-1)

    def loss(self, query: Tensors, candidate: Tensors, position: Any, log_q: Any) -> Any:
        """Mean sampled-softmax loss of the learned part.

        Args:
            query: query features, [batch, ...].
            candidate: features of the distinct videos that the batch drew, [n, ...].
            position: int [batch, targets], where each target stands among them.
            log_q: float32 [n], log probability that a batch draws the video; None: no correction.
        """
        rate = self.config.id_dropout
        queries = self.query_tower(query, training=True)
        learned, bias = self.candidate_tower(drop_ids(candidate, rate))
        logits = tf.matmul(queries, learned, transpose_b=True) + bias
        weights = self.objective.weights()
        return sampled_softmax(logits, position, weights, log_q)

    def start_from(self, vectors: npt.NDArray[np.float32]) -> None:
        """Begin with closed-form vectors as embeddings: rows of one length, zero rows as they are.

        Args:
            vectors: float32 [cardinality, any width up to embedding_dim].
        """
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        table = self.videos.table.embeddings
        start = table.numpy()
        start[:, : vectors.shape[1]] += 0.4 * vectors / np.maximum(length, 1e-6)
        table.assign(start)


def output_dim(config: RetrieverConfig) -> int:
    """Width of query and candidate vectors."""
    return config.embedding_dim + config.co_watch_dim + 1


def sampled_softmax(logits: Any, position: Any, weights: Any, log_q: Any | None) -> Any:
    """Softmax over the distinct videos that a batch drew, with several targets a query.

    Each distinct video is one column however often it was drawn, so the correction subtracts the
    log of its probability to be drawn at all.

    Args:
        logits: float32 [batch, n].
        position: int [batch, targets], columns of the query's targets.
        weights: float32 [targets], summing to 1.
        log_q: float32 [n] or None.
    Returns:
        float32 scalar: mean of -sum(weight · log softmax); of several workers (models.team),
        this one's part of it, where `n` are the videos that the rows of all of them drew.
    Source: Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019; Pancha et al.,
        PinnerFormer, KDD 2022 (several future targets).
    """
    if log_q is not None:
        logits -= log_q
    targets = tf.gather(logits, position, batch_dims=1)
    losses = tf.reduce_logsumexp(logits, axis=1) - tf.linalg.matvec(targets, weights)
    return tf.reduce_sum(losses) / team().whole(tf.cast(tf.size(losses), tf.float32))


def log_draw_probability(counts: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.float32]:
    """log of the probability that a batch holds a video.

    Args:
        counts: int64 [num_videos + 1] training watches; unseen videos count as one.
        draws: targets in a batch, drawn by popularity.
    Returns:
        float32 [num_videos + 1].
    """
    share = np.maximum(counts, 1) / max(int(counts.sum()), 1)
    missing = draws * np.log1p(-np.minimum(share, 1 - 1e-9))
    result: npt.NDArray[np.float32] = np.log(-np.expm1(missing)).astype(np.float32)
    return result


def candidate_vectors(model: TwoTower, tables: FeatureTables) -> npt.NDArray[np.float32]:
    """Vectors of the whole catalogue; float32 [num_videos + 1, output_dim], row 0 is zero."""
    encode = any_length(lambda rows: model.candidate(tables.candidate(rows), rows))
    count = tables.spec.num_videos + 1
    parts = [
        encode(tf.range(start, min(start + SCORE_BATCH, count))).numpy()
        for start in range(0, count, SCORE_BATCH)
    ]
    vectors: npt.NDArray[np.float32] = np.concatenate(parts)
    vectors[0] = 0.0
    return vectors


def query_vectors(
    model: TwoTower, tables: FeatureTables, samples: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[np.float32]:
    """Query vectors of sample rows; float32 [n, output_dim]."""
    encode = any_length(lambda batch: model.query(tables.query(batch)))
    count = len(samples["user_row"])
    parts = [
        encode({k: tf.constant(v[start : start + SCORE_BATCH]) for k, v in samples.items()}).numpy()
        for start in range(0, count, SCORE_BATCH)
    ]
    empty = np.zeros((0, output_dim(model.config)), np.float32)
    return np.concatenate([empty, *parts])
