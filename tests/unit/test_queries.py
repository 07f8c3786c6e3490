"""Evaluation queries against plain loops: what is relevant, what is left out, who drops out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.queries import Queries, held_out_queries
from workflow.features.encoded import FeatureStore, save_array
from workflow.run import Run


def store_of(
    folder: Path, past: dict[int, list[int]], held_out: list[tuple[int, int, int, int]]
) -> FeatureStore:
    """`past`: watches by user before the test part; `held_out`: (user, time, video, watched)."""
    run = Run(folder)
    rows = sorted(held_out)
    histories: list[int] = []
    start, before = [0], {}
    for user in range(1 + max(past)):
        before[user] = len(histories) + len(past.get(user, []))
        histories += past.get(user, []) + [v for u, _, v, w in rows if u == user and w]
        start.append(len(histories))
    for name, values in {
        "video_row": np.array(histories, np.int32), "start": np.array(start, np.int64),
        "time": np.arange(len(histories)), "session_start": np.zeros(len(histories), np.int64),
    }.items():  # fmt: skip
        save_array(run.features / "history" / f"{name}.npy", values)
    frame = pd.DataFrame(rows, columns=["user_row", "timestamp", "video_row", "watched"])
    earlier = frame.groupby("user_row")["watched"].cumsum() - frame["watched"]
    frame["history_end"] = frame["user_row"].map(before) + earlier
    frame["device"] = np.arange(len(frame)) + 100
    for part, chosen in (("a", frame["user_row"] < 3), ("b", frame["user_row"] >= 3)):
        (run.features / "test").mkdir(exist_ok=True)
        frame[chosen].to_parquet(run.features / "test" / f"part-{part}.parquet")
    return FeatureStore(run)


def as_lists(queries: Queries, lists: Any) -> list[list[int]]:
    return [sorted(lists[i].tolist()) for i in range(len(queries))]


def test_by_hand(tmp_path: Path) -> None:
    past = {1: [5, 6], 2: [7], 3: [], 4: [8, 9], 5: [1]}
    held_out = [
        (1, 10, 6, 1), (1, 11, 3, 1), (1, 12, 3, 1), (1, 13, 4, 0),  # 6 is a repeat, 4 not watched
        (2, 10, 7, 1), (2, 11, 7, 1),  # only repeats: drops out
        (3, 10, 2, 0), (3, 11, 9, 1), (3, 12, 2, 1),  # nothing watched before
        (4, 10, 1, 0),  # watched nothing: drops out
        (5, 10, 8, 1),
    ]  # fmt: skip
    queries = held_out_queries(store_of(tmp_path, past, held_out), "test", ["user_row", "device"])
    assert queries.samples["user_row"].tolist() == [1, 3, 5]
    assert queries.samples["device"].tolist() == [100, 107, 110]  # each one's first watch
    assert as_lists(queries, queries.relevant) == [[3], [2, 9], [8]]
    assert as_lists(queries, queries.excluded) == [[5, 6], [], [1]]
    assert queries.has_history.tolist() == [True, False, True]
    part = queries.take(np.array([2, 0]))
    assert part.samples["user_row"].tolist() == [5, 1]
    assert as_lists(part, part.relevant) == [[8], [3]]
    assert as_lists(part, part.excluded) == [[1], [5, 6]]
    assert len(queries.take(np.array([], np.int64))) == 0


@pytest.mark.parametrize("seed", range(5))
def test_against_loops(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    past = {u: rng.integers(1, 9, rng.integers(0, 6)).tolist() for u in range(1, 7)}
    held_out = [
        (int(u), int(t), int(v), int(w))
        for u, t, v, w in zip(
            rng.integers(1, 7, 30), rng.permutation(30), rng.integers(1, 9, 30),
            rng.integers(0, 2, 30), strict=True,
        )
    ]  # fmt: skip
    queries = held_out_queries(store_of(tmp_path, past, held_out), "test", ["user_row"])
    expected = {}
    for user, seen in past.items():
        later = {v for u, _, v, w in held_out if u == user and w} - set(seen)
        if later:
            expected[user] = (sorted(later), sorted(seen))
    assert queries.samples["user_row"].tolist() == sorted(expected)
    assert as_lists(queries, queries.relevant) == [expected[u][0] for u in sorted(expected)]
    assert as_lists(queries, queries.excluded) == [expected[u][1] for u in sorted(expected)]


def test_a_part_without_samples(tmp_path: Path) -> None:
    store = store_of(tmp_path, {1: [1]}, [(1, 5, 2, 1)])
    assert len(held_out_queries(store, "valid", ["user_row"])) == 0
