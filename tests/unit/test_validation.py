"""Canonical tables from raw files: what is written, dropped, kept and refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow.config import Config, parse_config
from workflow.data.findings import columns_of
from workflow.data.tables import event_files, read_users, read_videos
from workflow.data.validate import validate
from workflow.errors import ContractError, DataError, MarqueeError, MissingArtifactError
from workflow.run import Run
from workflow.schema import Contract

NOON = 1_700_000_000  # a time in seconds
EVENTS = {
    "user_id": [3, 1, 1, 2],
    "video_id": [10, 20, 10, 20],
    "timestamp": [NOON + 5, NOON + 9, NOON, NOON + 1],
    "clicked": [1, 0, 1, 1],
    "watch_s": [5.0, None, 7.5, 0.0],
    "device": ["tv", "phone", None, "tv"],
}
USERS = {"user_id": [2, 1, 3], "age": [30.0, None, 50.0], "plan": [7, None, 8]}
VIDEOS = {
    "video_id": [20, 10],
    "name": ["B", None],
    "published": [NOON * 1000 - 500, None],
    "genres": [["x", None, "y"], None],
}
CONTRACT: dict[str, Any] = {
    "name": "small",
    "events": {
        "path": "events.parquet",
        "columns": [
            {"name": "user_id", "role": "user_id", "dtype": "int64"},
            {"name": "video_id", "role": "video_id", "dtype": "int64"},
            {"name": "timestamp", "role": "timestamp", "dtype": "int64", "unit": "s"},
            {"name": "clicked", "role": "label", "dtype": "int64"},
            {"name": "watch_s", "role": "watch_s", "dtype": "float32"},
            {"name": "device", "role": "context", "kind": "categorical", "dtype": "string"},
        ],
    },
    "users": {
        "path": "users.parquet",
        "columns": [
            {"name": "user_id", "role": "user_id", "dtype": "int64"},
            {"name": "age", "role": "user_feature", "kind": "continuous", "dtype": "float32"},
            {"name": "plan", "role": "user_feature", "kind": "categorical", "dtype": "int64"},
        ],
    },
    "videos": {
        "path": "videos.parquet",
        "columns": [
            {"name": "video_id", "role": "video_id", "dtype": "int64"},
            {"name": "name", "role": "title", "dtype": "string"},
            {"name": "published", "role": "publish_time", "dtype": "int64", "unit": "ms"},
            {"name": "genres", "role": "video_feature", "kind": "multi_hot", "dtype": "string"},
        ],
    },
}


class Dataset:
    """Three small Parquet tables and their contract, to be spoilt by a test."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self.run = Run(folder / "run")
        self.contract = json.loads(json.dumps(CONTRACT))
        for name, table in (("events", EVENTS), ("users", USERS), ("videos", VIDEOS)):
            self.write(name, table)

    def write(self, name: str, table: dict[str, Any] | pa.Table, **changes: Any) -> None:
        columns = table if isinstance(table, pa.Table) else pa.table({**table, **changes})
        pq.write_table(columns, self.source / f"{name}.parquet")

    def column(self, table: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            c for c in self.contract[table]["columns"] if c["name"] == name
        )
        return found

    def validate(self, **settings: Any) -> dict[str, Any]:
        config = configuration(**settings)
        contract = Contract.model_validate(self.contract)
        return validate(self.run, config, contract, self.source)

    def refuses(self, kind: type[MarqueeError], **settings: Any) -> str:
        with pytest.raises(kind) as caught:
            self.validate(**settings)
        assert "\n" not in str(caught.value)
        assert not list(self.run.root.glob(".*")), "temporary files are left behind"
        return str(caught.value)

    def events(self) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(path) for path in event_files(self.run)])


def configuration(**settings: Any) -> Config:
    return parse_config({"dataset": "custom", "validation": settings})


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


# --- what stops validation --------------------------------------------------------------------
def test_duplicate_video_ids_name_ids_and_rows(data: Dataset) -> None:
    data.write(
        "videos",
        {
            "video_id": [20, 10, 20],
            "name": ["a", "b", "c"],
            "published": [None] * 3,
            "genres": [["g"]] * 3,
        },
    )
    line = data.refuses(DataError)
    assert "1 duplicate video_id in the videos table" in line
    assert "20 (videos.parquet row 1, videos.parquet row 3)" in line


@pytest.mark.parametrize(
    ("unit", "scale", "suggestion"),
    [("s", 1000, 'unit = "ms"'), ("ms", 1, 'unit = "s"'), ("s", 10**6, 'unit = "us"'),
     ("us", 1000, 'unit = "ms"'), ("s", 10**9, 'unit = "ns"')],
)  # fmt: skip
def test_wrong_time_unit(data: Dataset, unit: str, scale: int, suggestion: str) -> None:
    data.column("events", "timestamp")["unit"] = unit
    data.write("events", EVENTS, timestamp=[t * scale for t in EVENTS["timestamp"]])
    line = data.refuses(DataError)
    assert suggestion in line and "events.parquet row 1, column timestamp" in line


def test_future_event(data: Dataset) -> None:
    future = int(time.time()) + 3 * 86_400
    data.write("events", EVENTS, timestamp=[NOON, NOON, future, NOON])
    assert "in the future" in data.refuses(DataError)


def test_publish_time_in_seconds_read_as_milliseconds(data: Dataset) -> None:
    data.write("videos", VIDEOS, published=[NOON, NOON + 1])
    assert 'unit = "s"' in data.refuses(DataError)


def test_missing_column_suggests_a_close_name(data: Dataset) -> None:
    data.column("users", "age")["source"] = "agee"
    line = data.refuses(ContractError)
    assert "users.parquet has no column 'agee'" in line and 'source = "age"' in line


def test_undeclared_column(data: Dataset) -> None:
    data.write("events", EVENTS, extra=[1, 2, 3, 4])
    line = data.refuses(ContractError)
    assert "'extra'" in line and 'role = "ignore"' in line


def test_ignored_columns_may_be_there_or_not(data: Dataset) -> None:
    data.contract["events"]["columns"] += [
        {"name": "extra", "role": "ignore", "dtype": "string"},
        {"name": "absent", "role": "ignore", "dtype": "string"},
    ]
    data.write("events", EVENTS, extra=[1, 2, 3, 4])
    data.validate()
    assert "extra" not in data.events().columns


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("user_id", ["3", "1", "1", "2"], "string"),
        ("device", [1, 2, 3, 4], "int64"),
        ("timestamp", ["a", "b", "c", "d"], "string"),
    ],
)
def test_wrong_dtype(data: Dataset, column: str, values: list[Any], found: str) -> None:
    data.write("events", EVENTS, **{column: values})
    line = data.refuses(ContractError)
    assert f"column {column} has the wrong dtype" in line and f"Found: {found}" in line


def test_fractions_in_an_integer_column_and_infinite_numbers(data: Dataset) -> None:
    data.write("users", USERS, plan=[7.5, None, 8])
    assert "users.parquet row 1, column plan: 7.5 is not a whole number" in data.refuses(DataError)
    data.write("users", USERS, age=[1.0, float("inf"), float("nan")])
    assert "users.parquet row 2, column age: inf" in data.refuses(DataError)


def test_label_needs_a_threshold(data: Dataset) -> None:
    data.write("events", EVENTS, clicked=[5, 1, 0, 3])
    assert "positive_at_least" in data.refuses(DataError)
    data.column("events", "clicked")["positive_at_least"] = 3
    assert data.validate()["num_watched"] == 2


def test_no_watch_at_all(data: Dataset) -> None:
    data.write("events", EVENTS, clicked=[0, 0, 0, 0])
    assert "no event counts as a watch" in data.refuses(DataError)


def test_logarithm_of_a_negative_number(data: Dataset) -> None:
    data.column("users", "age")["log"] = True
    data.write("users", USERS, age=[1.0, -2.0, 3.0])
    assert "log = false" in data.refuses(DataError)


def test_durations(data: Dataset) -> None:
    """Null and 0 mean that the duration is not known; a negative one is a mistake."""
    data.contract["videos"]["columns"].append(
        {"name": "length", "role": "duration_s", "kind": "continuous", "dtype": "float32"}
    )
    data.write("videos", VIDEOS, length=[None, 0.0])
    data.validate()
    written = pd.read_parquet(data.run.data / "videos.parquet").set_index("video_id")["length"]
    first, second = written[VIDEOS["video_id"]]
    assert np.isnan(first) and second == 0
    data.write("videos", VIDEOS, length=[60.0, -1.0])
    assert "-1 is no duration" in data.refuses(DataError)


@pytest.mark.parametrize("table", ["events", "users", "videos"])
def test_empty_missing_and_truncated_tables(data: Dataset, table: str) -> None:
    file = data.source / f"{table}.parquet"
    whole, content = file.read_bytes(), pq.read_table(file)
    pq.write_table(content.slice(0, 0), file)
    assert f"the {table} table ({table}.parquet) is empty" in data.refuses(DataError)
    file.write_bytes(whole[: len(whole) // 2])
    assert f"cannot read {table}.parquet" in data.refuses(DataError)
    file.write_bytes(b"")
    assert f"cannot read {table}.parquet" in data.refuses(DataError)
    file.unlink()
    assert f"no files for the {table} table" in data.refuses(DataError)


def test_all_failures_are_collected(data: Dataset) -> None:
    data.write("events", EVENTS, user_id=["x"] * 4, device=[1, 2, 3, 4])
    data.write("users", USERS, age=["old", "older", "oldest"])
    with pytest.raises(ContractError, match="2 more columns failed") as caught:
        data.validate()
    failed = {
        (column["table"], column["column"])
        for column in columns_of(caught.value)
        if column["result"] == "FAIL"
    }
    assert failed == {("users", "age"), ("events", "user_id"), ("events", "device")}


def test_columns_that_were_not_read_are_no_pass(data: Dataset) -> None:
    data.column("users", "age")["source"] = "years"
    with pytest.raises(ContractError, match="1 more column failed") as caught:
        data.validate()
    assert {
        (column["column"], column["result"], column["detail"])
        for column in columns_of(caught.value)
        if column["table"] == "users"
    } == {
        ("user_id", "WARN", "not checked"),
        ("age", "FAIL", "users.parquet has no column 'years' (table users)"),
        ("plan", "WARN", "not checked"),
        (
            "age",
            "FAIL",
            "users.parquet has a column 'age' that the contract does not declare (table users)",
        ),
    }


def test_a_failure_leaves_earlier_data(data: Dataset) -> None:
    data.validate()
    before = {path: path.read_bytes() for path in data.run.data.rglob("*") if path.is_file()}
    data.write("events", EVENTS, timestamp=[1, 2, 3, 4])
    data.refuses(DataError)
    assert before == {path: path.read_bytes() for path in before}


def test_interrupt_leaves_earlier_data(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data.validate()
    before = (data.run.data / "report.json").read_bytes()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workflow.data.validate.write_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.validate()
    assert (data.run.data / "report.json").read_bytes() == before
    assert not list(data.run.root.glob(".*"))


def test_readers_need_data(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingArtifactError, match="marquee validate"):
        read_users(Run(tmp_path / "run"))
