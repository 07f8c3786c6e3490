"""Targets of training rows: never before the row's history ends, never after training ends."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pytest
import tensorflow as tf

from models.targets import OBJECTIVES, Objective, Targets
from workflow.features.history import Histories

# User 1 watched videos 10..19, user 2 videos 20..24; row 0 is the unknown user.
WATCHED = np.r_[np.arange(10, 20), np.arange(20, 25)].astype(np.int32)
HISTORIES = Histories(WATCHED, np.arange(15), np.array([0, 0, 10, 15]), np.zeros(15, np.int64))
TRAIN_COUNT = np.array([0, 8, 5])  # the last two watches of user 1 are held out


def draw(objective: Objective, count: int = 4_000) -> Any:
    batch = {
        "user_row": tf.constant([1] * count + [2] * count),
        "history_end": tf.constant([3] * count + [14] * count),
        "video_row": tf.constant([13] * count + [24] * count),
    }
    tf.random.set_seed(0)
    drawn = Targets(HISTORIES, TRAIN_COUNT).draw(batch, objective).numpy()
    return drawn[:count], drawn[count:]


def test_the_first_target_is_the_rows_own_watch() -> None:
    one, two = draw(OBJECTIVES["next"])
    assert (one[:, 0] == 13).all() and (two[:, 0] == 24).all()


def test_the_others_come_from_what_follows_in_training() -> None:
    one, two = draw(Objective(0.5, 3, 1000, 0.0, 0.0))
    later, counts = np.unique(one[:, 1:], return_counts=True)
    assert later.tolist() == [13, 14, 15, 16, 17]  # 18 and 19 are held out
    assert counts / counts.sum() == pytest.approx(0.2, abs=0.02)
    assert (two == 24).all()  # the user's last watch has nothing after it


def test_the_horizon_limits_them() -> None:
    one, _ = draw(Objective(0.5, 3, 2, 0.0, 0.0))
    assert np.unique(one[:, 1:]).tolist() == [13, 14]


@pytest.mark.parametrize("goal", OBJECTIVES)
def test_weights_sum_to_one(goal: Any) -> None:
    weights = OBJECTIVES[goal].weights().numpy()
    assert len(weights) == OBJECTIVES[goal].num_targets
    assert weights.sum() == pytest.approx(1)
