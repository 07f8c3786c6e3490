"""Histories and daily counts that stream to disk: as if all had been in memory at once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import make_tables
from workflow.features.daily import DailyCounter
from workflow.features.history import session_starts
from workflow.features.history_files import GrowingArray, HistoryWriter, load_histories

EVENTS = make_tables(num_users=30, num_videos=12, num_events=700, seed=6).events


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("lengths", [(), (0,), (3, 0, 1), (1000, 24)])
def test_same_bytes_as_numpy_saves(tmp_path: Path, dtype: type, lengths: tuple[int, ...]) -> None:
    parts = [np.arange(length).astype(dtype) for length in lengths]
    file = GrowingArray(tmp_path / "deep" / "array.npy", dtype)
    for part in parts:
        file.append(part)
    file.close()
    expected = io.BytesIO()
    np.save(expected, np.concatenate([np.zeros(0, dtype), *parts]))
    assert (tmp_path / "deep" / "array.npy").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("num_parts", [1, 4, 30])
def test_histories_in_parts(tmp_path: Path, num_parts: int, graded: bool) -> None:
    watches = EVENTS[EVENTS["watched"]]
    user, time = watches["user_row"].to_numpy(), watches["timestamp"].to_numpy()
    video, label = watches["video_row"].to_numpy(), watches["label"].to_numpy(np.float64)
    with HistoryWriter(tmp_path, 30, 1800, graded=graded) as writer:
        for users in np.array_split(np.arange(1, 31), num_parts):
            mine = np.isin(user, users)
            writer.add(user[mine], video[mine], time[mine], label[mine])
    got = load_histories(tmp_path)
    assert got.video_row.tolist() == video.tolist() and got.video_row.dtype == np.int32
    assert got.time.tolist() == time.tolist()
    assert got.session_start.tolist() == session_starts(user, time, 1800).tolist()
    assert got.start.tolist() == np.searchsorted(user, np.arange(32)).tolist()
    if graded:
        assert got.label is not None and got.label.tolist() == label.tolist()
    else:
        assert got.label is None


@pytest.mark.parametrize("num_parts", [1, 2, 7, 700])
def test_daily_counts_in_parts(num_parts: int) -> None:
    counter = DailyCounter()
    for rows in np.array_split(np.arange(len(EVENTS)), num_parts):
        part = EVENTS.iloc[rows]
        counter.add(
            part["video_row"].to_numpy(), part["timestamp"].to_numpy(),
            part["label"].to_numpy(np.float64),
        )  # fmt: skip
        assert len(counter._parts) <= 12  # merged as they come
    counts = counter.finish()
    day = EVENTS["timestamp"] // 86_400
    by = EVENTS.groupby(["video_row", day])["label"]
    assert np.diff(counts.events).tolist() == by.size().tolist()
    assert np.diff(counts.labels).tolist() == by.sum().tolist()
    assert counts.key.tolist() == [row * (1 << 20) + at for row, at in by.size().index]
