"""The retriever: a query tower and a candidate tower trained with in-batch sampled softmax."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.blocks import drop_ids, tower
from models.inputs import FeatureTables, Tensors
from workflow.config import RetrieverConfig
from workflow.features.spec import FeatureSpec

SCORE_BATCH = 8192


class TwoTower(tf.keras.Model):
    """Two Merlin encoders whose L2-normalised outputs are compared by inner product.

    Args:
        spec: the fitted schema; decides which features each tower reads.
        config: sizes, temperature and regularisation.
        log_q: float32 [num_videos + 1], log of each video's share of training watches.
    """

    def __init__(
        self, spec: FeatureSpec, config: RetrieverConfig, log_q: npt.NDArray[np.float32]
    ) -> None:
        super().__init__()
        self.config = config
        self.query_tower = tower(spec.query(), config.embedding_dim, config.tower_layers)
        self.candidate_tower = tower(spec.candidate(), config.embedding_dim, config.tower_layers)
        self.log_q = tf.constant(log_q)

    def query(self, features: Tensors) -> Any:
        """float32 [batch, dim], rows of length 1."""
        return tf.math.l2_normalize(self.query_tower(features), axis=-1)

    def candidate(self, features: Tensors) -> Any:
        """float32 [batch, dim], rows of length 1."""
        return tf.math.l2_normalize(self.candidate_tower(features), axis=-1)

    def loss(self, query: Tensors, candidate: Tensors, video_row: Any) -> Any:
        """Mean in-batch softmax loss of a batch of watches; scalar."""
        rate = self.config.id_dropout
        queries = self.query(drop_ids(query, ("user_index",), rate))
        candidates = self.candidate(drop_ids(candidate, ("video_index",), rate))
        return in_batch_softmax(
            queries,
            candidates,
            video_row,
            tf.gather(self.log_q, video_row) if self.config.logq_correction else None,
            self.config.temperature,
        )


def in_batch_softmax(
    queries: Any, candidates: Any, video_row: Any, log_q: Any | None, temperature: float
) -> Any:
    """Softmax over the batch's own videos, corrected for how often each is drawn.

    Args:
        queries, candidates: float32 [batch, dim]; row i of both belongs to watch i.
        video_row: int [batch]; another watch of the same video is not a negative.
        log_q: float32 [batch], log sampling probability of each candidate, or None.
        temperature: divides the inner products.
    Returns:
        float32 scalar.
    Source: Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019.
    """
    logits = tf.matmul(queries, candidates, transpose_b=True) / temperature
    if log_q is not None:
        logits -= log_q[None, :]
    same = tf.equal(video_row[:, None], video_row[None, :])
    batch = tf.shape(logits)[0]
    accidental = tf.logical_and(same, tf.logical_not(tf.eye(batch, dtype=tf.bool)))
    logits = tf.where(accidental, tf.constant(-1e9, logits.dtype), logits)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(batch), logits)
    return tf.reduce_mean(losses)


def log_sampling_probability(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """log(count / total) per video; unseen videos count as one watch.

    Args:
        counts: int64 [num_videos + 1] training watches.
    Returns:
        float32 [num_videos + 1].
    """
    share = np.maximum(counts, 1) / max(int(counts.sum()), 1)
    result: npt.NDArray[np.float32] = np.log(share).astype(np.float32)
    return result


def candidate_vectors(model: TwoTower, tables: FeatureTables) -> npt.NDArray[np.float32]:
    """Embeddings of the whole catalogue; float32 [num_videos + 1, dim], row 0 is zero."""
    encode = tf.function(lambda rows: model.candidate(tables.candidate(rows)))
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
    """Query embeddings of sample rows; float32 [n, dim]."""
    encode = tf.function(lambda batch: model.query(tables.query(batch)), reduce_retracing=True)
    count = len(samples["user_row"])
    parts = [
        encode({k: tf.constant(v[start : start + SCORE_BATCH]) for k, v in samples.items()}).numpy()
        for start in range(0, count, SCORE_BATCH)
    ]
    empty = np.zeros((0, model.config.tower_layers[-1]), np.float32)
    return np.concatenate([empty, *parts])
