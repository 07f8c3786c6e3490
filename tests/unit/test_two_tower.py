"""The retriever: its loss worked out by hand, and planted clusters that it has to find."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from models.blocks import drop_ids
from models.evaluation.baselines import Popularity
from models.evaluation.learned import Trained
from models.evaluation.retrieval import Bench
from models.evaluation.tuning import baseline_scorer
from models.evaluation.watches import Catalogue, Watches
from models.inputs import FeatureTables
from models.queries import held_out_queries
from models.retriever import load_two_tower, train_retriever, watch_counts
from models.training import Fit, gradient_step, load_weights, save_weights
from models.two_tower import (
    candidate_vectors,
    in_batch_softmax,
    log_sampling_probability,
    query_vectors,
)
from tests.fixtures import DAY, START, Tables, make_config, make_contract, make_tables, write_run
from workflow.config import Config
from workflow.errors import TrainingError
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run

NUM_CLUSTERS, NUM_USERS, NUM_VIDEOS = 4, 80, 240
CONTRACT = make_contract(label=False, watch_time=False, context=False, publish_time=False)


# --- the loss -------------------------------------------------------------------------------------
def loss_by_hand(
    queries: Any, candidates: Any, rows: list[int], log_q: Any, temperature: float
) -> float:
    """-log(exp(s_ii) / sum_j exp(s_ij)), leaving out other draws of the same video."""
    total = 0.0
    for i in range(len(rows)):
        scores = [float(queries[i] @ candidates[j]) / temperature for j in range(len(rows))]
        if log_q is not None:
            scores = [s - float(log_q[j]) for j, s in enumerate(scores)]
        kept = [s for j, s in enumerate(scores) if j == i or rows[j] != rows[i]]
        total -= scores[i] - math.log(sum(math.exp(s) for s in kept))
    return total / len(rows)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("rows", [[1, 2, 3, 4], [1, 2, 1, 1], [5, 5, 5, 5]])
def test_in_batch_softmax(rows: list[int], corrected: bool) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(2, 4, 3)).astype(np.float32)
    log_q = np.log([0.5, 0.1, 0.2, 0.05]).astype(np.float32) if corrected else None
    got = in_batch_softmax(queries, candidates, tf.constant(rows), log_q, 0.5)
    assert float(got) == pytest.approx(
        loss_by_hand(queries, candidates, rows, log_q, 0.5), rel=1e-5
    )


def test_correction_recovers_the_full_softmax() -> None:
    """Negatives drawn by popularity and corrected by it estimate the softmax over everything."""
    rng = np.random.default_rng(1)
    share = np.array([0.7, 0.2, 0.1])
    scores = np.array([0.3, -0.2, 0.5], np.float32)
    draws = rng.choice(3, 20_000, p=share)
    corrected = scores[draws] - np.log(share[draws])
    estimate = np.log(np.exp(corrected).mean())
    assert estimate == pytest.approx(np.log(np.exp(scores).sum()), abs=0.02)


def test_log_sampling_probability() -> None:
    got = log_sampling_probability(np.array([0, 8, 1, 1], np.int64))
    assert got.dtype == np.float32
    assert np.exp(got).tolist() == pytest.approx([0.1, 0.8, 0.1, 0.1])


def test_drop_ids() -> None:
    ids = tf.fill([20_000, 1], 7)
    features = {"user_index": ids, "country": ids}
    tf.random.set_seed(0)
    dropped = drop_ids(features, ("user_index",), 0.25)
    assert set(np.unique(dropped["user_index"])) == {2, 7}
    assert np.mean(dropped["user_index"].numpy() == 2) == pytest.approx(0.25, abs=0.02)
    assert dropped["country"] is ids and features["user_index"] is ids
    assert drop_ids(features, ("user_index",), 0.0) is features


# --- planted clusters ----------------------------------------------------------------------------
def planted(seed: int = 0) -> Tables:
    """User u watches only videos v with v % 4 == u % 4, each about equally often."""
    rng = np.random.default_rng(seed)
    tables = make_tables(num_users=NUM_USERS, num_videos=NUM_VIDEOS, num_events=1)
    rows = []
    for user in range(1, NUM_USERS + 1):
        mine = np.arange(1, NUM_VIDEOS + 1)
        mine = rng.permutation(mine[mine % NUM_CLUSTERS == user % NUM_CLUSTERS])[:40]
        times = np.sort(START + rng.integers(0, 30 * DAY, len(mine)))
        rows.append(pd.DataFrame({"user_row": user, "video_row": mine, "timestamp": times}))
    events = pd.concat(rows, ignore_index=True).astype({"user_row": "i4", "video_row": "i4"})
    return Tables(tables.users, tables.videos, events.assign(watched=True))


@pytest.fixture(scope="module")
def config() -> Config:
    return make_config(
        retriever={"batch_size": 256, "max_epochs": 12, "patience": 3, "learning_rate": 0.01},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Run:
    made = write_run(tmp_path_factory.mktemp("clusters") / "run", CONTRACT, planted())
    build_features(made, config, CONTRACT)
    train_retriever(made, config)
    return made


def test_planted_clusters_are_found(run: Run, config: Config) -> None:
    trained = Trained(run, config)
    queries = held_out_queries(trained.store, "test", trained.query_columns)
    watches = Watches.read(trained.store, trained.spec, "train", "valid")
    bench = Bench(queries, Catalogue(watches.counts))
    popularity = baseline_scorer(Popularity().fit(watches), queries, NUM_VIDEOS)
    learned, popular = (
        {name: values.mean() for name, values in bench.judge(scorer).values.items()}
        for scorer in (trained.two_tower(queries), popularity)
    )
    # A cluster has 60 videos of 240: whoever knows it has them all in the first hundred.
    assert learned["recall@100"] > 0.95 > 2 * popular["recall@100"] - 0.2
    assert learned["recall@10"] > 2.5 * popular["recall@10"]


def test_vectors_of_a_cluster_point_the_same_way(run: Run) -> None:
    vectors = np.load(run.retriever / "candidate_vectors.npy", allow_pickle=False)
    assert vectors.shape == (NUM_VIDEOS + 1, 8) and vectors.dtype == np.float32
    assert not vectors[0].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[1:], axis=1), 1, rtol=1e-5)
    similar = vectors[1:] @ vectors[1:].T
    cluster = np.arange(1, NUM_VIDEOS + 1) % NUM_CLUSTERS
    same = cluster[:, None] == cluster[None, :]
    assert similar[same].mean() > similar[~same].mean() + 0.5


def test_saved_weights_give_the_saved_vectors(run: Run, config: Config) -> None:
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    model = load_two_tower(run, config, tables)
    saved = np.load(run.retriever / "candidate_vectors.npy", allow_pickle=False)
    np.testing.assert_allclose(candidate_vectors(model, tables), saved, atol=1e-6)
    rows = {name: np.array([3, 4, 5]) for name in ("user_row", "video_row")}
    end = tables._start.numpy()[[4, 5, 6]]
    samples = rows | {"history_end": end, "session_start": end}
    together = query_vectors(model, tables, samples)
    for i in range(3):
        one = query_vectors(model, tables, {k: v[i : i + 1] for k, v in samples.items()})
        np.testing.assert_allclose(one[0], together[i], atol=1e-6)


def test_watch_counts(run: Run) -> None:
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    events = planted().events
    seen = events[events["timestamp"] < spec.valid_from]
    expected = np.bincount(seen["video_row"], minlength=NUM_VIDEOS + 1)
    assert watch_counts(store, spec, ("train",)).tolist() == expected.tolist()


def test_history_lookup_matches_the_pointers(run: Run) -> None:
    """Inputs hold the last watches before `history_end`, newest last, and only this user's."""
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    histories, index = store.histories(), store.video("video_index")
    batch = {"user_row": [1, 2, 2, 0], "history_end": [], "session_start": []}
    for user, known in zip(batch["user_row"], (3, 0, 9, 0), strict=True):
        batch["history_end"].append(int(histories.start[user]) + known)
        batch["session_start"].append(batch["history_end"][-1] - min(known, 2))
    got = tables.query({name: tf.constant(values) for name, values in batch.items()})
    for i, (user, known) in enumerate(zip(batch["user_row"], (3, 0, 9, 0), strict=True)):
        first, end = int(histories.start[user]), batch["history_end"][i]
        mine = index[histories.video_row[first:end]].tolist()
        for name, length, seen in (("history", 6, mine), ("session_history", 3, mine[-2:])):
            wanted = seen[-length:] if known else []
            assert got[name][i].numpy().tolist() == [0] * (length - len(wanted)) + wanted


# --- the training loop ----------------------------------------------------------------------------
class Line(tf.keras.Model):
    """y = w x, learned by Adam on fixed batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = tf.keras.layers.Dense(1, kernel_initializer="zeros")
        self(tf.zeros([1, 2]))

    def call(self, x: Any) -> Any:
        return self.layer(x)


BATCHES = [
    {
        "user_row": tf.range(8),
        "x": tf.constant(np.random.default_rng(i).normal(size=(8, 2)), tf.float32),
    }
    for i in range(3)
]


def line_fit(folder: Path, scores: list[float], **options: Any) -> tuple[Line, Fit]:
    model = Line()
    optimizer = tf.keras.optimizers.Adam(0.1)

    def loss_of(batch: Any) -> Any:
        wanted = 3 * batch["x"][:, :1] - 2 * batch["x"][:, 1:]
        return tf.reduce_mean((model(batch["x"]) - wanted) ** 2)

    remaining = iter(scores)
    settings: dict[str, Any] = {"max_epochs": 6, "patience": 9, "batches": BATCHES} | options
    fit = Fit(
        model=model,
        optimizer=optimizer,
        step=gradient_step(model, optimizer, loss_of),
        validate=(lambda: next(remaining)) if scores else None,
        checkpoints=folder,
        **settings,
    )
    return model, fit


def quiet(done: float, total: float, note: str = "") -> None:
    pass


def weights(model: Line) -> list[float]:
    return [float(x) for weight in model.get_weights() for x in weight.ravel()]


def after_epochs(folder: Path, epochs: int) -> list[float]:
    model, fit = line_fit(folder / f"to-{epochs}", [], max_epochs=epochs)
    fit.run(quiet, "line")
    return weights(model)


def test_early_stopping_restores_the_best_epoch(tmp_path: Path) -> None:
    model, fit = line_fit(tmp_path / "a", [0.1, 0.5, 0.4, 0.3, 0.9, 1.0], patience=2)
    progress = fit.run(quiet, "line")
    assert (progress.best_epoch, progress.epoch) == (2, 4)  # the later 0.9 is never reached
    assert progress.scores == [0.1, 0.5, 0.4, 0.3]
    assert weights(model) == pytest.approx(after_epochs(tmp_path, 2), rel=1e-6)
    assert weights(model) != pytest.approx(after_epochs(tmp_path, 4), rel=1e-3)


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    _, fit = line_fit(tmp_path, [], max_epochs=3)
    progress = fit.run(quiet, "line")
    assert (progress.epoch, progress.rows, len(progress.losses)) == (3, 72, 3)
    assert progress.losses == sorted(progress.losses, reverse=True)


@pytest.mark.parametrize("epochs_done", [1, 3])
def test_a_continued_fit_equals_an_uninterrupted_one(tmp_path: Path, epochs_done: int) -> None:
    """The best epoch may lie before the interruption (1) or after it; Adam's state comes back."""
    scores = [0.1, 0.7, 0.3, 0.2, 0.8, 0.4]
    whole_model, whole = line_fit(tmp_path / "whole", scores)
    expected = whole.run(quiet, "line")

    def killed() -> float:
        if len(calls) == epochs_done:
            raise KeyboardInterrupt
        calls.append(1)
        return scores[len(calls) - 1]

    calls: list[int] = []
    _, first = line_fit(tmp_path / "part", [0.0])
    object.__setattr__(first, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        first.run(quiet, "line")
    model, second = line_fit(tmp_path / "part", scores[epochs_done:])
    progress = second.run(quiet, "line")
    assert (progress.scores, progress.best_epoch) == (expected.scores, expected.best_epoch)
    assert progress.losses == pytest.approx(expected.losses, rel=1e-5)
    assert weights(model) == pytest.approx(weights(whole_model), rel=1e-5)


def test_a_finished_fit_is_only_restored(tmp_path: Path) -> None:
    model, fit = line_fit(tmp_path, [0.1, 0.9, 0.5, 0.5, 0.5, 0.5])
    fit.run(quiet, "line")
    again, second = line_fit(tmp_path, [float("nan")])
    assert second.run(quiet, "line").epoch == 6
    assert weights(again) == weights(model)


def test_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    broken = [{"user_row": tf.range(1), "x": tf.constant([[np.nan, 0.0]])}]
    _, fit = line_fit(tmp_path, [], batches=[*BATCHES, *broken])
    with pytest.raises(TrainingError, match=r"line: the loss is nan in epoch 1\. Next: lower"):
        fit.run(quiet, "line")
    assert not (tmp_path / "progress.json").exists()


def test_nothing_to_train_on(tmp_path: Path) -> None:
    _, fit = line_fit(tmp_path, [], batches=[])
    with pytest.raises(TrainingError, match="no training samples"):
        fit.run(quiet, "line")


def test_weights_come_back_without_pickle(tmp_path: Path) -> None:
    model, fit = line_fit(tmp_path / "a", [], max_epochs=1)
    fit.run(quiet, "line")
    save_weights(model, tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype == np.float32 for name in arrays.files)
    other = Line()
    load_weights(other, tmp_path / "weights.npz")
    assert weights(other) == weights(model) != weights(Line())
