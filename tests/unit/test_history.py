"""Histories, sessions and counts against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.features.daily import STRIDE, DailyCounter
from workflow.features.history import (
    SECONDS_PER_DAY,
    Histories,
    count_before,
    positions,
    session_pointer,
    session_starts,
    smoothed_rate,
)

LOGS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=40).map(sorted)


def columns(rows: list[tuple[int, int]]) -> tuple[Any, Any]:
    array = np.array(rows, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@given(LOGS)
def test_positions_are_the_strictly_earlier_events(rows: list[tuple[int, int]]) -> None:
    user, time = columns(rows)
    at = positions(user, time)
    for i, (mine, now) in enumerate(rows):
        earlier = [j for j, (u, t) in enumerate(rows) if u == mine and t < now]
        assert list(range(at.user_first[i], at.known_until[i])) == earlier


@given(LOGS, st.randoms(use_true_random=False))
def test_count_before(rows: list[tuple[int, int]], random: Any) -> None:
    user, time = columns(rows)
    values = np.array([random.choice([0.0, 1.0, 2.0]) for _ in rows])
    got = count_before(values, positions(user, time))
    expected = [
        sum(v for (u, t), v in zip(rows, values, strict=True) if u == mine and t < now)
        for mine, now in rows
    ]
    assert got.tolist() == expected


@given(LOGS, st.integers(1, 4))
def test_session_starts(rows: list[tuple[int, int]], gap: int) -> None:
    user, time = columns(rows)
    got = session_starts(user, time, gap)
    start = 0
    for i, (mine, now) in enumerate(rows):
        if i == 0 or rows[i - 1][0] != mine or now - rows[i - 1][1] > gap:
            start = i
        assert got[i] == start
    assert len(got) == len(rows)


@given(LOGS, st.integers(0, 12), st.integers(1, 4))
def test_session_pointer(rows: list[tuple[int, int]], now: int, gap: int) -> None:
    """For a request of each user at `now`: the watches that are joined by gaps of at most `gap`."""
    user, time = columns(rows)
    start = np.searchsorted(user, np.arange(6)).astype(np.int64)
    histories = Histories(user.astype(np.int32), time, start, session_starts(user, time, gap))
    for asked in range(1, 5):
        before = [i for i, (u, t) in enumerate(rows) if u == asked and t < now]
        end = start[asked] + len(before)
        first, later = end, now
        for i in reversed(before):
            if later - rows[i][1] > gap:
                break
            first, later = i, rows[i][1]
        one = np.array([end]), np.array([start[asked]]), np.array([now])
        assert session_pointer(*one, histories, gap).tolist() == [first]


def test_nobody_has_watched_anything() -> None:
    none = np.zeros(0, np.int64)
    histories = Histories(none.astype(np.int32), none, np.zeros(4, np.int64), none)
    end = np.zeros(3, np.int64)
    got = session_pointer(end, end, np.arange(3), histories, 10)
    assert got.tolist() == [0, 0, 0]
    assert got is not end


EVENTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 5 * SECONDS_PER_DAY), st.booleans()), max_size=30
)


@given(EVENTS, st.integers(1, 3))
def test_daily_counts_in_any_number_of_pieces(
    rows: list[tuple[int, int, bool]], pieces: int
) -> None:
    counter = DailyCounter()
    for piece in np.array_split(np.array(rows, np.int64).reshape(-1, 3), pieces):
        counter.add(piece[:, 0], piece[:, 1], piece[:, 2].astype(float))
    daily = counter.finish()
    asked = [(video, day) for video in range(4) for day in range(8)]
    video, day = columns(asked)
    events, labels = daily.before(video, day * SECONDS_PER_DAY + 17)
    for i, (v, d) in enumerate(asked):
        known = [r for r in rows if r[0] == v and r[1] // SECONDS_PER_DAY < d]
        assert events[i] == len(known)
        assert labels[i] == sum(r[2] for r in known)


SPREAD = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 900_000]), st.integers(0, 400 * SECONDS_PER_DAY), st.booleans()
    ),
    min_size=1, max_size=200,
)  # fmt: skip


@given(EVENTS.filter(bool) | SPREAD)
def test_keys_that_lie_close_and_keys_that_do_not(rows: list[tuple[int, int, bool]]) -> None:
    """Counted with and without sorting, found with and without a search."""
    video, time, label = np.array(rows, np.int64).T
    counter = DailyCounter()
    counter.add(video, time, label.astype(float))
    daily = counter.finish()
    expected = {}
    for v, t, positive in rows:
        events, labels = expected.get((v, t // SECONDS_PER_DAY), (0, 0))
        expected[v, t // SECONDS_PER_DAY] = events + 1, labels + positive
    keys = [(int(key) // STRIDE, int(key) % STRIDE) for key in daily.key]
    assert keys == sorted(expected)
    assert np.diff(daily.events).tolist() == [expected[key][0] for key in keys]
    assert np.diff(daily.labels).tolist() == [expected[key][1] for key in keys]
    at = daily.position(video, time)
    assert [keys[i] for i in at] == [(v, t // SECONDS_PER_DAY) for v, t, _ in rows]


def test_smoothed_rate() -> None:
    got = smoothed_rate(np.array([0.0, 5.0, 90.0]), np.array([0.0, 10.0, 90.0]), 0.2)
    assert got.dtype == np.float32
    assert got.tolist() == pytest.approx([0.2, 7 / 20, 92 / 100])


def test_by_order_the_same_second_counts_as_earlier() -> None:
    """Leave-last-out goes by the order of the log; other users' events never count."""
    user, time = np.array([1, 1, 1, 2, 2]), np.array([5, 5, 7, 7, 7])
    strict, ordered = positions(user, time), positions(user, time, by_order=True)
    assert strict.known_until.tolist() == [0, 0, 2, 3, 3]
    assert ordered.known_until.tolist() == [0, 1, 2, 3, 4]
    assert strict.user_first.tolist() == ordered.user_first.tolist() == [0, 0, 0, 3, 3]
