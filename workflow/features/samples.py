"""Samples: one row per event with pointers and point-in-time numbers, before encoding.

A sample does not repeat what is stored once elsewhere: `user_row` and `video_row` point into the
encoded tables, `history_end` and `session_start` into the flat histories. So 100 million events
need a few gigabytes on disk, not a copy of fifty ids each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workflow.config import Config
from workflow.features import history as past
from workflow.features.daily import STRIDE, DailyCounts
from workflow.features.history import SECONDS_PER_DAY, Histories
from workflow.features.local_time import request_offset_s
from workflow.features.split import UNUSED, leave_last_out, temporal_split
from workflow.schema import Contract

if TYPE_CHECKING:
    import pandas as pd

POINTERS = ("user_row", "video_row", "timestamp", "history_end", "session_start")


@dataclass(frozen=True)
class Cuts:
    """Split points of the temporal protocol (unused by leave_last_out)."""

    valid_from: int
    test_from: int


@dataclass(frozen=True)
class Known:
    """What samples look up besides their own partition.

    Attributes:
        publish_time: int64 [num_videos + 1] unix seconds (0 = not known), or None without them.
        label_prior: share of positive labels outside the test part.
        utc_offset_s: int32 [num_users + 1], or None where hours are those of UTC.
    """

    histories: Histories
    daily: DailyCounts
    publish_time: npt.NDArray[np.int64] | None
    label_prior: float
    utc_offset_s: npt.NDArray[np.int32] | None = None

    @cached_property
    def of_keys(self) -> dict[str, npt.NDArray[np.float32]]:
        """The numbers of a video at every key of `daily`: events of a day know the same."""
        row, day = self.daily.key // STRIDE, self.daily.key % STRIDE
        return self.daily.numbers(row, day * SECONDS_PER_DAY, label_prior=self.label_prior)


def split_of(events: pd.DataFrame, config: Config, cuts: Cuts) -> npt.NDArray[np.int8]:
    """Part of each event under the run's protocol; int8 [n]."""
    if config.split.protocol == "leave_last_out":
        return leave_last_out(events["user_row"].to_numpy(), events["watched"].to_numpy())
    return temporal_split(events["timestamp"].to_numpy(), cuts.valid_from, cuts.test_from)


def build_samples(
    events: pd.DataFrame,
    part: npt.NDArray[np.int8],
    contract: Contract,
    config: Config,
    known: Known,
) -> pd.DataFrame:
    """All samples of one partition (sorted by user_row, timestamp), not yet encoded.

    Without a label in the contract the column `label` is 1 throughout: only watches are known.
    """
    import pandas as pd

    columns: dict[str, npt.NDArray[np.generic]] = _pointers(events, known.histories, config)
    columns["part"] = part
    columns["watched"] = events["watched"].to_numpy().astype(np.int8)
    columns |= _user_state(events, known.label_prior, config)
    columns |= {c.name: events[c.name].to_numpy() for c in contract.features("context")}
    columns |= time_context(local_time(events, contract, known))
    columns["label"] = (
        events["label"].to_numpy(np.float32)
        if contract.has_label
        else np.ones(len(events), np.float32)
    )
    if contract.has_watch_time:
        columns["watch_s"] = events["watch_s"].to_numpy(np.float32)
    if contract.has_propensity:
        columns["propensity"] = events["propensity"].to_numpy(np.float32)
    columns |= video_numbers(columns["video_row"], columns["timestamp"], contract, known)
    samples = pd.DataFrame(columns, copy=False)
    used = part != UNUSED
    return samples if used.all() else samples[used].reset_index(drop=True)


def local_time(events: pd.DataFrame, contract: Contract, known: Known) -> npt.NDArray[np.int64]:
    """What the clocks showed at each event, as if it were UTC; int64 [n]."""
    time = events["timestamp"].to_numpy(np.int64)
    if known.utc_offset_s is None:
        return time
    column = contract.tagged("events", "country")
    asked = None if column is None else events[column.name].to_numpy(object)
    of_user = known.utc_offset_s[events["user_row"].to_numpy()]
    return time + request_offset_s(contract, asked, of_user)


def time_context(timestamp: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Hour of day (0-23) and weekday (0 = Monday); int64, same shape as `timestamp`.

    Args:
        timestamp: of UTC, or of local time.
    """
    days = timestamp // SECONDS_PER_DAY
    return {
        "hour": timestamp % SECONDS_PER_DAY // 3600,
        "weekday": (days + 3) % 7,  # 1970-01-01 was a Thursday
    }


def video_numbers(
    video_row: npt.NDArray[Any], timestamp: npt.NDArray[Any], contract: Contract, known: Known
) -> dict[str, npt.NDArray[np.float32]]:
    """What was known of each sample's video at the end of the day before; float32 [n] each."""
    video, time = video_row.astype(np.int64), timestamp.astype(np.int64, copy=False)
    at = known.daily.position(video, time)
    result = {
        name: values[at]
        for name, values in known.of_keys.items()
        if contract.has_label or name != "video_label_rate"
    }
    if known.publish_time is not None:
        result["video_age_days"] = video_age_days(known.publish_time[video], time)
    return result


def video_age_days(
    publish_time: npt.NDArray[np.int64], at: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Days since publication, at least 0; NaN where the publish time is not known (0)."""
    age = np.maximum(at - publish_time, 0) / np.float64(SECONDS_PER_DAY)
    result: npt.NDArray[np.float32] = np.where(publish_time == 0, np.nan, age).astype(np.float32)
    return result


def _pointers(
    events: pd.DataFrame, histories: Histories, config: Config
) -> dict[str, npt.NDArray[np.generic]]:
    user = events["user_row"].to_numpy(np.int64)
    time = events["timestamp"].to_numpy(np.int64)
    at = past.positions(user, time, by_order=config.split.by_order)
    gap_s = config.features.session_gap_s
    watched_before = past.count_before(events["watched"].to_numpy(np.float64), at)
    start = histories.start[user]
    end = start + watched_before.astype(np.int64)
    return {
        "user_row": user.astype(np.int32),
        "video_row": events["video_row"].to_numpy(np.int32),
        "timestamp": time,
        "history_end": end,
        "session_start": past.session_pointer(end, start, time, histories, gap_s),
    }


def _user_state(
    events: pd.DataFrame, prior: float, config: Config
) -> dict[str, npt.NDArray[np.generic]]:
    user, time = events["user_row"].to_numpy(), events["timestamp"].to_numpy()
    at = past.positions(user, time, by_order=config.split.by_order)
    count = past.count_before(np.ones(len(events)), at)
    result: dict[str, npt.NDArray[np.generic]] = {"user_event_count": count.astype(np.float32)}
    if "label" in events:
        labels = past.count_before(events["label"].to_numpy(np.float64), at)
        result["user_label_rate"] = past.smoothed_rate(labels, count, prior)
    return result
