"""Canonical tables from raw files: what is written, dropped and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_tables import EVENTS, NOON, USERS, Dataset
from workflow.data.tables import event_files, read_users, read_videos
from workflow.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def test_canonical_tables(data: Dataset) -> None:
    summary = data.validate()
    events = data.events()
    assert events["user_row"].tolist() == [1, 1, 2, 3]
    assert events["video_row"].tolist() == [1, 2, 2, 1]
    assert events["timestamp"].tolist() == [NOON, NOON + 9, NOON + 1, NOON + 5]
    assert events["watched"].tolist() == [True, False, True, True]
    assert events["device"].tolist() == [None, "phone", "tv", "tv"]
    np.testing.assert_array_equal(events["watch_s"], np.float32([7.5, np.nan, 0, 5]))
    types = {
        "user_row": "int32", "video_row": "int32", "timestamp": "int64", "watched": "bool",
        "label": "float32", "watch_s": "float32", "device": "object",
    }  # fmt: skip
    assert {name: str(kind) for name, kind in events.dtypes.items()} == types
    users, videos = read_users(data.run), read_videos(data.run)
    assert users["user_id"].tolist() == [1, 2, 3]
    assert users["plan"].dtype == pd.Int64Dtype() and users["plan"].tolist()[1:] == [7, 8]
    assert list(videos.columns) == ["video_id", "title", "publish_time", "genres"]
    assert videos["title"].tolist() == [None, "B"]
    assert videos["publish_time"].tolist()[1] == NOON - 1  # half a second is cut off
    assert [list(genres) for genres in videos["genres"]] == [[], ["x", "y"]]
    assert summary["num_events"] == 4 and summary["num_watched"] == 3
    assert summary["num_users"] == 3 and summary["num_videos"] == 2
    assert {column["result"] for column in summary["columns"]} == {"PASS"}
    assert json.loads((data.run.data / "report.json").read_text()) == summary
    names = {path.name for path in data.run.data.iterdir()}
    assert names == {"events", "users.parquet", "videos.parquet", "report.json"}


def big_events(rows: int = 20_000, users: int = 900, videos: int = 300) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "user_id": random.zipf(1.5, rows) % users,
        "video_id": random.integers(0, videos, rows),
        "timestamp": NOON + random.integers(0, 10_000, rows),
        "clicked": random.integers(0, 2, rows),
        "watch_s": random.random(rows),
        "device": random.choice(["tv", "phone"], rows),
    }


def test_partitions_hold_whole_users_and_all_events(data: Dataset) -> None:
    table = big_events()
    data.write("events", table)
    data.write("users", {"user_id": range(900), "age": [1.0] * 900, "plan": range(900)})
    data.write(
        "videos",
        {
            "video_id": range(300),
            "name": ["v"] * 300,
            "published": [None] * 300,
            "genres": [["g"]] * 300,
        },
    )
    summary = data.validate(rows_per_partition=2_000)
    parts = [pd.read_parquet(path) for path in event_files(data.run)]
    assert len(parts) == summary["num_parts"] > 4
    assert all(len(part) for part in parts)
    for before, after in zip(parts, parts[1:], strict=False):
        assert before["user_row"].max() < after["user_row"].min()
    events = pd.concat(parts, ignore_index=True)
    expected = pd.DataFrame(table).sort_values(["user_id", "timestamp"], kind="stable")
    assert (events["user_row"].to_numpy() == expected["user_id"].to_numpy() + 1).all()
    assert (events["video_row"].to_numpy() == expected["video_id"].to_numpy() + 1).all()
    assert (events["timestamp"].to_numpy() == expected["timestamp"].to_numpy()).all()
    assert (events["device"].to_numpy() == expected["device"].to_numpy()).all()
    copies = pd.DataFrame(table)[["user_id", "video_id", "timestamp"]].duplicated().sum()
    assert summary["num_repeated"] == copies


def test_tables_are_built_from_events_when_there_are_none(data: Dataset) -> None:
    del data.contract["users"], data.contract["videos"]
    summary = data.validate(unknown_video="drop")
    assert read_users(data.run).to_dict("list") == {"user_id": [1, 2, 3]}
    assert read_videos(data.run).to_dict("list") == {"video_id": [10, 20], "title": [None, None]}
    assert summary["added"] == {"users": 3, "videos": 2}


def test_string_ids_sort_as_text(data: Dataset) -> None:
    for table, name in (("events", "user_id"), ("users", "user_id")):
        data.column(table, name)["dtype"] = "string"
    data.write("events", EVENTS, user_id=["ü", "b", "b", "10"])
    data.write("users", USERS, user_id=["b", "9", "10"])
    data.validate()
    assert read_users(data.run)["user_id"].tolist() == ["10", "9", "b", "ü"]


def test_several_files_sub_second_order_and_folders(data: Dataset) -> None:
    (data.source / "logs").mkdir()
    table = pa.table({**EVENTS, "timestamp": [(NOON + 5) * 1000 + 3, NOON * 1000 + 9,
                                              NOON * 1000 + 1, NOON * 1000]})  # fmt: skip
    pq.write_table(table.slice(0, 2), data.source / "logs" / "b.parquet")
    pq.write_table(table.slice(2, 2), data.source / "logs" / "a.parquet")
    (data.source / "logs" / "_SUCCESS").write_text("not Parquet")
    (data.source / "logs" / "schema.pbtxt").write_text("not Parquet")
    data.contract["events"]["path"] = "logs"
    data.column("events", "timestamp")["unit"] = "ms"
    data.validate()
    first_user = data.events().query("user_row == 1")
    assert first_user["video_row"].tolist() == [1, 2]
    assert first_user["timestamp"].tolist() == [NOON, NOON]


# --- rows that are dropped and counted --------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "no user_id"),
        ("video_id", None, "no video_id"),
        ("timestamp", None, "no timestamp"),
        ("clicked", None, "no label"),
        ("watch_s", -1.0, "negative watch_s"),
        ("video_id", 999, "unknown video_id"),
    ],
)
def test_bad_rows_are_dropped_and_counted(
    data: Dataset, column: str, value: Any, reason: str
) -> None:
    values = list(EVENTS[column])
    values[3] = value
    data.write("events", EVENTS, **{column: values})
    summary = data.validate(max_bad_fraction=0.3)
    assert summary["dropped"] == {reason: 1}
    assert summary["num_events"] == 3
    line = next(c for c in summary["columns"] if c["column"] == column and c["table"] == "events")
    assert line["result"] == "WARN" and line["examples"] == ["events.parquet row 4"]
    line_error = data.refuses(DataError, max_bad_fraction=0.2)
    assert "25.0% of the events rows" in line_error and "events.parquet row 4" in line_error


def test_nan_label_counts_as_no_label(data: Dataset) -> None:
    data.write("events", EVENTS, clicked=[1.0, float("nan"), 0.0, 1.0])
    assert data.validate(max_bad_fraction=0.5)["dropped"] == {"no label": 1}


def test_propensity_must_be_a_probability(data: Dataset) -> None:
    column = {"name": "p", "role": "propensity", "dtype": "float32"}
    data.contract["events"]["columns"].append(column)
    data.write("events", EVENTS, p=[0.5, 0.0, 1.0, 1.5])
    dropped = data.validate(max_bad_fraction=0.5)["dropped"]
    assert dropped == {"propensity outside (0, 1]": 2}


def test_an_unknown_propensity_is_kept(data: Dataset) -> None:
    """Logs with some random exposures know the probability of those only."""
    column = {"name": "p", "role": "propensity", "dtype": "float32"}
    data.contract["events"]["columns"].append(column)
    data.write("events", EVENTS, p=[0.5, None, float("nan"), 1.0])
    assert data.validate()["dropped"] == {}
    kept = pq.read_table(event_files(data.run)[0])["propensity"]
    assert kept.null_count == 0
    assert np.sort(kept.to_numpy()).tolist()[:2] == [0.5, 1.0]
    assert np.isnan(kept.to_numpy()).sum() == 2


# --- events of unknown users and videos -------------------------------------------------------
def test_unknown_user_is_kept_with_nulls(data: Dataset) -> None:
    data.write("events", EVENTS, user_id=[3, 1, 1, 77])
    summary = data.validate()
    users = read_users(data.run)
    assert users["user_id"].tolist() == [1, 2, 3, 77]
    assert users.iloc[3][["age", "plan"]].isna().all()
    assert summary["added"] == {"users": 1, "videos": 0} and summary["dropped"] == {}


def test_kept_video_has_an_empty_list(data: Dataset) -> None:
    data.write("events", EVENTS, video_id=[10, 20, 10, 5])
    data.validate(unknown_video="keep")
    videos = read_videos(data.run)
    assert videos["video_id"].tolist() == [5, 10, 20]
    assert videos["title"].tolist()[0] is None and len(videos["genres"][0]) == 0


def test_a_dropped_event_adds_no_user(data: Dataset) -> None:
    data.write("events", EVENTS, user_id=[3, 1, 1, 77], video_id=[10, 20, 10, 999])
    summary = data.validate(max_bad_fraction=0.5)
    assert summary["num_users"] == 3 and summary["added"]["users"] == 0


@pytest.mark.parametrize("what", ["user", "video"])
def test_unknown_as_an_error(data: Dataset, what: str) -> None:
    ids = list(EVENTS[f"{what}_id"])
    ids[2] = 404
    data.write("events", EVENTS, **{f"{what}_id": ids})
    line = data.refuses(DataError, **{f"unknown_{what}": "error"})
    assert f"events.parquet row 3: {what}_id 404 is not in the {what}s table" in line
    assert f"--set validation.unknown_{what}=drop" in line
