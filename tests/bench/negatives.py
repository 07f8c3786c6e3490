"""Negatives that the product does not have, for tests/bench/ablations.py to try on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import tensorflow as tf

from models.blocks import drop_ids
from models.inputs import FeatureTables, Tensors
from models.metrics import Lists, top_k
from models.targets import Targets
from models.two_tower import TwoTower, candidate_vectors, query_vectors, sampled_softmax
from models.watches import Watches


class Negatives:
    """Further columns of a batch's softmax; this base class adds none.

    Attributes:
        batches: how many batches' draws a batch sees.
        uniform: videos drawn uniformly.
    """

    batches, uniform = 1, 0

    def shared(self, drawn: Any) -> Any:
        """int [n] video rows that all queries of the batch are scored against."""
        return drawn[:0]

    def own(self, batch: Tensors) -> Any:
        """int [batch, n] video rows that only the row itself is scored against."""
        return tf.zeros([tf.shape(batch["user_row"])[0], 0], tf.int32)

    def start_epoch(self, model: TwoTower) -> None:
        """Called before each epoch."""


class Uniform(Negatives):
    """Mixed negative sampling: some videos drawn uniformly.

    Source: Yang et al., Mixed Negative Sampling for Learning Two-tower Neural Networks, WWW 2020.
    """

    def __init__(self, count: int, num_videos: int) -> None:
        self.uniform, self.num_videos = count, num_videos

    def shared(self, drawn: Any) -> Any:
        return tf.random.uniform([self.uniform], 1, self.num_videos + 1, drawn.dtype)


class Queue(Negatives):
    """The videos that the last batches drew, their vectors computed anew.

    Source: Wang et al., Cross-Batch Negative Sampling, SIGIR 2021 (there with stale vectors, which
        is only cheaper: computing a batch's distinct candidates is a small part of the step).
    """

    def __init__(self, batches: int, draws: int, watches: Watches) -> None:
        self.batches = 1 + batches
        start = np.random.default_rng(0).choice(watches.video_row, batches * draws)
        self.rows = tf.Variable(start.astype(np.int32), trainable=False)

    def shared(self, drawn: Any) -> Any:
        before = tf.identity(self.rows)
        self.rows.assign(tf.concat([drawn, before], axis=0)[: tf.size(before)])
        return before


class Mined(Negatives):
    """Videos that the model ranks highest for the row's user, the user's own watches left out.

    Mined before each epoch at one random moment of every user, by exact search (what a flat FAISS
    index returns); each row draws some of them.

    Source: Xiong et al., ANCE, ICLR 2021; Huang et al., Embedding-based Retrieval in Facebook
        Search, KDD 2020 (hard ones mixed with random ones).
    """

    DEPTH, DRAWN = 100, 8

    def __init__(self, tables: FeatureTables, samples: pd.DataFrame, watches: Watches) -> None:
        self.tables, self.samples = tables, samples
        order = np.argsort(watches.user_row, kind="stable")
        self.watched = Lists.group(
            watches.user_row[order], watches.video_row[order], watches.num_users + 1
        )
        # Until the first epoch begins: anything.
        start = np.ones((watches.num_users + 1, self.DEPTH), np.int32)
        self.table = tf.Variable(start, trainable=False)
        self.random = np.random.default_rng(0)

    def start_epoch(self, model: TwoTower) -> None:
        order = self.random.permutation(len(self.samples))
        moments = self.samples.iloc[order].drop_duplicates("user_row")
        users = moments["user_row"].to_numpy(np.int64)
        found = top_k(
            query_vectors(model, self.tables, {n: c.to_numpy() for n, c in moments.items()}),
            candidate_vectors(model, self.tables),
            self.watched.take(users),
            self.DEPTH,
        )
        table = self.table.numpy()
        table[users] = np.maximum(found, 1)
        self.table.assign(table)

    def own(self, batch: Tensors) -> Any:
        mined = tf.gather(self.table, batch["user_row"])
        shape = [tf.shape(mined)[0], self.DRAWN]
        return tf.gather(mined, tf.random.uniform(shape, 0, self.DEPTH, tf.int32), batch_dims=1)


def loss_with(
    model: TwoTower,
    tables: FeatureTables,
    targets: Targets,
    watches: Watches,
    more: Negatives,
    *,
    corrected: bool = True,
) -> Callable[[Tensors], Any]:
    """models.retriever.batch_loss with further negatives: batch of samples -> loss.

    Shared columns are corrected by the probability that they are drawn at all. Own columns come on
    top of them, with the same correction.
    """
    config, objective = model.config, model.objective
    draws = config.batch_size * objective.num_targets * more.batches
    share = np.maximum(watches.counts, 1) / watches.counts.sum()
    missing = draws * np.log1p(-share) + more.uniform * np.log1p(-1 / watches.num_videos)
    log_q = tf.constant(np.log(-np.expm1(missing)) * corrected, tf.float32)

    def loss_of(batch: Tensors) -> Any:
        drawn = targets.draw(batch, objective)
        flat = tf.reshape(drawn, [-1])
        shared = tf.concat([flat, more.shared(flat)], axis=0)
        own = more.own(batch)
        distinct, place = tf.unique(tf.concat([shared, tf.reshape(own, [-1])], axis=0))
        columns = tf.reduce_max(place[: tf.size(shared)]) + 1  # in order of first appearance
        position = tf.reshape(place[: tf.size(flat)], tf.shape(drawn))
        queries = model.query_tower(tables.query(batch), training=True)
        ids = drop_ids(tables.candidate(distinct), config.id_dropout)
        learned, bias = model.candidate_tower(ids)
        logits = tf.matmul(queries, learned, transpose_b=True) + (bias - tf.gather(log_q, distinct))
        at = tf.reshape(place[tf.size(shared) :], tf.shape(own))
        logits = tf.concat([logits[:, :columns], tf.gather(logits, at, batch_dims=1)], axis=1)
        return sampled_softmax(logits, position, objective.weights(), None)

    return loss_of
