"""Logged events in windows: up to WINDOW events of one user in a row share one look-up of history.

Each event sees only what was watched before it; attention over a window is one matrix product,
where the same events in random order would each gather hundreds of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf

from models.inputs import Tensors
from workflow.frames import read_frame

WINDOW = 32
Int64 = npt.NDArray[np.int64]


class WindowBatches:
    """One epoch of windows at a time, one partition of users in memory at a time.

    Training on train and validation must not see one after the other: the weights would end up as
    the later half of each epoch wants them. Files of one name hold the same users, so their events
    are read as one.

    Args:
        files: sample files, sorted by user and time; parts in the order of time.
        columns: the columns to read.
        batch_size: events per batch, padding included.
        seed: mixes windows and places their borders anew in each epoch; None keeps file order.

    Iterating yields column name -> tensor [batch, WINDOW] and "present", bool, False at padding.
    """

    def __init__(
        self, files: list[Path], columns: list[str], batch_size: int, *, seed: int | None = None
    ) -> None:
        names = dict.fromkeys(path.name for path in files)
        self._partitions = [[path for path in files if path.name == name] for name in names]
        self._columns, self._seed, self._epoch = columns, seed, 0
        self._windows = max(1, batch_size // WINDOW)
        self._users = [
            _together(partition, ["user_row"])["user_row"] for partition in self._partitions
        ]

    def __len__(self) -> int:
        """Batches per epoch where borders are not moved; about as many where they are."""
        return sum(
            -(-len(_cut(users, None)[0]) // self._windows) for users in self._users if len(users)
        )

    def __iter__(self) -> Iterator[Tensors]:
        self._epoch += 1
        rng = None if self._seed is None else np.random.default_rng((self._seed, self._epoch))
        order = np.arange(len(self._users)) if rng is None else rng.permutation(len(self._users))
        for number in order:
            yield from self._of_partition(int(number), rng)

    def _of_partition(self, number: int, rng: np.random.Generator | None) -> Iterator[Tensors]:
        if not len(self._users[number]):
            return
        columns = _together(self._partitions[number], self._columns)
        first, stop = _cut(self._users[number], rng)
        order = np.arange(len(first)) if rng is None else rng.permutation(len(first))
        for start in range(0, len(order), self._windows):
            chosen = order[start : start + self._windows]
            at = first[chosen, None] + np.arange(WINDOW)
            present = at < stop[chosen, None]
            at = np.where(present, at, stop[chosen, None] - 1)
            batch = {name: tf.constant(values[at]) for name, values in columns.items()}
            yield batch | {"present": tf.constant(present)}


def _together(files: list[Path], columns: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Columns of files that are each sorted by user, as of one sorted file."""
    frame = pd.concat([read_frame(path, columns=columns) for path in files], ignore_index=True)
    if len(files) > 1:
        frame = frame.sort_values("user_row", kind="stable")
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def _cut(user_row: npt.NDArray[Any], rng: np.random.Generator | None) -> tuple[Int64, Int64]:
    """(first, stop) of windows that cover all rows, none with rows of two users."""
    begins = np.flatnonzero(np.r_[True, user_row[1:] != user_row[:-1]])
    sizes = np.diff(np.r_[begins, len(user_row)])
    shift = np.zeros(len(begins), np.int64)
    if rng is not None:
        shift = rng.integers(0, WINDOW, len(begins))
    counts = -(-(sizes + shift) // WINDOW)
    owner = np.repeat(np.arange(len(begins)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    lowest = begins[owner] - shift[owner] + number * WINDOW
    first = np.maximum(lowest, begins[owner])
    stop = np.minimum(lowest + WINDOW, (begins + sizes)[owner])
    keep = first < stop
    return first[keep], stop[keep]
