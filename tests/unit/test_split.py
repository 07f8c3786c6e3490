"""The two split protocols against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.config import SplitConfig
from workflow.errors import DataError
from workflow.features.split import (
    TEST,
    TRAIN,
    UNUSED,
    VALID,
    distinct,
    leave_last_out,
    temporal_cuts,
    temporal_split,
)


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.1), (0.2, 0.05), (0.05, 0.3)])
def test_temporal_shares(valid: float, test: float) -> None:
    times = np.random.default_rng(0).permutation(10_000).astype(np.int64)
    cuts = temporal_cuts(
        lambda: np.array_split(times, 3), SplitConfig(valid_fraction=valid, test_fraction=test)
    )
    part = temporal_split(times, *cuts)
    assert np.mean(part == VALID) == pytest.approx(valid, abs=1e-3)
    assert np.mean(part == TEST) == pytest.approx(test, abs=1e-3)
    assert times[part == TRAIN].max() < times[part == VALID].min()
    assert times[part == VALID].max() < times[part == TEST].min()


def divisible(times: list[int], valid: float, test: float) -> bool:
    """Whether each part gets a second of its own when the shares are rounded up to whole ones."""
    ordered = sorted(times)

    def at(share: float) -> int:
        return ordered[math.ceil(round(share * (len(ordered) - 1), 9))]

    return at(1 - test - valid) < at(1 - test) < ordered[-1]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
def test_temporal_parts_never_share_a_second(values: list[int]) -> None:
    times = np.array(values, np.int64)
    try:
        valid_from, test_from = temporal_cuts(lambda: np.array_split(times, 3), SplitConfig())
    except DataError:
        assert not divisible(values, 0.1, 0.1)
        return
    assert divisible(values, 0.1, 0.1)
    part = temporal_split(times, valid_from, test_from)
    expected = [TRAIN if t < valid_from else VALID if t < test_from else TEST for t in values]
    assert part.tolist() == expected
    assert {TRAIN, VALID, TEST} == set(expected)  # none is empty


@pytest.mark.parametrize("times", [[5, 5, 5, 5], [1, 2], [7]])
def test_times_that_cannot_be_divided(times: list[int]) -> None:
    with pytest.raises(DataError, match=r"Expected: timestamps spread .* Next: check the time"):
        temporal_cuts(lambda: [np.array(times, np.int64)], SplitConfig())


def by_hand(rows: list[tuple[int, bool]]) -> list[int]:
    part = [TRAIN] * len(rows)
    for user in {user for user, _ in rows}:
        mine = [i for i, (u, _) in enumerate(rows) if u == user]
        watches = [i for i in mine if rows[i][1]]
        if len(watches) < 3:
            continue
        for i in mine:
            if i > watches[-2]:
                part[i] = UNUSED
        part[watches[-2]], part[watches[-1]] = VALID, TEST
    return part


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=50))
def test_leave_last_out(rows: list[tuple[int, bool]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    user = np.array([u for u, _ in rows], np.int64)
    watched = np.array([w for _, w in rows], bool)
    assert leave_last_out(user, watched).tolist() == by_hand(rows)


def test_leave_last_out_example() -> None:
    user = np.array([1, 1, 1, 1, 1, 1, 2, 2])
    watched = np.array([1, 0, 1, 0, 1, 0, 1, 1], bool)
    expected = [TRAIN, TRAIN, VALID, UNUSED, TEST, UNUSED, TRAIN, TRAIN]
    assert leave_last_out(user, watched).tolist() == expected


@given(
    st.lists(st.integers(20_000, 20_060), max_size=99) | st.lists(st.integers(0, 2**40), max_size=9)
)
def test_distinct_values(values: list[int]) -> None:
    found, counts = distinct(np.array(values, np.int64))
    assert found.tolist() == sorted(set(values))
    assert counts.tolist() == [values.count(value) for value in found]
