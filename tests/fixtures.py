"""Small contracts and canonical tables for tests of features, models and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workflow.config import Config, parse_config
from workflow.run import Run
from workflow.schema import Contract

DAY = 86_400
START = 20_000 * DAY  # 2024-10-04, a Friday, 00:00 UTC
GENRES = ("drama", "comedy", "news", "sport")


def make_contract(
    *,
    label: bool = True,
    watch_time: bool = True,
    context: bool = True,
    lists: bool = True,
    publish_time: bool = True,
    numbers: bool = True,
    propensity: bool = False,
    graded: bool = False,
) -> Contract:
    """A contract over the columns that `make_tables` writes, with or without each kind.

    Args:
        graded: every event is a watch, and the label says which of them were positive.
    """

    def column(name: str, role: str, dtype: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "role": role, "dtype": dtype, **more}

    def feature(name: str, role: str, kind: str, dtype: str, **more: Any) -> dict[str, Any]:
        return column(name, role, dtype, kind=kind, **more)

    events = [
        column("user_id", "user_id", "int64"),
        column("video_id", "video_id", "string"),
        column("at", "timestamp", "int64", unit="s"),
    ]
    events += [column("clicked", "label", "int64")] if label else []
    events += [column("seconds", "watch_s", "float32")] if watch_time else []
    events += [column("chance", "propensity", "float32")] if propensity else []
    if context:
        events.append(feature("device", "context", "categorical", "string"))
        events.append(feature("slot", "context", "categorical", "int64"))
    users = [column("user_id", "user_id", "int64")]
    users.append(feature("country", "user_feature", "categorical", "string"))
    videos = [column("video_id", "video_id", "string")]
    videos.append(feature("language", "video_feature", "categorical", "string"))
    if numbers:
        users.append(feature("age", "user_feature", "continuous", "float32"))
        videos.append(feature("duration", "duration_s", "continuous", "float32", log=True))
    if lists:
        users.append(feature("likes", "user_feature", "multi_hot", "string"))
        videos.append(feature("genres", "video_feature", "multi_hot", "string"))
    if publish_time:
        videos.append(column("published", "publish_time", "int64", unit="s"))
    return Contract.model_validate(
        {
            "name": "planted",
            "watched": "label" if label and not graded else "all",
            "events": {"path": "events", "columns": events},
            "users": {"path": "users.parquet", "columns": users},
            "videos": {"path": "videos.parquet", "columns": videos},
        }
    )


@dataclass
class Tables:
    """Canonical tables as validation writes them; every column that any contract here names."""

    users: pd.DataFrame
    videos: pd.DataFrame
    events: pd.DataFrame


def make_tables(
    num_users: int = 30, num_videos: int = 20, num_events: int = 600, seed: int = 1
) -> Tables:
    """Random tables with nulls, empty lists and several events in one second."""
    rng = np.random.default_rng(seed)
    users = pd.DataFrame({"user_id": np.arange(num_users) * 3 + 100})
    users["country"] = rng.choice(np.array(["DE", "US", None], object), num_users)
    users["age"] = rng.integers(12, 80, num_users).astype(np.float32)
    users.loc[0, "age"] = np.nan
    users["likes"] = [_some(rng) for _ in range(num_users)]
    videos = pd.DataFrame({"video_id": [f"v{i:05d}" for i in range(num_videos)]})
    videos["title"] = [f"Video {i}" for i in range(num_videos)]
    videos["language"] = rng.choice(np.array(["de", "en", "ja", None], object), num_videos)
    videos["duration"] = rng.lognormal(5, 1, num_videos).astype(np.float32)
    videos.loc[1, "duration"] = np.nan
    videos["genres"] = [_some(rng) for _ in range(num_videos)]
    published = START + rng.integers(-20 * DAY, 5 * DAY, num_videos)
    videos["publish_time"] = pd.array(published, "Int64")
    videos.loc[2, "publish_time"] = pd.NA
    return Tables(users, videos, random_events(rng, num_users, num_videos, num_events))


def _some(rng: np.random.Generator) -> list[str]:
    return [str(name) for name in rng.permutation(GENRES)[: rng.integers(0, 4)]]


def random_events(
    rng: np.random.Generator, num_users: int, num_videos: int, num_events: int
) -> pd.DataFrame:
    """Events over ten days, on a grid of ten minutes, so that times tie."""
    events = pd.DataFrame(
        {
            "user_row": rng.integers(1, num_users + 1, num_events).astype(np.int32),
            "video_row": rng.integers(1, num_videos + 1, num_events).astype(np.int32),
            "timestamp": START + rng.integers(0, 10 * 144, num_events) * 600,
        }
    )
    events["watched"] = rng.random(num_events) < 0.4
    events["label"] = events["watched"].astype(np.float32)
    seconds = np.where(events["watched"], rng.lognormal(4, 1, num_events), 0)
    events["watch_s"] = np.where(rng.random(num_events) < 0.1, np.nan, seconds).astype(np.float32)
    events["propensity"] = np.linspace(0.01, 1, num_events, dtype=np.float32)
    events["device"] = rng.choice(np.array(["tv", "phone", "web", None], object), num_events)
    events["slot"] = pd.array(rng.integers(0, 4, num_events), "Int64")
    events.loc[events.index[: num_events // 10], "slot"] = pd.NA
    return events.sort_values(["user_row", "timestamp"], kind="stable", ignore_index=True)


def write_run(folder: Path, contract: Contract, tables: Tables, *, num_partitions: int = 1) -> Run:
    """A run whose validation is done: the columns of `contract`, events in user-aligned parts."""
    run = Run(folder)
    (run.data / "events").mkdir(parents=True)
    features = [c.name for c in contract.features("user_feature")]
    _write(tables.users[["user_id", *features]], run.data / "users.parquet")
    features = [c.name for c in contract.features("video_feature")]
    publish = ["publish_time"] if contract.has_publish_time else []
    kept = ["video_id", "title", *publish, *features]
    _write(tables.videos[kept], run.data / "videos.parquet")
    events = tables.events
    if contract.watched == "all":
        events = events.assign(watched=True)
    columns = ["user_row", "video_row", "timestamp", "watched"]
    columns += ["label"] if contract.has_label else []
    columns += ["watch_s"] if contract.has_watch_time else []
    columns += ["propensity"] if contract.has_propensity else []
    columns += [c.name for c in contract.features("context")]
    bounds = np.linspace(0, len(tables.users) + 1, num_partitions + 1).astype(int)
    for part, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        chosen = events[(events["user_row"] >= low) & (events["user_row"] < high)]
        path = run.data / "events" / f"part-{part:05d}.parquet"
        _write(chosen[columns], path)
    return run


def _write(frame: pd.DataFrame, path: Path) -> None:
    """As validation does: Arrow types with nulls, nothing about pandas."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path)


def make_config(**sections: Any) -> Config:
    """A small configuration; `retriever={"max_epochs": 2}` changes single values."""
    values: dict[str, Any] = {
        "dataset": "custom",
        "features": {"history_length": 6, "session_length": 3},
        "retriever": {
            "embedding_dim": 8, "tower_layers": [16], "co_watch_dim": 4, "max_epochs": 4,
            "refit": False,
        },
        "ranker": {
            "embedding_dim": 8, "bottom_layers": [16], "top_layers": [16, 8], "refit": False,
        },
    }  # fmt: skip
    for name, value in sections.items():
        base = values.get(name)
        values[name] = base | value if isinstance(base, dict) else value
    return parse_config(values)


# --- what was known at each event, by plain loops ------------------------------------------------
def known_before(
    tables: Tables, gap_s: int, prior: float, *, rates: bool = True
) -> list[dict[str, Any]]:
    """The right answer per event: only strictly earlier events, videos up to the day before."""
    rows = tables.events.to_dict("records")
    return [_known(row, rows, tables, gap_s, prior, rates) for row in rows]


def _known(
    row: dict[str, Any],
    rows: list[dict[str, Any]],
    tables: Tables,
    gap_s: int,
    prior: float,
    rates: bool,
) -> dict[str, Any]:
    now, day = row["timestamp"], row["timestamp"] // DAY
    mine = [r for r in rows if r["user_row"] == row["user_row"] and r["timestamp"] < now]
    of_video = [
        r for r in rows if r["video_row"] == row["video_row"] and r["timestamp"] // DAY < day
    ]
    watches = [r for r in mine if r["watched"]]
    session: list[int] = []
    later = now
    for watch in reversed(watches):
        if later - watch["timestamp"] > gap_s:
            break
        session.insert(0, watch["video_row"])
        later = watch["timestamp"]
    answer = {
        "history": [watch["video_row"] for watch in watches],
        "session": session,
        "user_event_count": np.float32(len(mine)),
        "video_event_count": np.float32(len(of_video)),
        **{f"video_lift_{days}d": _lift(of_video, rows, day, days) for days in (7, 30)},
    }
    if rates:
        answer["user_label_rate"] = _rate(mine, prior)
        answer["video_label_rate"] = _rate(of_video, prior)
    published = tables.videos["publish_time"].iloc[row["video_row"] - 1]
    age = np.nan if pd.isna(published) else max(now - int(published), 0) / DAY
    answer["video_age_days"] = np.float32(age)
    return answer


def _lift(
    of_video: list[dict[str, Any]], rows: list[dict[str, Any]], today: int, days: int
) -> np.float32:
    """The video's smoothed share of the last days' events, times the number of videos so far."""
    past = [row for row in rows if row["timestamp"] // DAY < today]
    videos = float(len({row["video_row"] for row in past}))
    recent, traffic = (
        sum(today - row["timestamp"] // DAY <= days for row in some) for some in (of_video, past)
    )
    smoothed = recent + videos * len(of_video) / max(len(past), 1)
    return np.float32(videos * smoothed / max(traffic + videos, 1.0))


def _rate(events: list[dict[str, Any]], prior: float) -> np.float32:
    """Ten imagined events at the prior rate keep few real ones from saying much."""
    positive = sum(float(event["label"]) for event in events)
    return np.float32((positive + 10 * prior) / (len(events) + 10))


def differences(samples: pd.DataFrame, histories: Any, expected: list[dict[str, Any]]) -> list[str]:
    """Where samples (one per event, in order) say other than what was known; empty when right."""
    assert len(samples) == len(expected)
    found = []
    for at, (sample, known) in enumerate(zip(samples.to_dict("records"), expected, strict=True)):
        end = sample["history_end"]
        got = {
            "history": histories.video_row[histories.start[sample["user_row"]] : end].tolist(),
            "session": histories.video_row[sample["session_start"] : end].tolist(),
            **{name: sample[name] for name in known if name not in ("history", "session")},
        }
        for name, value in known.items():
            same = got[name] == value or (name == "video_age_days" and _both_nan(got[name], value))
            if not same:
                found.append(f"event {at}: {name} is {got[name]}, known was {value}")
    return found


def _both_nan(a: float, b: float) -> bool:
    return bool(np.isnan(a) and np.isnan(b))
