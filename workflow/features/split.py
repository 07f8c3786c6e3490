"""Train, validation and test: by global time, or by each user's last watches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from workflow.config import SplitConfig
from workflow.errors import DataError
from workflow.features.history import SECONDS_PER_DAY

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, 3
NAMES = ("train", "valid", "test")
Int64 = npt.NDArray[np.int64]
Times = Callable[[], Iterable[Int64]]


def temporal_cuts(times: Times, config: SplitConfig) -> tuple[int, int]:
    """(valid_from, test_from): first second of validation and of test.

    Args:
        times: all timestamps in pieces, unix seconds; it is called, and read through, twice.
    Raises:
        DataError: the events do not span enough time to be divided.
    """
    days = _counts(part // SECONDS_PER_DAY for part in times())
    num_events, share = sum(days.values()), 1 - config.test_fraction
    ranks = [math.ceil((num_events - 1) * q) for q in (share - config.valid_fraction, share)]
    first, last = min(days), max(days)
    cut_days = [_at_rank(days, rank) for rank in ranks]
    wanted = np.unique([first, last, *(day for day, _ in cut_days)])
    seconds = _counts(part[np.isin(part // SECONDS_PER_DAY, wanted)] for part in times())
    last_train, last_valid = (
        _at_rank({s: n for s, n in seconds.items() if s // SECONDS_PER_DAY == day}, rank)[0]
        for day, rank in cut_days
    )
    if not min(seconds) <= last_train < last_valid < max(seconds):
        raise DataError(
            "events cannot be split by time",
            expected="timestamps spread over more than a few seconds",
            found=f"{min(seconds)} to {max(seconds)}",
            next_step="check the timestamp column and its unit in the contract",
        )
    return last_train + 1, last_valid + 1


def _counts(parts: Iterable[Int64]) -> Counter[int]:
    """How often each value comes."""
    total: Counter[int] = Counter()
    for part in parts:
        values, counts = distinct(part)
        total.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return total


def distinct(values: Int64) -> tuple[Int64, Int64]:
    """Distinct values, ascending, and how often each comes; not sorted where they lie close."""
    if len(values) == 0 or np.ptp(values) > len(values):
        return np.unique(values, return_counts=True)
    first = values.min()
    counts = np.bincount(values - first)
    at = np.flatnonzero(counts)
    return at + first, counts[at]


def _at_rank(counts: dict[int, int], rank: int) -> tuple[int, int]:
    """The value at a rank (from 0) of all in order, and its rank among its equals."""
    for value in sorted(counts):
        if rank < counts[value]:
            return value, rank
        rank -= counts[value]
    raise AssertionError("rank beyond the number of values")


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
