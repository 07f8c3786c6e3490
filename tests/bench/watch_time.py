"""Watch-time targets compared on the simulator: seconds, their order, and true relevance.

    PYTHONPATH=. .venv/bin/python tests/bench/watch_time.py RUN [SEEDS]

RUN is a run folder of the dataset sim with finished features. The same DLRM is trained on the
watches of its train part with each target, stopped early on the target's own validation loss, and
judged on the test part; SEEDS (default 3) are averaged user by user before users are resampled.
Exit status 1 when the default target misses a bar against plain regression.

MAE and XAUC compare predicted seconds with those watched, over all watches of the test part.

Relevance is what lists are sorted by. The simulator's log watch time of (user, video) is

    0.66 log(duration) + 1.5 match + 0.25 quality + device + intent + chance, cut at the duration.

Its true relevance is 1.5 match + 0.25 quality: all that depends on the pair and makes this user
stay, without the seconds that a video gets for being long and without what one request's
candidates have in common. It is free of duration by construction (both terms are drawn without
it), and needs no model of the duration's effect to be taken off. Reported is the mean over users of
the rank correlation with it over all videos that the test part showed to the user, clicked or
not: a ranker has to order what is shown, not what turned out to be clicked. `match` is the same
with the taste match alone, `duration` with the duration: 0 is best there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.stats import rankdata

from models.blocks import embedding_tables, split_kinds
from models.evaluation.bootstrap import interval, paired_interval
from models.evaluation.ranker_metrics import ratio_values, xauc_values
from models.inputs import FeatureTables, Tensors, merlin_schema
from models.training import Fit, gradient_step
from tests.bench.watch_heads import HEADS, Head
from workflow.console import no_report
from workflow.data.simulator import Truth
from workflow.data.simulator_random import row_dot
from workflow.data.simulator_response import WATCH_QUALITY, WATCH_TASTE, taste_at
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run

BASELINE, DEFAULT = "regression", "d2q"
BATCH, PREDICT_BATCH, LEARNING_RATE, MAX_EPOCHS, PATIENCE = 512, 16_384, 3e-4, 20, 2
EMBEDDING_DIM, BOTTOM, TOP = 32, (64, 32), (128, 64)
MIN_VIDEOS = 5  # of a user, for a rank correlation
# Whether more is better, and the columns that decide.
METRICS = {"mae_s": False, "xauc": True, "relevance": True, "match": True, "duration": None}

Array = Any


def read_part(store: FeatureStore, part: str) -> dict[str, Array]:
    """Columns of a part's samples with seconds watched and the video's duration."""
    frame = pd.concat([read_frame(path) for path in store.samples(part)], ignore_index=True)
    columns = {name: frame[name].to_numpy() for name in frame.columns}
    columns["watch_s"] = np.expm1(columns["log_watch"])
    columns["duration_s"] = np.asarray(store.duration_s())[columns["video_row"]]
    return columns


def only(columns: dict[str, Array], kept: Array) -> dict[str, Array]:
    return {name: values[kept] for name, values in columns.items()}


class Batches:
    """Epochs of batches from arrays in memory."""

    def __init__(self, columns: dict[str, Array], size: int, seed: int | None = None) -> None:
        self.columns, self.size = columns, size
        self.random = None if seed is None else np.random.default_rng(seed)
        self.count = len(columns["user_row"])

    def __len__(self) -> int:
        return (self.count + self.size - 1) // self.size

    def __iter__(self) -> Any:
        order = np.arange(self.count)
        if self.random is not None:
            self.random.shuffle(order)
        for start in range(0, self.count, self.size):
            rows = order[start : start + self.size]
            yield {name: tf.constant(values[rows]) for name, values in self.columns.items()}


class Network(tf.keras.Model):
    """A DLRM over all features but the user's id, with `width` outputs."""

    def __init__(self, tables: FeatureTables, width: int) -> None:
        super().__init__()
        self.tables = tables
        self.numbers = tables.spec.of_group("user_state", "video_state", "cross")
        used = (*tables.spec.query(), *tables.spec.candidate(), *self.numbers)
        features = tuple({f.name: f for f in used if f.name != "user_index"}.values())
        categorical, _ = split_kinds(features)
        dims = {f.domain: EMBEDDING_DIM for f in categorical}
        self.body = mm.DLRMBlock(
            merlin_schema(features),
            embeddings=embedding_tables(categorical, dims),
            bottom_block=mm.MLPBlock([*BOTTOM, EMBEDDING_DIM]),
            top_block=mm.MLPBlock(list(TOP)),
        )
        self.head = tf.keras.layers.Dense(width)

    def call(self, batch: Tensors) -> Any:
        features = self.tables.query(batch) | self.tables.candidate(batch["video_row"])
        features |= {f.name: batch[f.name][:, None] for f in self.numbers}
        features.pop("user_index")
        return self.head(self.body(features))


def predict(network: Network, columns: dict[str, Array]) -> Array:
    """Raw outputs; float32 [n, width]."""
    outputs = tf.function(network.call, reduce_retracing=True)
    return np.concatenate([outputs(b).numpy() for b in Batches(columns, PREDICT_BATCH)])


def loss_of(head: Head, outputs: Array, batch: Tensors) -> Any:
    return head.loss(outputs, batch["watch_s"], batch["duration_s"], tf.ones_like(batch["watch_s"]))


def train(
    head: Head, tables: FeatureTables, train: dict[str, Array], valid: dict[str, Array], seed: int
) -> tuple[Network, int]:
    """A network stopped early on the head's loss over the validation watches; and its epochs."""
    tf.keras.utils.set_random_seed(seed)
    network = Network(tables, head.width)
    network(next(iter(Batches(train, 2))))
    optimizer = tf.keras.optimizers.Adam(LEARNING_RATE)
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        fit = Fit(
            model=network,
            optimizer=optimizer,
            step=gradient_step(network, optimizer, lambda b: loss_of(head, network(b), b)),
            batches=Batches(train, BATCH, seed),
            validate=lambda: -float(loss_of(head, predict(network, valid), valid)),
            checkpoints=Path(folder),
            max_epochs=MAX_EPOCHS,
            patience=PATIENCE,
        )
        progress = fit.run(no_report, "")
    return network, progress.best_epoch


class Judge:
    """Values per user of predictions for the test part."""

    def __init__(self, test: dict[str, Array], truth: Truth) -> None:
        self.owner = np.unique(test["user_row"], return_inverse=True)[1]
        # 0 seconds were watched of what was not clicked: no watch.
        self.watch_s = np.where(test["watched"] == 1, test["watch_s"], np.nan)
        self.measured = np.isfinite(self.watch_s)
        user, video = test["user_row"] - 1, test["video_row"] - 1
        vectors = truth.world.videos.vector[video]
        match = row_dot(taste_at(truth.world, user, test["timestamp"]), vectors)
        quality = truth.world.videos.quality[video]
        self.orders = {
            "relevance": WATCH_TASTE * match + WATCH_QUALITY * quality,
            "match": match,
            "duration": test["duration_s"],
        }
        order = np.argsort(self.owner, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.owner[order])) + 1)
        self.lists = [rows for rows in parts if len(rows) >= MIN_VIDEOS]

    def values(self, seconds: Array, relevance: Array) -> dict[str, Array]:
        """Per metric one value per user; the mean is the metric."""
        error = np.where(self.measured, np.abs(seconds - self.watch_s), 0)
        return {
            "mae_s": ratio_values(error, self.measured * 1.0, self.owner),
            "xauc": xauc_values(self.watch_s, seconds, self.owner),
        } | {name: self.correlations(relevance, true) for name, true in self.orders.items()}

    def correlations(self, relevance: Array, true: Array) -> Array:
        """Spearman's within each user; 0 where all predictions are equal."""
        result = np.zeros(len(self.lists))
        for at, rows in enumerate(self.lists):
            ours, theirs = (rankdata(values[rows]) for values in (relevance, true))
            if np.ptp(ours) > 0 and np.ptp(theirs) > 0:
                result[at] = np.corrcoef(ours, theirs)[0, 1]
        return result


def compare(run: Run, seeds: int) -> dict[str, dict[str, Array]]:
    """target -> metric -> values per user, averaged over seeds."""
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    parts = {part: read_part(store, part) for part in ("train", "valid", "test")}
    watches = {part: only(c, c["watched"] == 1) for part, c in parts.items()}
    print({part: len(columns["user_row"]) for part, columns in watches.items()}, flush=True)
    judge = Judge(parts["test"], Truth.load(run.root / "source"))
    results = {}
    for name, kind in HEADS.items():
        head = kind.fit(watches["train"]["watch_s"], watches["train"]["duration_s"])
        per_seed = []
        for seed in range(seeds):
            network, epochs = train(head, tables, watches["train"], watches["valid"], seed)
            outputs = predict(network, parts["test"])
            per_seed.append(judge.values(*head.decode(outputs, parts["test"]["duration_s"])))
            means = {metric: round(float(v.mean()), 4) for metric, v in per_seed[-1].items()}
            print(json.dumps({"target": name, "seed": seed, "epochs": epochs, **means}), flush=True)
        results[name] = {m: np.mean([v[m] for v in per_seed], axis=0) for m in METRICS}
    return results


def table(results: dict[str, dict[str, Array]]) -> None:
    """Means with 95% intervals over users, then differences to the baseline and the default."""
    for name, values in results.items():
        cells = []
        for metric in METRICS:
            found = interval(values[metric])
            cells.append(f"{metric} {found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]")
        print(f"{name:18s}", "  ".join(cells))
    for other in (BASELINE, DEFAULT):
        print(f"minus {other}")
        for name in results:
            if name != other:
                print(f"{name:18s}", "  ".join(difference(results, name, other)))


def difference(results: dict[str, dict[str, Array]], name: str, other: str) -> list[str]:
    cells = []
    for metric in METRICS:
        found = paired_interval(results[name][metric], results[other][metric])
        cells.append(
            f"{metric} {found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
        )
    return cells


def main(folder: str, seeds: int = 3) -> int:
    results = compare(Run(Path(folder)), seeds)
    table(results)
    missed = 0
    for metric in ("mae_s", "xauc", "relevance"):
        found = paired_interval(results[DEFAULT][metric], results[BASELINE][metric])
        good = found["low"] > 0 if METRICS[metric] else found["high"] < 0
        missed += not good
        print(f"{'ok    ' if good else 'MISSED'} {metric} of {DEFAULT} ahead of {BASELINE}")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
