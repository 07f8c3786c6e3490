"""Training throughput of the retriever against plain Keras fed by tf.data, in alternation.

    PYTHONPATH=. .venv/bin/python tests/bench/training_speed.py RUN [--rows N] [--rounds N]

RUN is a run folder with finished features (for the bar: MovieLens-1M). Both sides train the same
architecture (tests/bench/plain_keras.py) with the same batch size, targets per row, dropout and
optimizer on as many threads (set TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS for fewer),
taking turns. A round is an epoch of N rows from nothing but compiled functions: shuffling and
loading count. Cases:

    future        16 targets a row, batch 1024; Keras: every drawn target is a column
    future, same  the same; Keras: only distinct videos are columns, as here
    one           one target a row, batch 4096; Keras: the classic 4096 x 4096 in-batch softmax
    one, same     the same; Keras: only distinct videos are columns

Printed are rows per second by the clock and by processor time, and the ratio of each round (ours
to Keras) with its spread. Exit status 1 when the median ratio by the clock is below 1 in a case.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import tensorflow as tf

from models.inputs import FeatureTables, SampleBatches, sample_columns
from models.retriever import batch_loss, build_two_tower
from models.targets import OBJECTIVES, Objective, Targets
from models.training import Setting, gradient_step
from models.watches import Watches
from tests.bench.plain_keras import PlainTwoTower, dataset, log_share
from workflow.config import Config
from workflow.console import no_report
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run, read_json

BAR = 1.0
Round = Callable[[], int]  # trains one epoch, returns its rows


class OneTarget(Objective):
    """The classic objective: a row's own watch is its only target."""

    def weights(self) -> Any:
        return tf.ones([1])


FUTURE = OBJECTIVES["future"]
ONE = OneTarget(1.0, 1, 1, dropout=FUTURE.dropout, history_dropout=FUTURE.history_dropout)


@dataclass(frozen=True)
class Case:
    objective: Objective
    batch_size: int
    distinct: bool


CASES = {
    "future": Case(FUTURE, 1024, distinct=False),
    "future, same": Case(FUTURE, 1024, distinct=True),
    "one": Case(ONE, 4096, distinct=False),
    "one, same": Case(ONE, 4096, distinct=True),
}


class Data:
    """What both sides read of a run."""

    def __init__(self, run: Run) -> None:
        self.config = Config.model_validate(read_json(run.config_file)["config"])
        self.store = FeatureStore(run)
        self.tables = FeatureTables(self.store, FeatureSpec.load(self.store.root / "spec.json"))
        self.columns = sample_columns(self.tables.spec, ranker=False)
        self.watches = Watches.read(self.store, self.tables.spec, "train")

    def settings(self, case: Case) -> Config:
        changed = self.config.retriever.model_copy(update={"batch_size": case.batch_size})
        return self.config.model_copy(update={"retriever": changed})


def ours(data: Data, case: Case, rows: int) -> Round:
    """Marquee's loader, towers, loss and step."""
    config = data.settings(case)
    model = build_two_tower(data.tables, config)
    model.objective = case.objective
    model.query_tower.dropout = case.objective.dropout
    model.query_tower.history_dropout = case.objective.history_dropout
    batches = SampleBatches(
        data.store.samples("train"),
        data.columns,
        case.batch_size,
        watched_only=True,
        shuffle=True,
        max_rows=rows,
    )
    optimizer = tf.keras.optimizers.Adam(config.retriever.learning_rate)
    setting = Setting(data.store, data.tables, config, Path(), no_report)
    step = gradient_step(model, optimizer, batch_loss(model, setting, data.watches))

    def epoch() -> int:
        losses, done = [], 0
        for batch in batches:
            losses.append(step(batch))
            done += int(batch["user_row"].shape[0])
        assert np.isfinite(float(losses[-1]))
        return done

    return epoch


def plain(data: Data, case: Case, rows: int) -> Round:
    """The same architecture in plain Keras."""
    settings = data.settings(case).retriever
    paths = data.store.samples("train")
    frame = pd.concat([read_frame(p, columns=[*data.columns, "watched"]) for p in paths])
    frame = frame[frame["watched"] == 1]
    columns = {name: frame[name].to_numpy() for name in data.columns}
    per_user = np.bincount(data.watches.user_row, minlength=data.watches.num_users + 1)
    targets = Targets(data.store.histories(), per_user)
    shape = {"distinct": case.distinct}
    batches = dataset(columns, data.tables, targets, settings, case.objective, **shape)
    share = log_share(data.watches.counts)
    model = PlainTwoTower(data.tables.spec, settings, case.objective, log_share=share, **shape)
    model.compile(optimizer=tf.keras.optimizers.Adam(settings.learning_rate))
    steps = max(rows // case.batch_size, 1)

    def epoch() -> int:
        done = model.fit(batches, steps_per_epoch=steps, verbose=0)
        assert np.isfinite(done.history["loss"][-1])
        return steps * case.batch_size

    return epoch


def timed(epoch: Round) -> tuple[float, float]:
    """Rows per second by the clock and of processor time."""
    clock, cpu = time.perf_counter(), time.process_time()
    rows = epoch()
    return rows / (time.perf_counter() - clock), rows / (time.process_time() - cpu)


def compare(data: Data, name: str, rows: int, rounds: int) -> float:
    """Print a case; the median ratio by the clock."""
    case = CASES[name]
    sides = [ours(data, case, rows), plain(data, case, rows)]
    for epoch in sides:
        epoch()  # compiles
    speeds = np.array([[timed(epoch) for epoch in sides] for _ in range(rounds)])
    for kind, which in (("clock", 0), ("cpu", 1)):
        a, b = speeds[:, 0, which], speeds[:, 1, which]
        ratio = a / b
        print(
            f"{name:14s} {kind:6s} ours {np.median(a):8,.0f} rows/s  Keras {np.median(b):8,.0f}"
            f"  ratio {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]",
            flush=True,
        )
    return float(np.median(speeds[:, 0, 0] / speeds[:, 1, 0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), action="append")
    chosen = parser.parse_args()
    data = Data(Run(chosen.run))
    missed = 0
    for name in chosen.case or CASES:
        ratio = compare(data, name, chosen.rows, chosen.rounds)
        missed += ratio < BAR
        print(f"{'ok    ' if ratio >= BAR else 'MISSED'} {name}: {ratio:.2f} (bar: {BAR})")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
