"""Train, validation and test: by global time, or by each user's last watches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workflow.config import SplitConfig
from workflow.errors import DataError

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, 3
NAMES = ("train", "valid", "test")
Int64 = npt.NDArray[np.int64]


def temporal_cuts(timestamps: Int64, config: SplitConfig) -> tuple[int, int]:
    """(valid_from, test_from): first second of validation and of test.

    Raises:
        DataError: the events do not span enough time to be divided.
    """
    share = 1 - config.test_fraction
    last_valid = int(np.quantile(timestamps, share, method="higher"))
    last_train = int(np.quantile(timestamps, share - config.valid_fraction, method="higher"))
    if not timestamps.min() <= last_train < last_valid < timestamps.max():
        raise DataError(
            "events cannot be split by time",
            expected="timestamps spread over more than a few seconds",
            found=f"{timestamps.min()} to {timestamps.max()}",
            next_step="check the timestamp column and its unit in the contract",
        )
    return last_train + 1, last_valid + 1


def temporal_split(timestamp: Int64, valid_from: int, test_from: int) -> npt.NDArray[np.int8]:
    """Part of each event: TRAIN, VALID or TEST; int8 [n]."""
    return ((timestamp >= valid_from).astype(np.int8) + (timestamp >= test_from)).astype(np.int8)


def leave_last_out(user_row: Int64, watched: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """The last watch of each user is TEST, the one before VALID, all before that TRAIN.

    Users with fewer than three watches are all TRAIN; events after the validation watch other
    than the test watch are UNUSED. Rows are sorted by (user_row, timestamp).
    """
    part = np.full(len(user_row), TRAIN, np.int8)
    index = np.flatnonzero(watched)
    users, first, counts = np.unique(user_row[index], return_index=True, return_counts=True)
    enough = counts >= 3
    last = index[first + counts - 1][enough]
    before_last = index[np.maximum(first + counts - 2, 0)][enough]
    valid_at = np.full(int(user_row.max(initial=0)) + 1, len(user_row), np.int64)
    valid_at[users[enough]] = before_last
    part[np.arange(len(user_row)) > valid_at[user_row]] = UNUSED
    part[before_last] = VALID
    part[last] = TEST
    return part
