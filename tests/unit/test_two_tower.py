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
from models.inputs import FeatureTables
from models.queries import held_out_queries
from models.retriever import load_two_tower, train_retriever
from models.training import Fit, gradient_step, load_weights, save_weights
from models.two_tower import (
    candidate_vectors,
    log_draw_probability,
    output_dim,
    query_vectors,
    sampled_softmax,
)
from models.watches import Catalogue, Watches
from tests.fixtures import DAY, START, Tables, make_config, make_contract, make_tables, write_run
from workflow.config import Config
from workflow.errors import TrainingError
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json

NUM_CLUSTERS, NUM_USERS, NUM_VIDEOS = 4, 80, 240
CONTRACT = make_contract(label=False, watch_time=False, context=False, publish_time=False)


# --- the loss -------------------------------------------------------------------------------------
def loss_by_hand(logits: Any, position: Any, weights: list[float], log_q: Any) -> float:
    """-sum of weight * log(exp(s_target) / sum_j exp(s_j)), averaged over the rows."""
    total = 0.0
    for row, targets in zip(np.asarray(logits, float), position, strict=True):
        scores = row if log_q is None else row - log_q
        normaliser = math.log(sum(math.exp(s) for s in scores))
        total -= sum(w * (scores[t] - normaliser) for w, t in zip(weights, targets, strict=True))
    return total / len(position)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [0.2, 0.4, 0.4]])
def test_sampled_softmax(weights: list[float], corrected: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5)).astype(np.float32)
    position = rng.integers(0, 5, (6, len(weights)))
    log_q = np.log([0.5, 0.1, 0.2, 0.05, 0.9]).astype(np.float32) if corrected else None
    got = sampled_softmax(tf.constant(logits), position, tf.constant(weights, tf.float32), log_q)
    assert float(got) == pytest.approx(loss_by_hand(logits, position, weights, log_q), rel=1e-5)


def test_correction_recovers_the_full_softmax() -> None:
    """Distinct draws, corrected by their probability, estimate the softmax over everything."""
    rng = np.random.default_rng(1)
    counts = np.array([0, 70, 20, 10, 5, 3, 2], np.int64)
    scores = np.array([0.3, -0.2, 0.5, 1.5, -1.0, 0.8])
    draws = 6
    log_q = log_draw_probability(counts, draws)[1:]
    sums = []
    for _ in range(8_000):
        distinct = np.unique(rng.choice(6, draws, p=counts[1:] / counts.sum()))
        sums.append(np.exp(scores[distinct] - log_q[distinct]).sum())
    assert np.log(np.mean(sums)) == pytest.approx(np.log(np.exp(scores).sum()), abs=0.02)


def test_log_draw_probability() -> None:
    got = np.exp(log_draw_probability(np.array([0, 8, 2, 0], np.int64), 3))
    assert got.dtype == np.float32
    # The padding row and unseen videos count as one watch.
    assert got.tolist() == pytest.approx([1 - 0.9**3, 1 - 0.2**3, 1 - 0.8**3, 1 - 0.9**3], rel=1e-5)


def test_drop_ids() -> None:
    ids = tf.fill([20_000, 1], 7)
    features = {"video_index": ids, "genres": ids}
    tf.random.set_seed(0)
    dropped = drop_ids(features, 0.25)
    assert set(np.unique(dropped["video_index"])) == {2, 7}
    assert np.mean(dropped["video_index"].numpy() == 2) == pytest.approx(0.25, abs=0.02)
    assert dropped["genres"] is ids and features["video_index"] is ids
    assert drop_ids(features, 0.0) is features


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


def test_vectors_of_a_cluster_point_the_same_way(run: Run, config: Config) -> None:
    vectors = np.load(run.retriever / "candidate_vectors.npy", allow_pickle=False)
    assert vectors.shape == (NUM_VIDEOS + 1, output_dim(config.retriever))
    assert vectors.dtype == np.float32 and not vectors[0].any()
    learned = vectors[1:, : config.retriever.embedding_dim]
    learned = learned / np.linalg.norm(learned, axis=1, keepdims=True)
    similar = learned @ learned.T
    cluster = np.arange(1, NUM_VIDEOS + 1) % NUM_CLUSTERS
    same = cluster[:, None] == cluster[None, :]
    assert similar[same].mean() > similar[~same].mean() + 0.3


def test_the_search_phase_is_saved_too(run: Run, config: Config) -> None:
    """Without a refit it is the final model; both phases load."""
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    phases = [load_two_tower(run, config, tables, phase) for phase in ("final", "search")]
    for one, two in zip(*(model.get_weights() for model in phases), strict=True):
        np.testing.assert_array_equal(one, two)
    report = read_json(run.retriever / "report.json")
    assert set(report["tried"]) == {"future", "next"} and report["objective"] in report["tried"]
    assert set(report["blend"]) == {"trend", "co_watch", "popularity"}


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


def test_watches_are_those_of_the_part(run: Run) -> None:
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    events = planted().events
    seen = events[events["timestamp"] < spec.valid_from]
    expected = np.bincount(seen["video_row"], minlength=NUM_VIDEOS + 1)
    assert Watches.read(store, spec, "train").counts.tolist() == expected.tolist()


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
