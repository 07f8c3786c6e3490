"""Evaluation queries against plain loops: what is relevant, what is left out, who drops out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.queries import Queries, held_out_queries, rolling_queries
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


# --- rolling -------------------------------------------------------------------------------------
def rolling(store: FeatureStore, **options: int) -> Queries:
    options = {"per_user": 100, "max_queries": 10_000, "seed": 1} | options
    return rolling_queries(store, ["user_row", "timestamp"], **options)


def asked(queries: Queries) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """(user, time) -> (relevant, excluded)."""
    keys = zip(queries.samples["user_row"], queries.samples["timestamp"], strict=True)
    return {
        (int(user), int(time)): (sorted(queries.relevant[at]), list(queries.excluded[at]))
        for at, (user, time) in enumerate(keys)
    }


def test_rolling_by_hand(tmp_path: Path) -> None:
    past = {1: [5, 6], 2: [], 3: [7]}
    held_out = [
        (1, 10, 6, 1), (1, 11, 3, 1), (1, 12, 3, 1), (1, 13, 4, 0), (1, 14, 8, 1),  # 6, 3 repeats
        (2, 10, 9, 1), (2, 20, 2, 1),
        (3, 30, 7, 1),  # only a repeat: no request
    ]  # fmt: skip
    queries = rolling(store_of(tmp_path, past, held_out))
    assert asked(queries) == {
        (1, 11): ([3], [5, 6, 6]),
        (1, 14): ([8], [5, 6, 6, 3, 3]),
        (2, 10): ([9], []),
        (2, 20): ([2], [9]),
    }
    assert queries.user_row.tolist() == [1, 1, 2, 2]
    assert queries.has_history.tolist() == [True, True, False, True]


def test_watches_of_one_second_are_one_request(tmp_path: Path) -> None:
    store = store_of(tmp_path, {1: [5]}, [(1, 10, 3, 1), (1, 10, 4, 1), (1, 11, 6, 1)])
    for path in store.samples("test"):  # what samples say of two watches in one second
        frame = pd.read_parquet(path)
        frame["history_end"] = frame.groupby(["user_row", "timestamp"])["history_end"].transform(
            "min"
        )
        frame.to_parquet(path)
    assert asked(rolling(store)) == {(1, 10): ([3, 4], [5]), (1, 11): ([6], [5, 3, 4])}


@pytest.mark.parametrize("seed", range(5))
def test_the_future_does_not_change_a_request(tmp_path: Path, seed: int) -> None:
    """Whatever is watched later, requests before it stay the same."""
    rng = np.random.default_rng(seed)
    past = {user: rng.integers(1, 30, 4).tolist() for user in range(1, 7)}
    watches = [
        (user, int(time), int(rng.integers(1, 30)), 1)
        for user in past
        for time in rng.permutation(50)[:8]
    ]
    until = [watch for watch in watches if watch[1] <= 25]
    planted = [(user, 26, video, 1) for user in past for video in (31, 32)]
    before = asked(rolling(store_of(tmp_path / "before", past, until)))
    after = asked(rolling(store_of(tmp_path / "after", past, watches)))
    with_planted = asked(rolling(store_of(tmp_path / "planted", past, until + planted)))
    assert before
    for changed in (after, with_planted):
        assert len(changed) > len(before)
        assert {key: value for key, value in changed.items() if key[1] <= 25} == before
        assert not {31, 32} & {
            v for key, (_, seen) in changed.items() if key[1] <= 25 for v in seen
        }


def test_requests_per_user_are_capped_the_same_way_each_time(tmp_path: Path) -> None:
    held_out = [(user, time, time, 1) for user in (1, 2, 3) for time in range(1, 21)]
    store = store_of(tmp_path, {1: [], 2: [40], 3: [41, 42]}, held_out)
    everything = asked(rolling(store))
    assert len(everything) == 60
    capped = rolling(store, per_user=4)
    assert np.bincount(capped.user_row).tolist() == [0, 4, 4, 4]
    assert asked(capped) == asked(rolling(store, per_user=4))
    assert asked(capped).items() <= everything.items()
    assert asked(capped) != asked(rolling(store, per_user=4, seed=2))
    fewer = rolling(store, per_user=4, max_queries=6)
    assert np.bincount(fewer.user_row).tolist() == [0, 2, 2, 2]
    assert len(rolling(store, per_user=4, max_queries=2)) == 2


def test_ties_between_parts_are_left_out(tmp_path: Path) -> None:
    """A training watch in the same second as the held-out one is not to be found again."""
    store = store_of(tmp_path, {1: [5, 6, 7]}, [(1, 10, 3, 1)])
    (path,) = [p for p in store.samples("test") if len(pd.read_parquet(p))]
    frame = pd.read_parquet(path)
    frame["history_end"] -= 2  # 6 and 7 were watched in that second
    frame.to_parquet(path)
    queries = held_out_queries(store, "test", ["history_end"])
    assert as_lists(queries, queries.excluded) == [[5, 6, 7]]
    assert as_lists(queries, queries.relevant) == [[3]]


def test_sample(tmp_path: Path) -> None:
    store = store_of(tmp_path, {u: [40] for u in range(1, 9)}, [(u, 5, u, 1) for u in range(1, 9)])
    queries = held_out_queries(store, "test", [])
    assert queries.sample(8, 0) is queries
    some = queries.sample(3, 0)
    assert len(some) == 3 and sorted(some.user_row) == some.user_row.tolist()
    assert as_lists(some, some.relevant) == [[user] for user in some.user_row]
