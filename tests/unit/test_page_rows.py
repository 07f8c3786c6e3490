"""The row of a video whose groups take turns, on planted candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.pages import load

by_turns = load("rows").by_turns


def of(text: str) -> np.ndarray:
    return np.array([one == "x" for one in text])


@pytest.mark.parametrize(
    ("near", "free", "groups", "expected"),
    [
        ("xxxx", "xxxx", [], [0, 1, 2]),  # a video of no group: its neighbours
        ("xxxx", ".xxx", ["xxxx"], [1, 2, 3]),
        ("xxx...", "xxxxxx", ["xxx...", "...xxx"], [0, 3, 1]),  # others where no neighbour is
        ("xxx..x", "xxxxxx", ["xxx...", "...xxx"], [0, 5, 1]),  # neighbours before others
        ("xxx..", "xxxxx", ["xxxxx", "x.xx."], [0, 1, 2]),  # of both groups: counts for both
        ("xx...", "xxxxx", ["xx...", "....."], [0, 1]),  # a group without candidates
        ("xxx..", "xxxxx", [".....", "...x."], [3, 0, 1]),  # then neighbours of no group
        ("...", "xxx", ["...", "..."], []),
        ("xxx", "...", ["xxx"], []),
    ],
)
def test_groups_take_turns(near: str, free: str, groups: list[str], expected: list[int]) -> None:
    member = np.array([of(one) for one in groups], bool).reshape(len(groups), len(near))
    assert by_turns(of(near), of(free), member, 3).tolist() == expected


@given(arrays.arrays(bool, (5, 30), elements=st.booleans()), st.integers(1, 20))
def test_what_is_shown_is_free_and_shown_once(drawn: np.ndarray, columns: int) -> None:
    near, free, groups = drawn[0], drawn[1], drawn[2:]
    row = by_turns(near, free, groups, columns).tolist()
    fit = free & (near | groups.any(axis=0))
    assert len(set(row)) == len(row) == min(columns, fit.sum()) and fit[row].all()
