"""The features stage of the simulated service as one would write it directly in pandas.

What tests/bench/etl.py compares the stage with: everything in memory, one pass, no contract, no
partitions. It writes the same samples, histories, daily counts and encoded tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow.config import Config

DAY = 86_400
NUMBERS = ("user_event_count", "user_label_rate", "video_event_count", "video_lift_7d",
           "video_lift_30d", "video_label_rate", "video_age_days")  # fmt: skip
CONTEXT = ("device", "hour", "weekday")
SAMPLE = ["user_row", "video_row", "timestamp", "history_end", "session_start", "watched", "label"]
PRIOR_EVENTS = 10
UTC_OFFSETS = {"US": -6, "IN": 5.5, "BR": -3, "DE": 1, "JP": 9, "FR": 1, "MX": -6, "GB": 0}
Seconds = dict[str, float]


def pandas_features(data: Path, folder: Path, config: Config) -> Seconds:
    """Write the features of validated `data` into `folder`; processor seconds by step."""
    took: Seconds = {}

    def step(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        result = work(*arguments)
        took[name] = took.get(name, 0.0) + time.process_time() - started
        return result

    events, users, videos = step("read", _read, data)
    seen = step("point in time", _split, events, config)
    watches = step("point in time", _histories, events, len(users), config)
    prior = float(events.loc[seen, "label"].mean())
    step("point in time", _user_state, events, prior)
    events, daily = step("point in time", _video_state, events, users, videos, prior)
    samples, state = step("encode", _encode, events, users, videos, daily, seen, prior)
    tables = step("encode", _tables, events, users, videos, seen)
    step("write", _write, folder, samples, watches, daily, state | tables)
    return took


def _read(data: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    parts = [pd.read_parquet(path) for path in sorted((data / "events").glob("*.parquet"))]
    users, videos = (pd.read_parquet(data / f"{name}.parquet") for name in ("users", "videos"))
    return pd.concat(parts, ignore_index=True), users, videos


def _split(events: pd.DataFrame, config: Config) -> pd.Series[bool]:
    at = events["timestamp"]
    share = 1 - config.split.test_fraction
    test_from = at.quantile(share, interpolation="higher") + 1
    valid_from = at.quantile(share - config.split.valid_fraction, interpolation="higher") + 1
    events["part"] = (at >= valid_from).astype(np.int8) + (at >= test_from)
    events["day"] = at // DAY
    return events["part"] < 2


def _earlier(events: pd.DataFrame, running: pd.Series[Any]) -> pd.Series[Any]:
    """A running value as of the first event of each user's second."""
    return running.groupby(events["moment"], sort=False).transform("first")


def _histories(events: pd.DataFrame, num_users: int, config: Config) -> dict[str, Any]:
    new = events["user_row"].diff().ne(0) | events["timestamp"].diff().ne(0)
    events["moment"] = new.cumsum()
    watches = events.loc[events["watched"], ["user_row", "video_row", "timestamp"]]
    gap = watches.groupby("user_row", sort=False)["timestamp"].diff()
    fresh = gap.isna() | (gap > config.features.session_gap_s)
    number = pd.Series(np.arange(len(watches)), watches.index)
    sessions = number.where(fresh).ffill().to_numpy(np.int64)
    counts = watches["user_row"].value_counts().reindex(range(num_users + 1), fill_value=0)
    start = np.r_[0, counts.cumsum().to_numpy()]
    running = events["watched"].cumsum() - events["watched"]
    end = _earlier(events, running).to_numpy(np.int64)
    last = np.maximum(end - 1, 0)
    times = watches["timestamp"].to_numpy()
    age = events["timestamp"].to_numpy() - times[last]
    is_open = (end > start[events["user_row"]]) & (age <= config.features.session_gap_s)
    events["history_end"] = end
    events["session_start"] = np.where(is_open, sessions[last], end)
    video = watches["video_row"].to_numpy(np.int32)
    return {"video_row": video, "time": times, "start": start, "session_start": sessions}


def _user_state(events: pd.DataFrame, prior: float) -> None:
    by_user = events.groupby("user_row", sort=False)
    count = _earlier(events, by_user.cumcount())
    labels = _earlier(events, by_user["label"].cumsum() - events["label"])
    events["user_event_count"] = count
    events["user_label_rate"] = (labels + PRIOR_EVENTS * prior) / (count + PRIOR_EVENTS)


def _video_state(
    events: pd.DataFrame, users: pd.DataFrame, videos: pd.DataFrame, prior: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    daily = events.groupby(["video_row", "day"])["label"].agg(["size", "sum"]).reset_index()
    until = daily.groupby("video_row")[["size", "sum"]].cumsum()
    daily["events"], daily["labels"] = until["size"], until["sum"]
    numbers = daily[["video_row", "day"]].copy()
    before = (until["size"] - daily["size"]).astype(float)
    numbers["video_event_count"] = before
    numbers["video_label_rate"] = (until["sum"] - daily["sum"] + PRIOR_EVENTS * prior) / (
        before + PRIOR_EVENTS
    )
    _lifts(numbers, daily, before)
    events = events.merge(numbers, on=["video_row", "day"], how="left")
    published = videos["publish_time"].reindex(events["video_row"] - 1).to_numpy()
    events["video_age_days"] = np.maximum(events["timestamp"] - published, 0) / DAY
    _local_time(events, users)
    return events, daily


def _local_time(events: pd.DataFrame, users: pd.DataFrame) -> None:
    """Hour and weekday on the clock of the user's country."""
    offset = _utc_offset_s(users).to_numpy()
    local = events["timestamp"] + offset[events["user_row"].to_numpy() - 1]
    events["hour"] = local % DAY // 3600
    events["weekday"] = (local // DAY + 3) % 7


def _utc_offset_s(users: pd.DataFrame) -> pd.Series[int]:
    return (users["country"].map(UTC_OFFSETS).fillna(0) * 3600).astype(np.int32)


def _lifts(numbers: pd.DataFrame, daily: pd.DataFrame, before: pd.Series[Any]) -> None:
    """A video's share of the last days' traffic, times the number of videos so far."""
    traffic = daily.groupby("day")["size"].sum()
    days = np.arange(traffic.index.min() - 31, traffic.index.max() + 1)
    total = traffic.reindex(days, fill_value=0).cumsum().shift(fill_value=0)  # before each day
    first = daily.drop_duplicates("video_row")["day"].value_counts()
    known = first.reindex(days, fill_value=0).cumsum().shift(fill_value=0)
    count = numbers["day"].map(known).astype(float)
    traffic_before = numbers["day"].map(total)
    imagined = count * before / traffic_before.clip(lower=1)
    history = daily[["day", "video_row", "events"]].sort_values("day", kind="stable")
    for length in (7, 30):
        past = numbers[["video_row", "day"]].assign(day=numbers["day"] - length, at=numbers.index)
        past = past.sort_values("day", kind="stable")
        found = pd.merge_asof(past, history, on="day", by="video_row", allow_exact_matches=False)
        earlier = found.set_index("at")["events"].fillna(0).sort_index()
        of_all = traffic_before - (numbers["day"] - length).map(total) + count
        numbers[f"video_lift_{length}d"] = (
            count * (before - earlier + imagined) / of_all.clip(lower=1)
        )


def _vocabulary(values: pd.Series[Any]) -> pd.Series[Any]:
    """Index of each value, 3 for the most frequent."""
    counts = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return pd.Series(np.arange(3, 3 + len(counts), dtype=np.int32), counts.index)


def _indices(values: pd.Series[Any], vocabulary: pd.Series[Any]) -> Any:
    known = values.map(vocabulary).fillna(2).astype(np.int32)
    return known.mask(values.isna(), 1) if values.isna().any() else known


def _encode(
    events: pd.DataFrame,
    users: pd.DataFrame,
    videos: pd.DataFrame,
    daily: pd.DataFrame,
    seen: pd.Series[bool],
    prior: float,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    samples = events[[*SAMPLE, "part"]].copy()
    for name in CONTEXT:
        samples[name] = _indices(events[name], _vocabulary(events.loc[seen, name]))
    moments = {}
    for name in NUMBERS:
        values = events[name].astype(np.float32).fillna(0)
        values = values if name.endswith("rate") else np.log1p(values)
        kept = values[seen].astype(float)
        moments[name] = kept.mean(), kept.std()
        samples[name] = ((values - moments[name][0]) / moments[name][1]).astype(np.float32)
    samples["propensity"] = events["propensity"]
    samples["log_watch"] = np.log1p(events["watch_s"])
    return samples, _state(events, users, videos, daily, moments, prior)


def _state(
    events: pd.DataFrame,
    users: pd.DataFrame,
    videos: pd.DataFrame,
    daily: pd.DataFrame,
    moments: dict[str, tuple[float, float]],
    prior: float,
) -> dict[str, Any]:
    """Counts as of the day after the last event."""
    by_user = events.groupby("user_row")["label"].agg(["size", "sum"])
    by_user = by_user.reindex(range(len(users) + 1), fill_value=0)
    last = daily.groupby("video_row")[["size", "sum"]].sum()
    by_video = last.reindex(range(len(videos) + 1), fill_value=0)
    result = {}
    for kind, totals in (("user", by_user), ("video", by_video)):
        rate = (totals["sum"] + PRIOR_EVENTS * prior) / (totals["size"] + PRIOR_EVENTS)
        for name, raw in (("event_count", np.log1p(totals["size"])), ("label_rate", rate)):
            mean, std = moments[f"{kind}_{name}"]
            result[f"{kind}s/{kind}_{name}"] = ((raw - mean) / std).to_numpy(np.float32)
    result |= _state_lifts(daily, by_video["size"], moments)
    return result


def _state_lifts(
    daily: pd.DataFrame, events: pd.Series[Any], moments: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    tomorrow, count = daily["day"].max() + 1, float((events > 0).sum())
    imagined = count * events / max(events.sum(), 1)
    result = {}
    for length in (7, 30):
        recent = daily[daily["day"] >= tomorrow - length]
        mine = recent.groupby("video_row")["size"].sum().reindex(events.index, fill_value=0)
        lift = np.log1p(count * (mine + imagined) / (recent["size"].sum() + count))
        mean, std = moments[f"video_lift_{length}d"]
        result[f"videos/video_lift_{length}d"] = ((lift - mean) / std).to_numpy(np.float32)
    return result


def _tables(
    events: pd.DataFrame, users: pd.DataFrame, videos: pd.DataFrame, seen: pd.Series[bool]
) -> dict[str, Any]:
    """One row per user and video, row 0 in front."""
    result: dict[str, Any] = {}
    for kind, frame, unknown in (("user", users, 2), ("video", videos, 0)):
        vocabulary = _vocabulary(events.loc[seen, f"{kind}_row"])
        rows = pd.Series(np.arange(1, len(frame) + 1))
        result[f"{kind}s/{kind}_index"] = np.r_[unknown, _indices(rows, vocabulary)]
        result[f"{kind}s/{kind}_id"] = frame[f"{kind}_id"].to_numpy()
    for kind, frame, names in (
        ("user", users, ("country", "age_band", "maturity_limit")),
        ("video", videos, ("maturity", "language")),
    ):
        for name in names:
            result[f"{kind}s/{name}"] = np.r_[1, _indices(frame[name], _vocabulary(frame[name]))]
    result["users/utc_offset_s"] = np.r_[np.int32(0), _utc_offset_s(users)]
    genres = videos["genres"].explode()
    place = genres.groupby(level=0).cumcount()
    lists = np.zeros((len(videos) + 1, place.max() + 1), np.int32)
    lists[genres.index + 1, place] = _indices(genres, _vocabulary(genres))
    result["videos/genres"] = lists
    length = np.log1p(videos["duration_s"].fillna(videos["duration_s"].median()))
    result["videos/duration_s"] = np.r_[0, (length - length.mean()) / length.std()]
    result["videos/raw_duration_s"] = np.r_[np.nan, videos["duration_s"]]
    result["videos/publish_time"] = np.r_[0, videos["publish_time"].fillna(0)].astype(np.int64)
    return result


def _write(
    folder: Path,
    samples: pd.DataFrame,
    watches: dict[str, Any],
    daily: pd.DataFrame,
    arrays: dict[str, Any],
) -> None:
    for value, name in enumerate(("train", "valid", "test")):
        (folder / name).mkdir(parents=True)
        part = samples[samples["part"] == value].drop(columns="part")
        part.to_parquet(folder / name / "part-00000.parquet", index=False)
    arrays = arrays | {f"history/{name}": values for name, values in watches.items()}
    arrays |= {f"daily/{name}": daily[name].to_numpy() for name in daily.columns}
    for name, values in arrays.items():
        path = folder / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, values)
