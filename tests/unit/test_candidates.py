"""Candidate lists of past requests: what is in them, what counts as watched, what is drawn."""

from __future__ import annotations

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest

from models.candidates import CandidateLists, Retrieval, past_lists, sampled
from models.inputs import FeatureTables
from models.retriever import train_retriever
from tests.fixtures import make_config, make_contract, make_tables, write_run
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec

NUM_VIDEOS = 60
CONFIG = make_config(
    retriever={"max_epochs": 1, "batch_size": 256},
    ranker={"list_horizon": 4, "list_retrieved": 5, "list_uniform": 3, "label_gain": 0.5},
    serving={"num_candidates": 20},
)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    contract = make_contract(graded=True)
    tables = make_tables(num_users=12, num_videos=NUM_VIDEOS, num_events=700)
    run = write_run(tmp_path_factory.mktemp("lists") / "run", contract, tables)
    build_features(run, CONFIG, contract)
    train_retriever(run, CONFIG)
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    return Retrieval(run, CONFIG, store, FeatureTables(store, spec), "search")


def watches(retrieval: Retrieval, part: str) -> pd.DataFrame:
    frames = [pd.read_parquet(path) for path in retrieval.store.samples(part)]
    return pd.concat(frames, ignore_index=True)


def check_lists(retrieval: Retrieval, lists: CandidateLists) -> None:
    """Best first, nothing twice, nothing that had been watched."""
    histories = retrieval.store.histories()
    for at in range(len(lists)):
        rows, scores = lists.rows[at], lists.scores[at]
        found = rows[rows > 0]
        assert len(set(found)) == len(found) and (np.diff(scores) <= 0).all()
        start = histories.start[lists.samples["user_row"][at]]
        before = histories.video_row[start : lists.samples["history_end"][at]]
        assert not np.isin(found, before).any()
        assert len(found) == min(20, NUM_VIDEOS - len(set(before.tolist())))


def test_training_requests(retrieval: Retrieval) -> None:
    lists = past_lists(retrieval, ("train",), 40)
    assert len(lists) == 40
    check_lists(retrieval, lists)
    frame = watches(retrieval, "train")
    for at in range(len(lists)):
        user, time = lists.samples["user_row"][at], lists.samples["timestamp"][at]
        mine = frame[(frame["user_row"] == user) & (frame["timestamp"] >= time)]
        later = lists.later[at][lists.later[at] > 0].tolist()
        assert later and later in [mine["video_row"].tolist()[k : k + 4] for k in range(len(mine))]


def test_validation_requests(retrieval: Retrieval) -> None:
    """Each user once, at the first watch of the part, with all that follows."""
    lists = past_lists(retrieval, ("valid",), 1000, first_only=True)
    check_lists(retrieval, lists)
    frame = watches(retrieval, "valid")
    assert lists.samples["user_row"].tolist() == sorted(frame["user_row"].unique())
    gains = lists.gains()
    for at, user in enumerate(lists.samples["user_row"]):
        mine = frame[frame["user_row"] == user]
        best = mine.groupby("video_row")["label"].max()
        expected = [1 + 0.5 * best[row] if row in best.index else 0 for row in lists.rows[at]]
        assert gains[at].tolist() == expected
    assert 0 < (gains > 0).mean() < 1


def test_drawn_candidates(retrieval: Retrieval) -> None:
    lists = past_lists(retrieval, ("train",), 200)
    first, again, other = (
        sampled(lists, np.random.default_rng(seed), CONFIG, NUM_VIDEOS) for seed in (1, 1, 2)
    )
    assert first.rows.shape == (200, 8)
    np.testing.assert_array_equal(first.rows, again.rows)
    assert (first.rows != other.rows).any()
    for drawn, found in zip(first.rows[:, :5], lists.rows, strict=True):
        kept = drawn[drawn > 0]
        assert np.isin(kept, found).all() and len(set(kept)) == len(kept)
    assert set(first.rows[:, 5:].ravel()) == set(range(1, NUM_VIDEOS + 1))
