"""What the retriever learns to find: the next watch of a user, or all that follow for a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.inputs import Tensors
from workflow.features.history import Histories

Goal = Literal["future", "next"]


@dataclass(frozen=True)
class Objective:
    """Targets of one training row, and how much is hidden from it.

    Attributes:
        next_weight: what the row's own watch weighs; the others share the rest.
        num_targets: targets of a row, its own watch included.
        horizon: the others are drawn from this many watches after the row's history.
        dropout, history_dropout: see models.towers.QueryTower; the long view needs more of both.
    """

    next_weight: float
    num_targets: int
    horizon: int
    dropout: float
    history_dropout: float

    def weights(self) -> Any:
        """float32 [num_targets], summing to 1."""
        later = (1.0 - self.next_weight) / (self.num_targets - 1)
        return tf.constant([self.next_weight] + [later] * (self.num_targets - 1), tf.float32)


OBJECTIVES: dict[Goal, Objective] = {
    "future": Objective(0.2, 16, 1000, dropout=0.5, history_dropout=0.3),
    "next": Objective(0.7, 4, 10, dropout=0.2, history_dropout=0.0),
}


class Targets:
    """Draws the targets of training rows from the flat histories.

    Args:
        histories: all users' watches.
        train_count: int64 [num_users + 1], how many of a user's watches belong to the training
            parts; they are the user's first ones.
    """

    def __init__(self, histories: Histories, train_count: npt.NDArray[np.int64]) -> None:
        self._watched = tf.constant(np.asarray(histories.video_row))
        self._end = tf.constant(np.asarray(histories.start[:-1]) + train_count)

    def draw(self, batch: Tensors, objective: Objective) -> Any:
        """int32 [batch, num_targets] video rows: the row's own, then random later ones.

        Later ones begin with the watches of the row's own second, which its history leaves out.
        """
        start = tf.cast(batch["history_end"], tf.int64)
        end = tf.minimum(tf.gather(self._end, batch["user_row"]), start + objective.horizon)
        shape = [tf.shape(start)[0], objective.num_targets - 1]
        share = tf.random.uniform(shape, dtype=tf.float64)
        ahead = tf.cast(share * tf.cast(end - start, tf.float64)[:, None], tf.int64)
        later = tf.gather(self._watched, start[:, None] + ahead)
        return tf.concat([batch["video_row"][:, None], later], axis=1)
