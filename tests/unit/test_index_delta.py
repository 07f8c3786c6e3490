"""Indexes with videos added and withdrawn: what leaves is never found, what enters is."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np
import pytest

from models.index import choose
from models.index_delta import Change, changed_index, measured, stored
from models.index_kinds import ivf_of
from models.index_tuning import EFFORTS, Sample, Tuned
from triton_repo.export import TEMPLATES
from workflow.config import IndexConfig

KINDS = ("flat", "ivf", "ivf_fp16", "hnsw")
NUM_OLD, NUM_NEW, DIM, K = 3_000, 200, 16, 40
NOTHING = np.zeros(0, np.int64)
TARGET = IndexConfig(target_recall=0.95)


def planted() -> tuple[Any, Any]:
    """(videos, queries) around 40 centres; the new videos come last."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, DIM))
    videos = centres[rng.integers(0, 40, NUM_OLD + NUM_NEW)]
    videos = videos + 0.6 * rng.normal(size=videos.shape)
    queries = centres[rng.integers(0, 40, 200)] + 0.6 * rng.normal(size=(200, DIM))
    return videos.astype(np.float32), queries.astype(np.float32)


VIDEOS, QUERIES = planted()
KNOWN, ASKED = QUERIES[:100], QUERIES[100:]
NEW = np.arange(NUM_OLD, NUM_OLD + NUM_NEW)
BEST = np.argsort(-(ASKED @ VIDEOS.T), axis=1, kind="stable")
LEAVING = np.unique(BEST[::4, :3][BEST[::4, :3] < NUM_OLD])  # what somebody would get first
AFTER = np.isin(np.arange(NUM_OLD + NUM_NEW), LEAVING)
CHANGE = Change(VIDEOS, AFTER, NEW, LEAVING)


@pytest.fixture(scope="module")
def built() -> dict[str, tuple[bytes, Tuned]]:
    """The index before the change, as its file would hold it."""
    exact = np.argsort(-(ASKED @ VIDEOS[:NUM_OLD].T), axis=1, kind="stable")[:, :K]
    sample, made = Sample(KNOWN, ASKED, exact, 1e9), {}
    for kind in KINDS:
        config = TARGET.model_copy(update={"kind": kind})
        index, tuned, _ = choose(VIDEOS[:NUM_OLD], sample, config)
        made[kind] = (faiss.serialize_index(index), tuned)
    return made


def change(made: Any, kind: str, one: Change = CHANGE) -> tuple[Any, Tuned, float]:
    """(changed index, how it is searched, recall with the old effort)."""
    content, tuned = made[kind]
    index = changed_index(faiss.deserialize_index(content), kind, one, KNOWN)
    return index, *measured(index, tuned, one, (KNOWN, ASKED), K, TARGET)


def recall(found: Any, gone: Any = AFTER) -> float:
    """By brute force, written down once more."""
    scores = np.where(gone, -np.inf, ASKED @ VIDEOS.T)
    best = np.argsort(-scores, axis=1)[:, :K]
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), best.tolist(), strict=True)]
    return sum(shared) / best.size


@pytest.mark.parametrize("kind", KINDS)
def test_what_leaves_is_not_found_and_what_enters_is(built: Any, kind: str) -> None:
    before = faiss.deserialize_index(built[kind][0])
    assert np.isin(before.search(ASKED, K)[1], LEAVING).any()  # otherwise it proves nothing
    index, tuned, _ = change(built, kind)
    found = index.search(ASKED, K)[1]
    assert not np.isin(found, LEAVING).any()
    assert np.isin(found, NEW).sum() > K
    assert recall(found) == pytest.approx(tuned.recall_vs_exact, abs=1e-4) and recall(found) >= 0.95
    # A new video is found by its own vector, at its own place.
    own = index.search(VIDEOS[NEW] * 10, 1)[1][:, 0]
    exact = np.argmax(np.where(AFTER, -np.inf, VIDEOS[NEW] @ VIDEOS.T), axis=1)
    assert (own == exact).mean() > 0.9 and np.isin(own, NEW).sum() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_left_is_found_when_all_is_asked_for(built: Any, kind: str) -> None:
    index, _, _ = change(built, kind)
    if kind.startswith("ivf"):
        inner = ivf_of(index)
        inner.nprobe = inner.nlist
    if kind == "hnsw":
        index.hnsw.efSearch = 2 * len(VIDEOS)
    found = index.search(ASKED[:3], len(VIDEOS))[1]
    left = np.flatnonzero(~AFTER)
    for row in found:
        got = row[row >= 0]
        assert len(np.unique(got)) == len(got) and not np.isin(got, LEAVING).any()
        assert kind == "hnsw" or np.array_equal(np.sort(got), left)
        assert len(got) > 0.97 * len(left)  # a graph may not reach everything


@pytest.mark.parametrize("kind", KINDS)
def test_changes_compose(built: Any, kind: str) -> None:
    """Half of what left returns, some of what had just entered leaves; from the written file."""
    index, tuned, _ = change(built, kind)
    content = faiss.serialize_index(stored(index))
    back, out = LEAVING[::2], NEW[:50]
    gone = AFTER.copy()
    gone[back], gone[out] = False, True
    again, _, _ = change({kind: (content, tuned)}, kind, Change(VIDEOS, gone, back, out))
    found = again.search(ASKED, K)[1]
    assert np.isin(found, back).any() and not found[np.isin(found, np.flatnonzero(gone))].any()
    assert recall(found, gone) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_new_only_withdrawn(built: Any, kind: str) -> None:
    one = Change(VIDEOS[:NUM_OLD], AFTER[:NUM_OLD], NOTHING, LEAVING)
    index, tuned, _ = change(built, kind, one)
    found = index.search(ASKED, K)[1]
    assert not np.isin(found, LEAVING).any() and found.max() < NUM_OLD
    assert tuned.recall_vs_exact >= 0.95


def test_effort_rises_where_recall_fell(built: Any) -> None:
    """An effort of one list is far from enough; the smallest that reaches the target is taken."""
    content, tuned = built["ivf"]
    index, after, before = change({"ivf": (content, replace(tuned, effort=1))}, "ivf")
    assert before < 0.95 <= after.recall_vs_exact and after.effort > 1
    lower = [effort for effort in EFFORTS if effort < after.effort]
    if lower:
        ivf_of(index).nprobe = lower[-1]
        assert recall(index.search(ASKED, K)[1]) < 0.95


def test_effort_stays_where_recall_holds(built: Any) -> None:
    _, after, before = change(built, "ivf")
    assert after.effort == built["ivf"][1].effort and after.recall_vs_exact == round(before, 5)


def test_a_catalogue_smaller_than_the_list_that_is_asked_for(built: Any) -> None:
    gone = np.ones(NUM_OLD, bool)
    gone[:7] = False
    one = Change(VIDEOS[:NUM_OLD], gone, NOTHING, np.flatnonzero(gone))
    for kind in ("flat", "ivf", "ivf_fp16"):
        index, tuned, _ = change(built, kind, one)
        if kind != "flat":
            ivf_of(index).nprobe = ivf_of(index).nlist
        found = index.search(ASKED[:2], K)[1]
        assert [set(row[row >= 0]) for row in found] == [set(range(7))] * 2
        assert 0 < tuned.recall_vs_exact <= 1


# --- as it is served ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_the_served_stage_never_returns_what_was_withdrawn(
    built: Any, kind: str, tmp_path: Path
) -> None:
    index, tuned, _ = change(built, kind)
    faiss.write_index(stored(index), str(tmp_path / "index.faiss"))
    settings = {"num_candidates": K, "kind": kind, "effort": tuned.effort, "exclude_watched": True}
    (tmp_path / "stage.json").write_text(json.dumps(settings | {"num_videos": len(VIDEOS)}))
    watched = (BEST[0, :5] + 1).astype(np.int32)
    np.save(tmp_path / "watched_row.npy", watched)
    np.save(tmp_path / "watched_start.npy", np.array([0, 0, 5]))
    if kind == "hnsw":
        np.save(tmp_path / "withdrawn.npy", LEAVING)
    stage = load_stage(tmp_path)
    inputs = {
        "query_vector": ASKED,
        "user_row": np.ones((len(ASKED), 1), np.int32),
        "watched_until": np.full((len(ASKED), 1), 5),
        "online_row": np.full((len(ASKED), 1), NEW[0] + 1, np.int32),
    }
    assert stage.check(inputs, [len(ASKED)]) == {}
    rows = stage.run(inputs)["candidate_row"]
    assert (rows > 0).all() and not np.isin(rows - 1, LEAVING).any()
    assert not np.isin(rows, [*watched, NEW[0] + 1]).any()
    assert np.isin(rows - 1, NEW).any()
    inputs["online_row"][:] = len(VIDEOS) + 1
    assert "outside" in stage.check(inputs, [len(ASKED)])[0]


def load_stage(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("delta", TEMPLATES / "retrieval" / "stage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Stage(folder)
