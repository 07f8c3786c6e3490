"""The ranker learns a planted interaction and planted watch times."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest

from models.candidates import Retrieval, past_lists
from models.inputs import FeatureTables
from models.metrics import auc, log_loss, per_user_auc
from models.ranker import build_ranker, load_ranker, train_ranker
from models.ranker_predict import Predictor, predict_samples
from models.retriever import train_retriever
from tests.fixtures import Tables, make_config, make_contract, make_tables, random_events, write_run
from workflow.config import Config
from workflow.errors import TrainingError
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json

CONTRACT = make_contract(lists=False, numbers=False, publish_time=False)
NUM_USERS, NUM_VIDEOS = 60, 150


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
            "id_dropout": 0.0, "dropout": 0.0, "history_dropout": 0.2,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Run:
    made = write_run(tmp_path_factory.mktemp("parity") / "run", CONTRACT, planted())
    build_features(made, config, CONTRACT)
    train_retriever(made, config)
    train_ranker(made, config)
    return made


def opened(run: Run) -> tuple[FeatureStore, FeatureTables]:
    store = FeatureStore(run)
    return store, FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))


def test_learns_the_interaction(run: Run, config: Config) -> None:
    """Users like what shares the parity of what they watched: only attention can tell."""
    store, tables = opened(run)
    truth, predicted = predict_samples(load_ranker(run, config, tables), tables, store, "test")
    label, p = truth["label"], predicted["p_positive"]
    assert auc(label, p) > 0.95 and per_user_auc(label, p, truth["user_row"]) > 0.95
    assert log_loss(label, p) < 0.3
    _, fresh = predict_samples(build_ranker(tables, config), tables, store, "test")
    assert abs(auc(label, fresh["p_positive"]) - 0.5) < 0.1  # nothing gives the label away


def test_learns_the_watch_time(run: Run, config: Config) -> None:
    store, tables = opened(run)
    model = load_ranker(run, config, tables)
    truth, predicted = predict_samples(model, tables, store, "test")
    watched = np.isfinite(truth["log_watch"]) & (truth["label"] == 1)
    long = watched & (truth["log_watch"] > np.log(100))
    assert long.sum() > 50 and (watched & ~long).sum() > 50
    assert np.median(predicted["watch_s"][long]) == pytest.approx(400, rel=0.3)
    assert np.median(predicted["watch_s"][watched & ~long]) == pytest.approx(20, rel=0.3)


def test_learns_what_is_watched_of_a_list(run: Run, config: Config) -> None:
    store, tables = opened(run)
    lists = past_lists(Retrieval(run, config, store, tables, "final"), ("test",), 100)
    model = load_ranker(run, config, tables)
    time = lists.samples["timestamp"].astype(np.int64)
    out = Predictor(model, tables, store).lists(lists.samples, lists.rows, time)
    present, watched = lists.rows > 0, lists.gains() > 0
    same = (lists.rows + lists.samples["user_row"][:, None]) % 2 == 0
    assert watched.any() and same[watched].all()
    assert auc(same[present].astype(np.float32), out.watch[present]) > 0.95
    assert model.scoring.weights.watch > 0


def test_predictions_are_in_file_order(run: Run, config: Config) -> None:
    store, tables = opened(run)
    truth, predicted = predict_samples(load_ranker(run, config, tables), tables, store, "valid")
    frame = pd.concat([pd.read_parquet(path) for path in store.samples("valid")])
    for name in ("user_row", "video_row", "label", "log_watch"):
        np.testing.assert_array_equal(truth[name], frame[name])
    assert {len(values) for values in predicted.values()} == {len(frame)}


def test_a_window_knows_no_more_than_each_event_alone(run: Run, config: Config) -> None:
    """Events of one window share one look-up of history; each must see only its own past."""
    store, tables = opened(run)
    model = load_ranker(run, config, tables)
    predictor = Predictor(model, tables, store)
    _, together = predictor.events("test")
    frame = pd.concat([pd.read_parquet(path) for path in store.samples("test")])
    samples = {str(name): frame[name].to_numpy() for name in frame.columns}
    rows = samples["video_row"][:, None]
    alone = predictor.lists(samples, rows, samples["timestamp"])
    np.testing.assert_allclose(together.label, alone.label[:, 0], atol=1e-4)


def test_without_labels(tmp_path: Path, config: Config) -> None:
    """Only watches: the ranker learns what is watched of retrieved lists."""
    contract = make_contract(
        label=False, watch_time=False, lists=False, numbers=False, publish_time=False
    )
    tables = planted(6_000)
    tables.events = tables.events[tables.events["watched"]].reset_index(drop=True)
    made = write_run(tmp_path / "run", contract, tables)
    build_features(made, config, contract)
    train_retriever(made, config)
    summary = train_ranker(made, config)
    assert summary["valid_auc"] > 0.55
    assert summary["weights"]["label"] == summary["weights"]["watch_time"] == 0


def test_the_best_epoch_is_kept(run: Run, config: Config) -> None:
    report = read_json(run.ranker / "report.json")
    assert report["scores"][report["epochs"] - 1] == max(report["scores"])
    store, tables = opened(run)
    truth, again = predict_samples(load_ranker(run, config, tables), tables, store, "valid")
    found = auc(truth["label"], again["p_positive"])
    assert found == pytest.approx(report["valid_auc"], abs=1e-4)
    logit = Predictor(load_ranker(run, config, tables), tables, store).events("valid")[1].label
    loss = log_loss(truth["label"], 1 / (1 + np.exp(-logit)))
    assert -loss == pytest.approx(max(report["scores"]), abs=1e-3)
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
