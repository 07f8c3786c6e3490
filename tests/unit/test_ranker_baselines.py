"""Bias model and boosted trees on planted data, and what they may know at each event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models import metrics
from models.evaluation.biases import Biases, logistic_regression
from models.evaluation.trees import Trees, read_events, read_samples
from tests.fixtures import DAY, START, make_config, make_contract, make_tables, write_run
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run

NUM_USERS, NUM_VIDEOS = 60, 50
CONTRACT = make_contract()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Users and videos differ in how often they please; watch time depends on the device."""
    rng = np.random.default_rng(0)
    tables = make_tables(NUM_USERS, NUM_VIDEOS, 8000, seed=3)
    events = tables.events.sort_values("user_row", kind="stable", ignore_index=True)
    events["timestamp"] = START + rng.integers(0, 30 * DAY, len(events))
    taste = rng.normal(0, 1.2, NUM_USERS + 1)[events["user_row"]]
    appeal = rng.normal(0, 1.2, NUM_VIDEOS + 1)[events["video_row"]]
    events["watched"] = rng.random(len(events)) < 1 / (1 + np.exp(-taste - appeal))
    events["label"] = events["watched"].astype(np.float32)
    minutes = np.where(events["device"] == "tv", 20, 2)
    seconds = 60 * minutes * rng.lognormal(0, 0.3, len(events))
    events["watch_s"] = np.where(events["watched"], seconds, 0).astype(np.float32)
    tables.events = events.sort_values(["user_row", "timestamp"], ignore_index=True)
    made = write_run(tmp_path_factory.mktemp("biases") / "run", CONTRACT, tables, num_partitions=3)
    build_features(made, make_config(), CONTRACT)
    return made


@pytest.fixture(scope="module")
def store(run: Run) -> FeatureStore:
    return FeatureStore(run)


@pytest.fixture(scope="module")
def spec(store: FeatureStore) -> FeatureSpec:
    return FeatureSpec.load(store.root / "spec.json")


@pytest.fixture(scope="module")
def biases(store: FeatureStore) -> Biases:
    return Biases(store).fit()


def all_samples(store: FeatureStore) -> pd.DataFrame:
    frames = [
        read_frame(p).assign(part=p.parent.name) for p in store.samples("train", "valid", "test")
    ]
    return pd.concat(frames, ignore_index=True)


def test_biases_find_the_planted_taste(
    store: FeatureStore, spec: FeatureSpec, biases: Biases
) -> None:
    events = read_events(store, spec, "test")
    p = biases.predict("test")
    assert p.dtype == np.float32 and len(p) == len(events.label)
    assert metrics.auc(events.label, p) > 0.75
    assert metrics.log_loss(events.label, p) < 0.62 < metrics.log_loss(events.label, p * 0 + 0.5)
    assert abs(p.mean() - events.label.mean()) < 0.04


def test_biases_by_hand(store: FeatureStore, biases: Biases) -> None:
    """Damped means over strictly earlier events: of the video by days, of the user by seconds."""
    frame = all_samples(store)
    mean = frame["label"][frame["part"] != "test"].mean()
    video_damping, user_damping = biases.damping
    day = frame["timestamp"] // DAY
    video = np.zeros(len(frame))
    for at, row in frame.iterrows():
        past = frame[(frame["video_row"] == row["video_row"]) & (day < day[at])]
        video[at] = (past["label"] - mean).sum() / (len(past) + video_damping)
    left = frame["label"] - mean - video
    encodings = biases.encodings("train", "valid", "test")
    np.testing.assert_allclose(encodings[:, 0], video, atol=1e-6)
    for at in range(0, len(frame), 97):
        row = frame.iloc[at]
        earlier = (frame["user_row"] == row["user_row"]) & (frame["timestamp"] < row["timestamp"])
        expected = left[earlier].sum() / (earlier.sum() + user_damping)
        assert encodings[at, 1] == pytest.approx(expected, abs=1e-6)


def test_biases_do_not_know_the_future(tmp_path: Path, store: FeatureStore, biases: Biases) -> None:
    """With the labels of the last events turned round, earlier predictions of the test stay."""
    frame = all_samples(store)
    test = frame[frame["part"] == "test"]
    cut = int(test["timestamp"].median()) // DAY * DAY
    changed = Run(tmp_path / "run")
    for part, rows in frame.groupby("part"):
        folder = changed.features / str(part)
        folder.mkdir(parents=True)
        late = rows["timestamp"] >= cut
        rows.assign(label=np.where(late, 1 - rows["label"], rows["label"])).to_parquet(
            folder / "part-0.parquet"
        )
    other = Biases(FeatureStore(changed)).fit()
    early = (test["timestamp"] < cut).to_numpy()
    before, after = biases.predict("test"), other.predict("test")
    assert 0 < early.sum() < len(early)
    np.testing.assert_allclose(after[early], before[early], rtol=1e-6)
    assert not np.allclose(after[~early], before[~early])


def test_logistic_regression_is_the_maximum() -> None:
    rng = np.random.default_rng(0)
    columns = np.stack([np.ones(5000), rng.normal(size=5000)], axis=1)
    truth = np.array([-0.5, 1.5])
    label = (rng.random(5000) < 1 / (1 + np.exp(-columns @ truth))).astype(np.float64)
    got = logistic_regression(columns, label)
    slope = columns.T @ (label - 1 / (1 + np.exp(-columns @ got)))
    assert np.abs(slope).max() < 0.05 and got == pytest.approx(truth, abs=0.15)


def test_samples_have_every_scalar_feature(
    store: FeatureStore, spec: FeatureSpec, biases: Biases
) -> None:
    got = read_samples(store, spec, biases, ("valid", "test"))
    scalars = [f for f in spec.features if f.group != "history" and not f.is_list]
    expected = {f.name for f in scalars} - {"user_index", "video_index"}
    assert expected | {"user_bias", "video_bias"} <= set(got.names)
    lists = {name.rpartition("_")[0] for name in set(got.names) - expected} - {"user", "video"}
    assert lists == {"likes", "genres"}
    frame = all_samples(store)
    frame = frame[frame["part"] != "train"]
    order = {name: got.values[:, at] for at, name in enumerate(got.names)}
    np.testing.assert_array_equal(order["hour"], frame["hour"])
    users, videos = frame["user_row"].to_numpy(), frame["video_row"].to_numpy()
    np.testing.assert_array_equal(order["country"], store.user("country")[users])
    np.testing.assert_array_equal(
        order["genres_3"], (store.video("genres")[videos] == 3).any(axis=1)
    )
    assert set(got.categorical) == {f.name for f in scalars if f.kind == "categorical"} - {
        "user_index",
        "video_index",
    }


def test_trees(store: FeatureStore, spec: FeatureSpec, biases: Biases) -> None:
    events = read_events(store, spec, "test")
    trees = Trees(store, spec, biases).fit()
    p, watch_s = trees.predict("test")
    assert metrics.auc(events.label, p) > 0.74
    again, _ = Trees(store, spec, biases).fit().predict("test")
    np.testing.assert_array_equal(again, p)
    known = np.isfinite(events.watch_s)
    assert watch_s is not None
    error = np.abs(np.log(watch_s[known] + 1) - np.log(events.watch_s[known] + 1))
    assert error.mean() < 0.4  # the device alone explains a factor of ten


def test_events(store: FeatureStore, spec: FeatureSpec) -> None:
    events = read_events(store, spec, "test")
    frame = all_samples(store)
    frame = frame[frame["part"] == "test"]
    np.testing.assert_array_equal(events.user_row, frame["user_row"])
    assert np.isnan(events.watch_s[frame["watched"] == 0]).all()
    watched = (frame["watched"] == 1).to_numpy()
    np.testing.assert_allclose(
        events.watch_s[watched], np.expm1(frame["log_watch"][watched]), rtol=1e-5
    )
