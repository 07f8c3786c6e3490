"""Training by several processes: each takes its share of every batch, what they find is added up.

All workers read the same batches (row numbers, a few bytes a sample) in the same order; each
computes its own rows of them. A mean over a batch is a sum over workers of their rows' part, and
the negatives of a batch are those of all its rows, so losses and weights are those of one process
but for rounding, and for dropout, whose draws depend on how many rows a worker has.

Everything here does nothing in a process that trains alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import workflow.environment  # noqa: F401  (and not models.compat, which starts TensorFlow)

import numpy as np
import tensorflow as tf

from workflow.errors import TrainingError
from workflow.workers import Workers

TIMEOUT_S = 600.0  # for the slowest worker to start, or to come to the same step
HEARTBEAT_S = 300.0  # a machine not heard of for so long is gone; dead processes are seen at once


class Team:
    """The processes that train together; one object for the life of a process.

    Args:
        workers: who they are; None: this process alone.
    """

    def __init__(self, workers: Workers | None = None) -> None:
        self.size = 1 if workers is None else len(workers.addresses)
        self.index = 0 if workers is None else workers.index
        self._options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=TIMEOUT_S)
        self._strategy = None
        if workers is not None:
            _watch_each_other(self.size)
            # Reads TF_CONFIG and waits for the others.
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=self._options
            )

    @property
    def is_first(self) -> bool:
        """Whether this process keeps what is learned."""
        return self.index == 0

    def mine(self, tensors: Any) -> Any:
        """This worker's rows of tensors that have all rows of a batch, nested in any way."""
        if self.size == 1:
            return tensors
        return tf.nest.map_structure(lambda values: values[self.index :: self.size], tensors)

    def whole(self, count: Any) -> Any:
        """Sum over the workers of a number, such as how many rows each has; within `each`."""
        return count if self.size == 1 else self.sum([tf.stop_gradient(count)])[0]

    def sum(self, tensors: list[Any]) -> list[Any]:
        """Sums over the workers, dense or IndexedSlices; within `each`."""
        if self.size == 1:
            return tensors
        context = tf.distribute.get_replica_context()
        added: list[Any] = context.all_reduce("SUM", tensors, self._options)
        return added

    def each(self, compute: Any, *arguments: Any) -> Any:
        """What `compute` returns on this worker; within it workers may add up."""
        if self._strategy is None:
            return compute(*arguments)
        return self._strategy.run(compute, arguments)

    def begin_epoch(self, number: int) -> None:
        """Let all workers mix the samples alike, whatever each has drawn before."""
        if self.size > 1:
            np.random.seed(number)

    def agreed(self, values: list[float]) -> list[float]:
        """The first worker's numbers, on all of them.

        Raises:
            TrainingError: a worker is gone.
        """
        if self.size == 1:
            return values
        own = tf.constant(values if self.is_first else [0.0] * len(values), tf.float64)
        with lost_workers():
            [agreed] = self.each(lambda: self.sum([own]))
            return [float(value) for value in agreed]

    def align(self, variables: list[Any]) -> None:
        """Give variables the values that they have on the first worker.

        Raises:
            TrainingError: a worker is gone.
        """
        if self.size == 1:
            return
        own = [
            tf.identity(variable) if self.is_first else tf.zeros_like(variable)
            for variable in variables
        ]
        with lost_workers():
            for variable, value in zip(variables, self.each(lambda: self.sum(own)), strict=True):
                variable.assign(value)


def _watch_each_other(count: int) -> None:
    """Be patient while workers start, and where a machine is paused for a while."""
    from tensorflow.python.eager import context  # nothing public sets these times

    job = context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=count)
    context.context().configure_coordination_service(
        "standalone",
        "/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(TIMEOUT_S * 1000),
        heartbeat_timeout_in_ms=int(HEARTBEAT_S * 1000),
        coordinated_jobs=[job],
    )


@contextmanager
def lost_workers() -> Iterator[None]:
    """What TensorFlow says when a worker is gone becomes a TrainingError."""
    try:
        yield
    except tf.errors.OpError as error:
        if team().size == 1:
            raise
        lines = error.message.splitlines() or [""]
        telling = [line for line in lines if "aborted" in line or "samples" in line]
        raise TrainingError(
            f"worker {team().index} of {team().size} cannot go on with the others",
            expected=f"the same features, and the same step within {TIMEOUT_S:.0f} s",
            found=(telling or lines)[0][:300],
            next_step="start all workers again; with --resume from the last finished epoch",
        ) from None


_team = Team()


def team() -> Team:
    """The processes that this one trains with; alone unless it has joined others."""
    return _team


def join(workers: Workers | None) -> None:
    """Train with others from now on; to be called before TensorFlow computes anything."""
    global _team  # noqa: PLW0603
    if workers is not None and _team.size == 1:
        _team = Team(workers)


def leave() -> None:
    """Wait until all workers have come here: who ends earlier would look like a lost one.

    Raises:
        TrainingError: a worker is gone.
    """
    team().agreed([0.0])
