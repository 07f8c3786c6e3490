"""The ranker learns a planted interaction and planted watch times."""

from __future__ import annotations

import zipfile
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from models.dlrm import watch_loss
from models.inputs import FeatureTables
from models.ranker import (
    build_ranker,
    load_ranker,
    predict_samples,
    ranker_metrics,
    train_ranker,
)
from tests.fixtures import Tables, make_config, make_contract, make_tables, random_events, write_run
from workflow.config import Config
from workflow.errors import TrainingError
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json

CONTRACT = make_contract(lists=False, numbers=False, publish_time=False)
NUM_USERS, NUM_VIDEOS = 40, 30


def planted(num_events: int = 12_000) -> Tables:
    """Clicked exactly when user and video have the same parity; German videos are watched longer.

    Neither side alone says anything about the label.
    """
    tables = make_tables(num_users=NUM_USERS, num_videos=NUM_VIDEOS, num_events=1)
    rng = np.random.default_rng(0)
    events = random_events(rng, NUM_USERS, NUM_VIDEOS, num_events)
    positive = (events["user_row"] + events["video_row"]) % 2 == 0
    events["watched"], events["label"] = positive, positive.astype(np.float32)
    german = (tables.videos["language"] == "de").to_numpy()[events["video_row"] - 1]
    seconds = np.where(german, 400, 20) * rng.lognormal(0, 0.1, num_events)
    events["watch_s"] = np.where(positive, seconds, 0).astype(np.float32)
    events.loc[events.index % 10 == 0, "watch_s"] = np.nan
    return Tables(tables.users, tables.videos, events)


@pytest.fixture(scope="module")
def config() -> Config:
    return make_config(
        ranker={
            "batch_size": 256, "max_epochs": 8, "patience": 2, "learning_rate": 0.01,
            "id_dropout": 0.0,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Run:
    made = write_run(tmp_path_factory.mktemp("parity") / "run", CONTRACT, planted())
    build_features(made, config, CONTRACT)
    train_ranker(made, config)
    return made


def opened(run: Run) -> tuple[FeatureStore, FeatureTables]:
    store = FeatureStore(run)
    return store, FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))


def test_learns_the_interaction(run: Run, config: Config) -> None:
    store, tables = opened(run)
    metrics = ranker_metrics(load_ranker(run, config, tables), tables, store, "test")
    assert metrics["auc"] > 0.95 and metrics["per_user_auc"] > 0.95
    assert metrics["log_loss"] < 0.3
    fresh = ranker_metrics(build_ranker(tables, config), tables, store, "test")
    assert abs(fresh["auc"] - 0.5) < 0.1  # nothing gives the label away


def test_learns_the_watch_time(run: Run, config: Config) -> None:
    store, tables = opened(run)
    model = load_ranker(run, config, tables)
    assert ranker_metrics(model, tables, store, "test")["log_watch_mae"] < 0.3
    truth, predicted = predict_samples(model, tables, store, "test")
    watched = np.isfinite(truth["log_watch"]) & (truth["label"] == 1)
    long = watched & (truth["log_watch"] > np.log(100))
    assert long.sum() > 50 and (watched & ~long).sum() > 50
    ratio = predicted["log_watch"][long].mean() - predicted["log_watch"][watched & ~long].mean()
    assert ratio == pytest.approx(np.log(401 / 21), abs=0.5)


def test_predictions_are_in_file_order(run: Run, config: Config) -> None:
    store, tables = opened(run)
    truth, predicted = predict_samples(load_ranker(run, config, tables), tables, store, "valid")
    frame = pd.concat([pd.read_parquet(path) for path in store.samples("valid")])
    for name in ("user_row", "label", "log_watch"):
        np.testing.assert_array_equal(truth[name], frame[name])
    assert {len(values) for values in predicted.values()} == {len(frame)}
    p, watch = predicted["p_positive"], predicted["log_watch"]
    np.testing.assert_allclose(predicted["score"], p * np.sqrt(watch), rtol=1e-5, atol=1e-6)


def test_the_best_epoch_is_kept(run: Run, config: Config) -> None:
    report = read_json(run.ranker / "report.json")
    assert report["valid_auc"] == max(report["scores"])
    assert report["scores"][report["epochs"] - 1] == report["valid_auc"]
    store, tables = opened(run)
    again = ranker_metrics(load_ranker(run, config, tables), tables, store, "valid")
    assert again["auc"] == pytest.approx(report["valid_auc"], abs=1e-4)
    assert not (run.checkpoints / "ranker").exists()


def test_weights_hold_no_pickle(run: Run, config: Config) -> None:
    path = run.ranker / "weights.npz"
    with np.load(path, allow_pickle=False) as arrays:
        shapes = [arrays[name].shape for name in sorted(arrays.files)]
    _, tables = opened(run)
    assert shapes == [tuple(weight.shape) for weight in build_ranker(tables, config).weights]
    for name in zipfile.ZipFile(path).namelist():
        assert zipfile.ZipFile(path).read(name)[:6] == b"\x93NUMPY"


def test_labels_of_one_kind(tmp_path: Any, config: Config) -> None:
    tables = planted(600)
    tables.events["label"], tables.events["watched"] = np.float32(1), True
    made = write_run(tmp_path / "run", CONTRACT, tables)
    build_features(made, config, CONTRACT)
    with pytest.raises(TrainingError, match="Found: 100% positive"):
        train_ranker(made, config)
    assert not made.ranker.exists()


def test_watch_loss_counts_measured_positives_only() -> None:
    target = tf.constant([1.0, 2.0, np.nan, 4.0, np.inf])
    label = tf.constant([1.0, 1.0, 1.0, 0.0, 1.0])
    predicted = tf.Variable([2.0, 4.0, 5.0, 6.0, 7.0])
    with tf.GradientTape() as tape:
        loss = watch_loss(target, predicted, label)
    assert float(loss) == pytest.approx((1 + 4) / 2)
    assert tape.gradient(loss, predicted).numpy().tolist() == [1.0, 2.0, 0.0, 0.0, 0.0]
    nothing = watch_loss(tf.constant([np.nan]), tf.constant([3.0]), tf.constant([1.0]))
    assert float(nothing) == 0.0
