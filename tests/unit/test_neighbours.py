"""Neighbours of videos, on planted groups."""

from __future__ import annotations

import numpy as np
import pytest

from models import neighbours as module
from models.co_watch import CoWatch, co_watch_vectors
from models.neighbours import neighbours, unit_rows
from models.watches import Watches

GROUPS, PER_GROUP = 5, 12
NUM_VIDEOS = GROUPS * PER_GROUP
COLD = NUM_VIDEOS  # the last video has no watch


def group(row: int) -> int:
    return (row - 1) // PER_GROUP


def made(exact: bool = True) -> np.ndarray:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(1, 201), 8)
    video = (user % GROUPS) * PER_GROUP + rng.integers(1, PER_GROUP + 1, len(user))
    keep = video != COLD
    watches = Watches(user[keep], video[keep], np.arange(keep.sum()), 200, NUM_VIDEOS)
    learned = rng.normal(size=(NUM_VIDEOS + 1, 8)) * 0.3
    for row in range(1, NUM_VIDEOS + 1):
        learned[row, group(row)] += 2
    none = np.zeros((NUM_VIDEOS + 1, 1), np.int16)
    return neighbours(
        learned.astype(np.float32), co_watch_vectors(watches, 6), watches.counts, none,
        PER_GROUP - 1,
    )  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_are_of_the_same_group(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(module, "EXACT_UP_TO", 10)
    found = made()
    for row in (1, 20, COLD):
        members = set(range(group(row) * PER_GROUP + 1, (group(row) + 1) * PER_GROUP + 1))
        assert len(set(found[row]) & (members - {row})) >= PER_GROUP - 2
    assert found.dtype == np.int32 and not found[0].any()
    assert all(row not in found[row] for row in range(1, NUM_VIDEOS + 1))
    assert all(len(set(one)) == len(one) for one in found[1:].tolist())


def test_more_than_there_are_is_padded() -> None:
    zeros = np.zeros((4, 2), np.float32)
    learned = unit_rows(np.array([[0, 0], [1, 0], [1, 0.1], [0, 1]], np.float32))
    watches = Watches(np.array([1, 1]), np.array([1, 2]), np.array([1, 2]), 1, 3)
    co_watch = CoWatch(zeros, zeros)
    none = np.zeros((4, 1), np.int16)
    found = neighbours(learned, co_watch, watches.counts, none, 5)
    assert found.tolist() == [[0] * 5, [2, 3, 0, 0, 0], [1, 3, 0, 0, 0], [2, 1, 0, 0, 0]]


def test_groups_in_common_make_neighbours() -> None:
    rng = np.random.default_rng(0)
    learned = rng.normal(size=(41, 8)).astype(np.float32)
    watches = Watches(np.array([1, 1]), np.array([1, 2]), np.array([1, 2]), 1, 40)
    zeros = np.zeros((41, 1), np.float32)
    groups = np.zeros((41, 2), np.int16)
    groups[1:, 0] = np.arange(40) % 4  # 0: of no group
    groups[1::8, 1] = 5
    found = neighbours(learned, CoWatch(zeros, zeros), watches.counts, groups, 5)
    same = [np.mean(groups[found[row], 0] == groups[row, 0]) for row in range(1, 41)]
    assert np.mean([one for row, one in enumerate(same, 1) if groups[row, 0]]) > 0.6
