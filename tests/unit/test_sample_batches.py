"""Batches of samples: every epoch meets all parts of the log and, in time, all users."""

from __future__ import annotations

from pathlib import Path

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest

from models.inputs import SampleBatches

PARTS = {"train": 96, "valid": 48}
FILES, USERS = 4, 10  # per file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two parts of the log in FILES files each; a file of both has the same users."""
    paths = []
    for part, size in PARTS.items():
        (tmp_path / part).mkdir()
        for number in range(FILES):
            users = np.arange(number * USERS + 1, (number + 1) * USERS + 1)
            frame = pd.DataFrame({"user_row": np.repeat(users, size)}).astype(np.int32)
            frame["is_valid"] = np.int8(part == "valid")
            frame["watched"] = np.tile(np.array([1, 1, 0], np.int8), len(frame) // 3)
            paths.append(tmp_path / part / f"part-{number:05d}.parquet")
            frame.to_parquet(paths[-1], index=False)
    return paths


def test_every_row_once(files: list[Path]) -> None:
    batches = SampleBatches(files, ["user_row", "is_valid"], 128, watched_only=True)
    seen = [(b["user_row"].numpy(), b["is_valid"].numpy()) for b in batches]
    users, is_valid = (np.concatenate(values) for values in zip(*seen, strict=True))
    counts = np.bincount(users, minlength=FILES * USERS + 1)
    assert (counts[1:] == sum(PARTS.values()) * 2 // 3).all()
    assert is_valid.mean() == pytest.approx(1 / 3)
    assert len(batches) == len(seen)


def test_short_epochs_meet_both_parts_and_in_time_all_users(files: list[Path]) -> None:
    np.random.seed(7)
    batches = SampleBatches(files, ["user_row", "is_valid"], 64, shuffle=True, max_rows=640)
    met: set[int] = set()
    for _ in range(20):
        epoch = list(batches)
        assert len(epoch) == len(batches) == 10
        shares = [float(batch["is_valid"].numpy().mean()) for batch in epoch]
        assert min(shares) > 0 and max(shares) < 1
        met |= set(np.concatenate([batch["user_row"].numpy() for batch in epoch]).tolist())
    assert met == set(range(1, FILES * USERS + 1))
