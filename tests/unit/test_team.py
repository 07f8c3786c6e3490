"""Workers: who they are, and that their parts of a batch's loss add up to it."""

from __future__ import annotations

import json
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pytest
import tensorflow as tf

from models import team as teams
from models.dlrm import mean_where
from models.team import Team, lost_workers
from models.two_tower import sampled_softmax
from workflow.errors import ConfigError, TrainingError
from workflow.workers import Workers, read_workers

TWO = ["a:1", "b:2"]


def told(cluster: Any, task: Any) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_workers_are_those_of_tf_config() -> None:
    environment = told({"worker": TWO}, {"type": "worker", "index": 1})
    assert read_workers(environment) == Workers(("a:1", "b:2"), 1)
    assert not Workers(("a:1", "b:2"), 1).is_first


@pytest.mark.parametrize("text", ["", '{"cluster": {"worker": ["a:1"]}, "task": '
                                  '{"type": "worker", "index": 0}}'])  # fmt: skip
def test_one_process_alone(text: str) -> None:
    assert read_workers({"TF_CONFIG": text}) is None
    assert read_workers({}) is None


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"TF_CONFIG": "{"}, "Expecting"),
        ({"TF_CONFIG": "{}"}, "no 'cluster'"),
        (told({"worker": TWO}, {"type": "worker", "index": 2}), "worker 2 of 2"),
        (told({"worker": TWO, "ps": ["c:3"]}, {"type": "worker", "index": 0}), "ps"),
        (told({"worker": TWO}, {"type": "chief", "index": 0}), "chief"),
    ],
)
def test_what_is_not_understood_is_said(environment: dict[str, str], found: str) -> None:
    with pytest.raises(ConfigError, match="TF_CONFIG") as refused:
        read_workers(environment)
    assert found in (refused.value.found or "")


class Part(Team):
    """One of several workers; what the others count is known."""

    def __init__(self, index: int, size: int, count: float) -> None:
        super().__init__()
        self.index, self.size, self.count = index, size, count

    def whole(self, count: Any) -> Any:
        return tf.constant(self.count)


def parts(monkeypatch: pytest.MonkeyPatch, loss: Any, size: int, count: float) -> list[float]:
    """`loss` of each worker's rows."""
    found = []
    for index in range(size):
        part = Part(index, size, count)
        monkeypatch.setattr(teams, "_team", part)
        found.append(float(loss(part.mine)))
    return found


@pytest.mark.parametrize("rows", [7, 2])  # with 2 rows the third worker has none
def test_parts_of_the_softmax_add_up(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    random = np.random.default_rng(1)
    logits = tf.constant(random.normal(size=(rows, 5)), tf.float32)
    position = tf.constant(random.integers(0, 5, (rows, 3)))
    weights, log_q = tf.constant([0.5, 0.3, 0.2]), tf.constant(random.random(5), tf.float32)
    whole = float(sampled_softmax(logits, position, weights, log_q))

    def loss(mine: Any) -> Any:
        return sampled_softmax(mine(logits), mine(position), weights, log_q)

    found = parts(monkeypatch, loss, 3, float(rows))
    assert sum(found) == pytest.approx(whole, rel=1e-6)
    # A mean of means would be another number: shares differ in size.
    assert np.mean(np.array(found) * rows / np.array([3, 2, 2])) != pytest.approx(whole, rel=1e-3)


def test_parts_of_a_mean_over_some_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = tf.constant([[1.0, 2.0], [3.0, 4.0], [50.0, 60.0]])
    chosen = tf.constant([[True, False], [True, True], [False, False]])
    whole = float(mean_where(chosen, values))
    found = parts(monkeypatch, lambda mine: mean_where(mine(chosen), mine(values)), 2, 3.0)
    assert whole == pytest.approx(8 / 3) and sum(found) == pytest.approx(whole)


def test_each_row_is_of_one_worker() -> None:
    batch = {"a": tf.range(7), "deep": {"b": tf.reshape(tf.range(14), [7, 2])}}
    shares = [Part(index, 3, 0.0).mine(batch) for index in range(3)]
    rows = sorted(int(row) for share in shares for row in share["a"])
    assert rows == list(range(7))
    for share in shares:
        assert share["deep"]["b"][:, 0].numpy().tolist() == (share["a"] * 2).numpy().tolist()


def test_a_lost_worker_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    error = tf.errors.UnavailableError(None, None, "connection reset")
    with pytest.raises(tf.errors.UnavailableError), lost_workers():  # alone: another matter
        raise error
    monkeypatch.setattr(teams, "_team", Part(1, 2, 0.0))
    with pytest.raises(TrainingError, match=r"worker 1 of 2.*connection reset"), lost_workers():
        raise error
