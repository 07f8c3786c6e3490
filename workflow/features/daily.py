"""What was known of a video at the end of any day: running totals per video and day."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from workflow.features.history import SECONDS_PER_DAY, Float32, smoothed_rate

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
STRIDE = 1 << 20  # days since 1970 fit easily
MOST_CELLS_PER_KEY = 16
RECENT_DAYS = {"video_lift_7d": 7, "video_lift_30d": 30}


@dataclass(frozen=True)
class DailyCounts:
    """Running totals, looked up with `before`.

    Attributes:
        key: int64 [n], video_row * STRIDE + day since 1970, ascending.
        events, labels: float64 [n + 1], totals over all keys before a position.
    """

    key: Int64
    events: Float64
    labels: Float64

    def before(self, video_row: Int64, timestamp: Int64 | np.int64) -> tuple[Float64, Float64]:
        """(events, positive labels) of each video up to the day before `timestamp`.

        Args:
            video_row, timestamp: int64 of one shape (or shapes that broadcast).
        Returns:
            two float64 arrays of that shape.
        """
        row = np.asarray(video_row, np.int64)
        first = self._first[np.minimum(row, len(self._first) - 1)]
        day = np.maximum(timestamp, 0) // SECONDS_PER_DAY
        until = np.searchsorted(self.key, row * STRIDE + day)
        return self.events[until] - self.events[first], self.labels[until] - self.labels[first]

    def position(self, video_row: Int64, timestamp: Int64) -> Int64:
        """Where the key of events that are counted here stands; int64, their shape."""
        day = timestamp // SECONDS_PER_DAY
        if self._places is None:
            return np.searchsorted(self.key, video_row * STRIDE + day)
        first_day, num_days, place = self._places
        at: Int64 = place[video_row * num_days + (day - first_day)].astype(np.int64)
        return at

    @cached_property
    def _places(self) -> tuple[int, int, npt.NDArray[np.int32]] | None:
        """(first day, days, position by video and day): None where most of it would be empty.

        A look-up costs a few nanoseconds, a binary search among millions of keys hundreds.
        """
        row, day = self.key // STRIDE, self.key % STRIDE
        if len(row) == 0:
            return None
        first_day, num_days = int(day.min()), int(day.max() - day.min()) + 1
        cells = (int(row[-1]) + 1) * num_days
        if cells > MOST_CELLS_PER_KEY * len(row):
            return None
        place = np.zeros(cells, np.int32)
        place[row * num_days + (day - first_day)] = np.arange(len(row), dtype=np.int32)
        return first_day, num_days, place

    @cached_property
    def _first(self) -> Int64:
        """The position of each video's first key; the last entry is for rows beyond the last."""
        rows = np.arange(self.key[-1] // STRIDE + 2 if len(self.key) else 1)
        return np.searchsorted(self.key, rows * STRIDE)

    @cached_property
    def _traffic(self) -> tuple[Int64, Float64]:
        """(days with events, ascending; events of all videos before each of them and at the end)"""
        days, at = np.unique(self.key % STRIDE, return_inverse=True)
        per_day = np.bincount(at, np.diff(self.events), len(days))
        return days, np.r_[0.0, np.cumsum(per_day)]

    @cached_property
    def _first_days(self) -> Int64:
        """The day of each video's first event, ascending."""
        rows = self.key // STRIDE
        return np.sort((self.key % STRIDE)[np.r_[True, rows[1:] != rows[:-1]][: len(rows)]])

    def all_before(self, timestamp: Int64 | np.int64) -> Float64:
        """Events of all videos up to the day before `timestamp`; float64, its shape."""
        days, total = self._traffic
        result: Float64 = total[np.searchsorted(days, np.maximum(timestamp, 0) // SECONDS_PER_DAY)]
        return result

    def lifts(
        self, video_row: Int64, timestamp: Int64 | np.int64, events: Float64
    ) -> dict[str, Float32]:
        """By RECENT_DAYS, a video's share of the traffic of the last days over an average video's.

        A share, since traffic itself rises and falls. As many imagined events as there are videos,
        at the shares of all time, keep a few real ones from saying much.

        Args:
            events: float64, what `before` says of the videos at `timestamp`.
        """
        today = np.maximum(timestamp, 0) // SECONDS_PER_DAY
        videos = np.searchsorted(self._first_days, today).astype(np.float64)
        traffic = self.all_before(timestamp)
        imagined = videos * events / np.maximum(traffic, 1.0)
        result = {}
        for name, days in RECENT_DAYS.items():
            past = timestamp - days * SECONDS_PER_DAY
            recent = events - self.before(video_row, past)[0]
            of_all = np.maximum(traffic - self.all_before(past) + videos, 1.0)
            result[name] = (videos * (recent + imagined) / of_all).astype(np.float32)
        return result

    def numbers(
        self, video_row: Int64, timestamp: Int64 | np.int64, *, label_prior: float | None
    ) -> dict[str, Float32]:
        """The point-in-time numbers of videos, not yet encoded; float32, shape of the arguments.

        Args:
            label_prior: share of positive labels that smooths rates; None without labels.
        """
        events, labels = self.before(video_row, timestamp)
        result = {"video_event_count": events.astype(np.float32)}
        result |= self.lifts(video_row, timestamp, events)
        if label_prior is not None:
            result["video_label_rate"] = smoothed_rate(labels, events, label_prior)
        return result


class DailyCounter:
    """Collects events partition by partition; what is kept grows with the distinct keys only."""

    def __init__(self) -> None:
        self._parts: list[tuple[Int64, Float64, Float64]] = []

    def add(self, video_row: Int64, timestamp: Int64, label: Float64) -> None:
        day = timestamp // SECONDS_PER_DAY
        self._parts.append(_counted(video_row.astype(np.int64), day, label))
        while len(self._parts) > 1 and len(self._parts[-2][0]) < 2 * len(self._parts[-1][0]):
            self._merge_last(2)

    def finish(self) -> DailyCounts:
        self._parts.append((np.zeros(0, np.int64), np.zeros(0), np.zeros(0)))
        self._merge_last(len(self._parts))
        key, events, labels = self._parts[0]
        return DailyCounts(key, np.r_[0.0, np.cumsum(events)], np.r_[0.0, np.cumsum(labels)])

    def _merge_last(self, number: int) -> None:
        key, events, labels = (np.concatenate(c) for c in zip(*self._parts[-number:], strict=True))
        self._parts[-number:] = [_merged(key, events, labels)]


def _counted(row: Int64, day: Int64, label: Float64) -> tuple[Int64, Float64, Float64]:
    """Keys, ascending, with their events and labels; without sorting where keys lie close."""
    first_day = day.min(initial=STRIDE)
    num_days = int(day.max(initial=0) - first_day) + 1
    cells = (int(row.max(initial=0)) + 1) * num_days
    if not 0 < cells <= 4 * len(row):
        return _merged(row * STRIDE + day, np.ones(len(row)), label)
    cell = row * num_days + (day - first_day)
    events = np.bincount(cell).astype(np.float64)
    labels = np.bincount(cell, label).astype(np.float64, copy=False)
    at = np.flatnonzero(events)
    key: Int64 = at // num_days * STRIDE + at % num_days + first_day
    return key, events[at], labels[at]


def _merged(key: Int64, events: Float64, labels: Float64) -> tuple[Int64, Float64, Float64]:
    """Sums per distinct key, ascending."""
    if len(key) == 0:
        return key, events, labels
    order = np.argsort(key, kind="stable")  # quick where sorted runs follow one another
    key = key[order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    return key[first], np.add.reduceat(events[order], first), np.add.reduceat(labels[order], first)
