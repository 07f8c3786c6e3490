"""The training loop both models share: epochs, early stopping, checkpoints that survive a kill."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf

from models.averaging import WeightAverage
from models.inputs import FeatureTables
from models.team import lost_workers, team
from models.tracing import any_length
from workflow.config import Config
from workflow.console import Report
from workflow.errors import MissingArtifactError, TrainingError
from workflow.features.encoded import FeatureStore
from workflow.run import storage_errors, write_json


class Batches(Protocol):
    """Anything that yields batches once per epoch and knows how many."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


@dataclass
class Progress:
    """What a training run has done so far; saved next to its checkpoints."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0

    def summary(self, score_name: str) -> dict[str, Any]:
        """What a stage reports: the best epoch and its score, speed, and every epoch's numbers."""
        return {
            "epochs": self.best_epoch,
            score_name: round(self.best_score, 4),
            "rows_per_s": round(self.rows / max(self.seconds, 1e-9)),
            "scores": [round(score, 4) for score in self.scores],
            "losses": [round(loss, 4) for loss in self.losses],
        }


@dataclass(frozen=True)
class Setting:
    """What the fits of one training stage share.

    Attributes:
        checkpoints: folder of the stage's checkpoints; each fit has its own below.
    """

    store: FeatureStore
    tables: FeatureTables
    config: Config
    checkpoints: Path
    report: Report


@dataclass(frozen=True)
class Fit:
    """One training run.

    Attributes:
        model: the built Keras model; its weights end as the average at the end of the best epoch
            (models.averaging), which is also what `validate` sees.
        step: one gradient step, batch -> loss.
        batches: the training data.
        validate: returns the score to maximise, or None to keep the last epoch.
        checkpoints: folder of this run's checkpoints.
    """

    model: Any
    optimizer: Any
    step: Callable[[Any], Any]
    batches: Batches
    validate: Callable[[], float] | None
    checkpoints: Path
    max_epochs: int
    patience: int

    def run(self, report: Report, title: str) -> Progress:
        """Train until the score has not risen for `patience` epochs, or `max_epochs`.

        Continues from the last finished epoch when checkpoints are there. Of several workers
        (models.team) the first one has checkpoints; the others take over its state.

        Raises:
            TrainingError: the loss became NaN, there is nothing to train on, or a worker is gone.
        """
        average = WeightAverage(self.model.trainable_variables)
        checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.optimizer, average=average
        )
        last = tf.train.CheckpointManager(checkpoint, str(self.checkpoints / "last"), 1)
        best = tf.train.CheckpointManager(checkpoint, str(self.checkpoints / "best"), 1)
        progress = self._resume(checkpoint, last)
        self._align(progress, average)
        while progress.epoch < self.max_epochs and not self._finished(progress):
            self._epoch(progress, average, report, title)
            if self.validate is not None:
                with average.applied():
                    [score] = team().agreed([self.validate()])
                progress.scores.append(score)
                if score > progress.best_score:
                    progress.best_score, progress.best_epoch = score, progress.epoch
                    self._save(best)
            self._save(last)
            if team().is_first:
                write_json(self._state_file(), vars(progress))
        if self.validate is not None and best.latest_checkpoint:
            checkpoint.restore(best.latest_checkpoint).expect_partial()
        average.keep()
        team().align(self.model.weights)
        return progress

    def _align(self, progress: Progress, average: WeightAverage) -> None:
        """Begin where the first worker begins."""
        if team().size == 1:
            return
        self.optimizer.build(self.model.trainable_variables)
        variables = [*self.model.weights, *self.optimizer.variables, *average.variables]
        team().align(list({id(variable): variable for variable in variables}.values()))
        state = [float(progress.epoch), float(progress.best_epoch), progress.best_score]
        epoch, best_epoch, progress.best_score = team().agreed(state)
        progress.epoch, progress.best_epoch = int(epoch), int(best_epoch)

    def _finished(self, progress: Progress) -> bool:
        waited = progress.epoch - progress.best_epoch
        return self.validate is not None and progress.epoch > 0 and waited >= self.patience

    def _epoch(
        self, progress: Progress, average: WeightAverage, report: Report, title: str
    ) -> None:
        started, losses = time.monotonic(), []
        team().begin_epoch(progress.epoch)
        total = len(self.batches)
        for number, batch in enumerate(self.batches):
            losses.append(self.step(batch))
            average.update()
            if number % 10 == 0:
                report(number, total, f"{title}, epoch {progress.epoch + 1}")
            progress.rows += int(batch["user_row"].shape[0])
        if not losses:
            raise TrainingError(
                f"{title}: no training samples", next_step="marquee validate, then marquee features"
            )
        with lost_workers():
            loss = float(np.mean([float(value) for value in losses]))
        if not np.isfinite(loss):
            raise TrainingError(
                f"{title}: the loss is {loss} in epoch {progress.epoch + 1}",
                next_step="lower learning_rate, or check the data for extreme values",
            )
        progress.losses.append(loss)
        progress.epoch += 1
        progress.seconds += time.monotonic() - started

    def _state_file(self) -> Path:
        return self.checkpoints / "progress.json"

    def _resume(self, checkpoint: Any, last: Any) -> Progress:
        if not last.latest_checkpoint or not self._state_file().exists():
            return Progress()
        checkpoint.restore(last.latest_checkpoint).expect_partial()
        return Progress(**json.loads(self._state_file().read_text()))

    def _save(self, manager: Any) -> None:
        if team().is_first:
            with storage_errors(self.checkpoints):
                manager.save()


def gradient_step(
    model: Any, optimizer: Any, loss_of: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """A compiled function: batch -> loss, after one optimizer step.

    Args:
        loss_of: a worker's part of the loss of a batch; the parts add up to the loss.
    """

    def parts(batch: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = loss_of(batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        return _added([loss, *map(_dense, gradients)], batch)

    optimizer.build(model.trainable_variables)  # else the step is traced once more, to make them

    @any_length
    def step(batch: Any) -> Any:
        loss, *gradients = team().each(parts, batch)
        # `strict=True` is unknown to the compiler of TensorFlow 2.12.
        optimizer.apply_gradients(list(zip(gradients, model.trainable_variables)))  # noqa: B905
        return loss

    def call(batch: Any) -> Any:
        with lost_workers():
            return step(batch)

    return call


def _added(tensors: list[Any], batch: Any) -> list[Any]:
    """Sums over the workers, who must have read the same batch."""
    if team().size == 1:
        return tensors
    total = tf.reduce_sum(tf.cast(batch["user_row"], tf.int64))
    rows = tf.cast(total % 65_521, tf.float32)  # small enough for exact sums
    rows_of_all, *added = team().sum([rows, *tensors])
    message = "the workers read different samples"
    tf.debugging.assert_equal(rows_of_all, team().size * rows, message)
    return added


SPARSE_FROM_ROWS = 200_000


def _rows(gradient: Any) -> int:
    rows = tf.get_static_value(gradient.dense_shape)
    return SPARSE_FROM_ROWS if rows is None else int(rows[0])


def _dense(gradient: Any) -> Any:
    """Rows looked up often are cheaper to add up once than to sort, as Adam does with slices."""
    if isinstance(gradient, tf.IndexedSlices) and _rows(gradient) < SPARSE_FROM_ROWS:
        return tf.convert_to_tensor(gradient)
    return gradient


def save_weights(model: Any, path: Path) -> None:
    """All weights by position as an .npz file (no pickle)."""
    arrays = {f"{i:04d}": weight.numpy() for i, weight in enumerate(model.weights)}
    np.savez(path, **arrays)


def load_weights(model: Any, path: Path) -> None:
    """Put back what `save_weights` wrote into a model that has been built the same way.

    Raises:
        MissingArtifactError: the file is damaged, or the model has other shapes.
    """
    values = read_weights(path, len(model.weights))
    try:
        model.set_weights(values)
    except ValueError as error:
        raise _unreadable(path, len(model.weights), error) from error


def read_weights(path: Path, count: int) -> list[Any]:
    """The `count` arrays that `save_weights` wrote, by position.

    Raises:
        MissingArtifactError: the file is damaged, or has another number of them.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = [arrays[name] for name in sorted(arrays.files)]
        if len(values) != count:
            raise ValueError(f"{len(values)} weights")
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, count, error) from error
    return values


def _unreadable(path: Path, count: int, error: Exception) -> MissingArtifactError:
    return MissingArtifactError(
        f"{path} is damaged or of another model",
        expected=f"{count} weights",
        found=str(error),
        next_step=f"marquee train --run {path.parents[2]} --force",
    )
