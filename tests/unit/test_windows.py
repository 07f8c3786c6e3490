"""Windows cover every event exactly once and never mix users; parts of the log are mixed."""

from __future__ import annotations

from pathlib import Path

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest

from models.windows import WINDOW, WindowBatches


def write(folder: Path, sizes: list[list[int]]) -> list[Path]:
    """One file per list; user u has as many rows as its number says."""
    paths, number, user = [], 0, 0
    for part, users in enumerate(sizes):
        rows = []
        for size in users:
            user += 1
            rows += [(user, number + i) for i in range(size)]
            number += size
        path = folder / f"part-{part}.parquet"
        frame = pd.DataFrame(rows, columns=["user_row", "number"]).astype(np.int32)
        frame.to_parquet(path, index=False)
        paths.append(path)
    return paths


SIZES = [[1, WINDOW, WINDOW + 1, 3], [], [5 * WINDOW - 2, 2]]


@pytest.mark.parametrize("seed", [None, 1])
def test_every_event_once(tmp_path: Path, seed: int | None) -> None:
    files = write(tmp_path, SIZES)
    total = sum(map(sum, SIZES))
    batches = WindowBatches(files, ["user_row", "number"], 4 * WINDOW, seed=seed)
    for _ in range(3):
        seen = []
        for batch in batches:
            present = batch["present"].numpy()
            assert present.shape[1] == WINDOW and present.shape[0] <= 4
            assert present[:, 0].all()
            user, number = batch["user_row"].numpy(), batch["number"].numpy()
            assert (user == user[:, :1]).all()
            steps = np.diff(number, axis=1)
            assert (steps[present[:, 1:]] == 1).all()
            seen += number[present].tolist()
        assert sorted(seen) == list(range(total))
        if seed is None:
            assert seen == sorted(seen)


def test_epochs_differ_and_seeds_repeat(tmp_path: Path) -> None:
    files = write(tmp_path, SIZES)

    def epochs(seed: int) -> list[list[int]]:
        batches = WindowBatches(files, ["user_row", "number"], 2 * WINDOW, seed=seed)
        return [[int(b["number"][0, 0]) for b in batches] for _ in range(2)]

    first, again, other = epochs(1), epochs(1), epochs(2)
    assert first == again != other and first[0] != first[1]


def test_length_is_that_of_the_plain_order(tmp_path: Path) -> None:
    batches = WindowBatches(write(tmp_path, SIZES), ["user_row", "number"], 4 * WINDOW)
    assert len(batches) == len(list(batches))


def test_parts_are_mixed(tmp_path: Path) -> None:
    """Validation events follow their users' training events, and come from first to last batch."""
    users = np.arange(1, 41, dtype=np.int32)
    files = []
    for part, (size, first) in {"train": (96, 0), "valid": (48, 96)}.items():
        frame = pd.DataFrame({"user_row": np.repeat(users, size)}).astype(np.int32)
        frame["number"] = np.tile(np.arange(first, first + size, dtype=np.int32), len(users))
        (tmp_path / part).mkdir()
        files.append(tmp_path / part / "part-00000.parquet")
        frame.to_parquet(files[-1], index=False)
    batches = WindowBatches(files, ["user_row", "number"], 8 * WINDOW, seed=1)
    seen, shares = [], []
    for batch in batches:
        present, number = batch["present"].numpy(), batch["number"].numpy()
        assert (np.diff(number, axis=1)[present[:, 1:]] == 1).all()
        pairs = zip(batch["user_row"].numpy()[present], number[present], strict=True)
        seen += [(int(user), int(one)) for user, one in pairs]
        shares.append(float((number[present] >= 96).mean()))
    assert sorted(seen) == [(user, one) for user in users.tolist() for one in range(144)]
    assert min(shares[:-1]) > 0 and max(shares[:-1]) < 1
