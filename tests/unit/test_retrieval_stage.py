"""The exported retrieval stage against brute force: what was watched never comes back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from triton_repo.export import TEMPLATES

NUM_VIDEOS, DIM, NUM_CANDIDATES = 300, 8, 20
RNG = np.random.default_rng(0)
VIDEOS = RNG.normal(size=(NUM_VIDEOS, DIM)).astype(np.float32)
QUERIES = RNG.normal(size=(6, DIM)).astype(np.float32)
ORDER = np.argsort(-(QUERIES @ VIDEOS.T), axis=1) + 1  # rows of the best videos
# By user row: nothing, few, and more of the best ones than are fetched at first, even all of them.
WATCHED = [
    np.zeros(0, np.int32), ORDER[1, [0, 3]], ORDER[2, :90], ORDER[3, ::2], ORDER[4, :295],
    ORDER[5, 100:250],
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    index = faiss.IndexFlatIP(DIM)
    index.add(VIDEOS)
    faiss.write_index(index, str(folder / "index.faiss"))
    np.save(folder / "watched_row.npy", np.concatenate(WATCHED).astype(np.int32))
    start = np.cumsum([0, *map(len, WATCHED)]).astype(np.int64)
    np.save(folder / "watched_start.npy", start)
    return folder


def stage(folder: Path, exclude_watched: bool = True) -> Any:
    settings = {"num_candidates": NUM_CANDIDATES, "kind": "flat", "effort": 0}
    settings |= {"exclude_watched": exclude_watched, "num_videos": len(VIDEOS)}
    (folder / "stage.json").write_text(json.dumps(settings))
    file = TEMPLATES / "retrieval" / "stage.py"
    spec = importlib.util.spec_from_file_location("retrieval_stage", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Stage(folder)


def asked(folder: Path, users: list[int], online: dict[int, Any] | None = None) -> dict[str, Any]:
    start = np.load(folder / "watched_start.npy")
    rows = np.zeros((len(users), 200), np.int32)
    for at, user in enumerate(users):
        mine = (online or {}).get(user, [])
        rows[at, : len(mine)] = mine
    return {
        "query_vector": QUERIES[users],
        "user_row": np.array(users, np.int32)[:, None],
        "watched_until": start[np.array(users) + 1][:, None],
        "online_row": rows,
    }


def expected(user: int, left_out: Any) -> Any:
    rows = ORDER[user][~np.isin(ORDER[user], left_out)][:NUM_CANDIDATES]
    return np.pad(rows, (0, NUM_CANDIDATES - len(rows)))


@pytest.mark.parametrize("users", [[0], [2], [4], [0, 1, 2, 3, 4, 5], [5, 4, 0]])
def test_the_best_that_was_not_watched(folder: Path, users: list[int]) -> None:
    answer = stage(folder).run(asked(folder, users))
    for at, user in enumerate(users):
        want = expected(user, WATCHED[user])
        np.testing.assert_array_equal(answer["candidate_row"][at], want)
        scores = np.where(want > 0, VIDEOS[want - 1] @ QUERIES[user], -np.inf)
        np.testing.assert_allclose(answer["candidate_score"][at], scores, rtol=1e-5)


def test_what_was_watched_online_counts_too(folder: Path) -> None:
    online = {1: ORDER[1, 10:120], 2: ORDER[2, 90:140]}
    answer = stage(folder).run(asked(folder, [0, 1, 2], online))
    for user in range(3):
        want = expected(user, np.r_[WATCHED[user], online.get(user, [])])
        np.testing.assert_array_equal(answer["candidate_row"][user], want)


def test_watched_videos_may_be_kept(folder: Path) -> None:
    answer = stage(folder, exclude_watched=False).run(asked(folder, [2, 4]))
    np.testing.assert_array_equal(answer["candidate_row"], ORDER[[2, 4], :NUM_CANDIDATES])
