"""What stops validation: mistakes in raw files are named, and earlier data stays."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.raw_tables import EVENTS, NOON, USERS, VIDEOS, Dataset
from workflow.data.findings import columns_of
from workflow.data.tables import read_users
from workflow.errors import ContractError, DataError, MissingArtifactError
from workflow.run import Run


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


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
