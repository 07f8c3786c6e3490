"""Serving encodes as NVTabular does: categoricals equal, continuous values equal bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import workflow.environment  # noqa: F401

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fixtures import DAY, START, make_config, make_contract, make_tables, write_run
from workflow.config import FeatureConfig
from workflow.data.convert import convert
from workflow.data.values import Place
from workflow.features import tables as workflows
from workflow.features.build import build_features
from workflow.features.daily import RECENT_DAYS
from workflow.features.fitted import CompiledTable, restore_workflow, save_fitted
from workflow.features.history import Histories, session_pointer, session_starts
from workflow.features.samples import time_context, video_age_days
from workflow.run import Run, read_json

CONTRACT = make_contract()
CONFIG = make_config(features={"min_video_events": 35})
# Shrinking takes minutes at a workflow per example; the first failing example says enough.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
SLOW = settings(
    max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES
)

FLOATS = st.one_of(
    st.floats(width=32, min_value=0),  # infinity and values below the smallest normal included
    st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), 3.4e38, 1e-45]),
)
ANY_FLOATS = FLOATS | st.floats(width=32, allow_infinity=True)
WHOLE = st.one_of(st.none(), st.integers(-2, 40), st.sampled_from([2**31, -(2**31), 2**52]))


def words(*known: str) -> st.SearchStrategy[str | None]:
    """Known values, nulls, empty strings and text that was never seen."""
    unknown = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
    return st.one_of(st.sampled_from(known), st.none(), st.just(""), unknown)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("compiled") / "run"
    made = write_run(folder, CONTRACT, make_tables(num_events=900))
    build_features(made, CONFIG, CONTRACT)
    return made


def by_nvtabular(run: Run, name: Any, frame: pd.DataFrame) -> pd.DataFrame:
    folder = run.features / "workflows" / name
    workflow = restore_workflow(CONTRACT, CONFIG.features, name, folder)
    path = run.root / "input.parquet"
    return pd.concat(workflows.transform(workflow, [stored(frame, path)]), ignore_index=True)


def stored(frame: pd.DataFrame, path: Path) -> Path:
    """As the stages read it; a frame in memory would have its lists turned into text by Dask."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path)
    return path


def compiled(run: Run, name: str) -> CompiledTable:
    return CompiledTable.load(run.features / "workflows" / name)


def assert_same_bits(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Equal bit for bit, where any NaN equals any other."""
    assert got.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.int32), expected[~nan].view(np.int32))


def text_index(table: CompiledTable, name: str, values: list[str | None]) -> Any:
    raw = np.array(["" if value is None else value for value in values], str)
    return table[name].encode(raw, np.array([value is None for value in values], bool))


def whole_index(table: CompiledTable, name: str, values: list[int | None]) -> Any:
    raw = np.array([0 if value is None else value for value in values], np.int64)
    return table[name].encode(raw, np.array([value is None for value in values], bool))


def whole_series(values: list[int | None]) -> pd.Series:
    """As a column with nulls is read from Parquet: float64, NaN for null."""
    return pd.Series(values, dtype=np.float64) if None in values else pd.Series(values, dtype=int)


EVENTS = st.lists(
    st.tuples(
        words("tv", "phone", "web"), WHOLE, st.integers(0, 23), st.integers(0, 6), FLOATS, FLOATS,
        FLOATS, ANY_FLOATS.filter(lambda rate: not math.isnan(rate)),  # a rate is never null
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@SLOW
@given(EVENTS)
def test_events(run: Run, rows: list[tuple[Any, ...]]) -> None:
    device, slot, hour, weekday, count, views, age, rate = map(list, zip(*rows, strict=True))
    frame = pd.DataFrame({"device": pd.Series(device, dtype=object), "slot": whole_series(slot)})
    frame["hour"], frame["weekday"] = hour, weekday
    for name, values in (
        ("user_event_count", count), ("video_event_count", views), ("video_age_days", age),
        ("video_lift_7d", views), ("video_lift_30d", count),
        ("user_label_rate", rate), ("video_label_rate", rate),
    ):  # fmt: skip
        frame[name] = np.array(values, np.float32)
    expected, table = by_nvtabular(run, "events", frame), compiled(run, "events")
    assert text_index(table, "device", device).tolist() == expected["device"].tolist()
    assert whole_index(table, "slot", slot).tolist() == expected["slot"].tolist()
    for name in ("hour", "weekday"):
        assert whole_index(table, name, frame[name].tolist()).tolist() == expected[name].tolist()
    with np.errstate(invalid="ignore", over="ignore"):
        for name in frame.columns[4:]:
            assert_same_bits(table[name].normalise(frame[name].to_numpy()), expected[name].values)


@SLOW
@given(st.lists(st.tuples(words("DE", "US"), ANY_FLOATS), min_size=1, max_size=12))
def test_users(run: Run, rows: list[tuple[str | None, float]]) -> None:
    country, age = map(list, zip(*rows, strict=True))
    frame = pd.DataFrame({"country": pd.Series(country, dtype=object)})
    frame["age"] = np.array(age, np.float32)
    frame["likes"] = [["drama", "never seen"]] * len(frame)
    expected, table = by_nvtabular(run, "users", frame), compiled(run, "users")
    assert text_index(table, "country", country).tolist() == expected["country"].tolist()
    assert_same_bits(table["age"].normalise(frame["age"].to_numpy()), expected["age"].values)


LISTS = st.lists(words("drama", "comedy", "news", "sport").filter(bool), max_size=5)


@SLOW
@given(st.lists(st.tuples(words("de", "en", "ja"), FLOATS, LISTS), min_size=1, max_size=12))
def test_videos(run: Run, rows: list[tuple[str | None, float, list[str]]]) -> None:
    language, duration, genres = map(list, zip(*rows, strict=True))
    frame = pd.DataFrame({"language": pd.Series(language, dtype=object)})
    frame["duration"] = np.array(duration, np.float32)
    frame["genres"] = genres
    expected, table = by_nvtabular(run, "videos", frame), compiled(run, "videos")
    assert text_index(table, "language", language).tolist() == expected["language"].tolist()
    got = table["duration"].normalise(frame["duration"].to_numpy())
    assert_same_bits(got, expected["duration"].values)
    for items, encoded in zip(genres, expected["genres"], strict=True):
        assert text_index(table, "genres", items).tolist() == list(encoded)


@SLOW
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=1, max_size=20))
def test_ids(run: Run, rows: list[tuple[int, int]]) -> None:
    frame = pd.DataFrame(rows, columns=["user_row", "video_row"])
    expected, table = by_nvtabular(run, "ids", frame), compiled(run, "ids")
    for name in frame.columns:
        got = table[name].encode(frame[name].to_numpy(), np.zeros(len(frame), bool))
        assert got.tolist() == expected[name].tolist()


@settings(SLOW, max_examples=4)
@given(st.data())
def test_restored_equals_the_freshly_fitted(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Fitted on any users: constant columns, all-null columns, one row, empty strings."""
    row = st.tuples(words("DE", "US"), st.floats(0, 1e6, width=32) | st.just(float("nan")))
    rows = [("US", 1.0), *data.draw(st.lists(row, max_size=10))]
    country, age = map(list, zip(*rows, strict=True))
    frame = pd.DataFrame({"country": pd.Series(country, dtype=object)})
    frame["age"] = np.array(age, np.float32)
    frame["likes"] = [["drama"]] * len(frame)
    folder: Path = tmp_path_factory.mktemp("fitted")
    files = [stored(frame, folder / "input.parquet")]
    built = workflows.build_feature_workflow(CONTRACT, FeatureConfig(), "users", folder)
    fresh = workflows.fit(built, files)
    save_fitted(fresh, folder)
    restored = restore_workflow(CONTRACT, FeatureConfig(), "users", folder)
    expected = pd.concat(workflows.transform(fresh, files), ignore_index=True)
    again = pd.concat(workflows.transform(restored, files), ignore_index=True)
    pd.testing.assert_frame_equal(again, expected)
    table = CompiledTable.load(folder)
    assert text_index(table, "country", country).tolist() == expected["country"].tolist()
    assert_same_bits(table["age"].normalise(frame["age"].to_numpy()), expected["age"].values)


def test_rare_and_unknown_ids_share_the_out_of_vocabulary_index(run: Run) -> None:
    """`min_video_events = 35`: rarer videos give 2, as does a row that was never seen."""
    paths = sorted((run.data / "events").glob("*.parquet"))
    events = pd.concat([pd.read_parquet(path) for path in paths])
    test_from = read_json(run.features / "spec.json")["test_from"]
    counts = events[events["timestamp"] < test_from]["video_row"].value_counts()
    rare = sorted(counts[counts < 35].index)
    assert 0 < len(rare) < 20
    index = np.load(run.features / "videos" / "video_index.npy")
    assert sorted(np.flatnonzero(index == 2)) == rare
    assert index[0] == 0 and (index[1:] >= 2).all()
    assert len(set(index[index > 2])) == 20 - len(rare)
    assert compiled(run, "ids")["user_row"].encode(np.array([999]), np.zeros(1, bool)) == [2]


# --- the served stages' own encoders ------------------------------------------------------------
@pytest.fixture(scope="module")
def query_stage(run: Run) -> Any:
    from triton_repo.export import _Exporter
    from triton_repo.templates.query_tower.stage import Stage

    exporter: Any = SimpleNamespace(events=compiled(run, "events"))
    stage = Stage.__new__(Stage)
    names = ("device", "slot", "hour", "weekday")
    stage.vocabulary = {}
    for name in names:
        table = _Exporter._vocabulary(exporter, name)
        stage.vocabulary[name] = dict(zip(table["values"], table["index"], strict=True))
    return stage


@SLOW
@given(EVENTS)
def test_look_up(run: Run, query_stage: Any, rows: list[tuple[Any, ...]]) -> None:
    """Context as a request carries it; text that is empty is null, as validation makes it."""
    device = [row[0] or None for row in rows]
    slot = [row[1] for row in rows if row[1] is not None]
    table = compiled(run, "events")
    raw = np.array([b"" if value is None else value.encode() for value in device], object)
    got = query_stage.look_up("device", raw)
    assert got.shape == (len(device), 1) and got.dtype == np.int32
    assert got[:, 0].tolist() == text_index(table, "device", device).tolist()
    got = query_stage.look_up("slot", np.array(slot, np.int64))
    assert got[:, 0].tolist() == whole_index(table, "slot", list(slot)).tolist()
    assert query_stage.look_up("slot", None, 3).tolist() == [[1], [1], [1]]
    assert query_stage.look_up("device", np.array([b"\xff\xfe"], object)).tolist() == [[2]]


def test_empty_text_is_null_in_the_log_as_in_a_request() -> None:
    for is_text in (True, False):
        place = Place("events", 0, is_text)
        [device] = [c for c in CONTRACT.features("context") if c.name == "device"]
        assert convert(pa.array(["tv", "", None]), device, place).to_pylist() == ["tv", None, None]


def test_hour_and_weekday(run: Run, query_stage: Any) -> None:
    moments = START + np.arange(0, 8 * DAY, 1800)
    frame = pd.DataFrame(time_context(moments))
    assert frame["weekday"].iloc[0] == 4 and frame["hour"].iloc[2] == 1  # START is a Friday
    days = pd.to_datetime(moments, unit="s")
    assert frame["weekday"].tolist() == days.weekday.tolist()
    assert frame["hour"].tolist() == days.hour.tolist()
    table = compiled(run, "events")
    for name in ("hour", "weekday"):
        got = query_stage.context(name, {}, moments)
        assert got[:, 0].tolist() == whole_index(table, name, frame[name].tolist()).tolist()


WATCHES = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30)), max_size=30).map(sorted)


@given(WATCHES, st.lists(st.integers(0, 35), min_size=1, max_size=5), st.integers(1, 5))
def test_recent_watches(watches: list[tuple[int, int]], moments: list[int], length: int) -> None:
    """Served history and session equal what training samples point to."""
    from triton_repo.templates.query_tower import past
    from triton_repo.templates.query_tower.stage import Stage

    user, time = np.array(watches, np.int64).reshape(-1, 2).T
    start = np.searchsorted(user, np.arange(5)).astype(np.int64)
    histories = Histories(
        np.arange(len(time), dtype=np.int32), time, start, session_starts(user, time, 4)
    )
    stage = Stage.__new__(Stage)
    stage.settings = {"session_gap_s": 4}
    served = past.Histories.__new__(past.Histories)
    served.longest, served.graded = length, False
    served.watched_time, served.watched_start = time, start
    served.watched_row = np.arange(len(time), dtype=np.int32)
    served.video_index = served.watched_row + 3

    def recent(name: str, pasts: list[Any], at: np.ndarray) -> np.ndarray:
        result = np.zeros((len(at), length), np.int32)
        stage.recent(result, {"name": name, "length": length}, pasts, at)
        return result

    for row in range(4):
        rows, at = np.full(len(moments), row), np.array(moments)
        end = served.until(rows, at)
        pasts = [served.before(row, one, None, 0) for one in end]
        session = session_pointer(end, start[rows], at, histories, 4)
        for i, moment in enumerate(moments):
            known = [j + 3 for j, w in enumerate(watches) if w[0] == row and w[1] < moment]
            wanted = known[-length:]
            got = recent("history", pasts, at)[i]
            assert got.tolist() == [0] * (length - len(wanted)) + wanted
            wanted = known[len(known) - (end[i] - session[i]) :][-length:]
            got = recent("session_history", pasts, at)[i]
            assert got.tolist() == [0] * (length - len(wanted)) + wanted


@SLOW
@given(st.lists(st.none() | st.integers(-40 * DAY, 40 * DAY), min_size=1, max_size=20))
def test_video_age(run: Run, ages: list[int | None]) -> None:
    from triton_repo.templates.ranker.stage import Stage

    column = compiled(run, "events")["video_age_days"]
    stage = Stage.__new__(Stage)
    stage.age = {"fill": column.fill, "mean": column.mean, "std": column.std}
    now = START + 3 * DAY
    published = np.array([0 if age is None else now - age for age in ages], np.int64)
    stage.publish_time = np.r_[np.int64(0), published]
    rows = np.arange(len(ages) + 1)[None, :]
    got = stage.video_age(rows, np.array([[now]]))
    days = video_age_days(stage.publish_time, np.full(len(ages) + 1, now))
    frame = pd.DataFrame({"device": pd.Series([None] * len(days), dtype=object), "slot": 0})
    frame["hour"] = frame["weekday"] = 0
    counts = ("user_event_count", "video_event_count", *RECENT_DAYS)
    for name in (*counts, "user_label_rate", "video_label_rate"):
        frame[name] = np.float32(0)
    frame["video_age_days"] = days
    expected = by_nvtabular(run, "events", frame)["video_age_days"]
    assert_same_bits(got[0], expected.to_numpy())
