"""What each option of the retriever adds: one row per option, against the default, user by user.

    PYTHONPATH=. .venv/bin/python tests/bench/ablations.py RUN [RUN ...] [--seeds N] [--test]

Each RUN is a run folder with finished features, for instance MovieLens-1M split by time and with
split.protocol=leave_last_out, and a simulator run whose batches do not hold the whole catalogue
(20,000 users and videos, 400,000 events). Models are small trainings on the train part (100,000
rows an epoch, 3 epochs, the one objective "future" unless the row says otherwise); weights of the
blend are chosen on validation, as in the product. A row shows Recall@100, NDCG@10 and coverage@10
on the validation part, with --test on the test part too, and the difference to the default with
its 95% interval (paired bootstrap over users; seeds are averaged user by user first).

Intervals do not hold the chance in training: differences near their edge need more seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import tensorflow as tf

from models.blend import Blend, Parts, choose_blend
from models.co_watch import co_watch_vectors, log_popularity, trend
from models.evaluation.bootstrap import paired_interval
from models.evaluation.retrieval import Bench
from models.inputs import FeatureTables, SampleBatches, Tensors, sample_columns
from models.queries import Queries, held_out_queries
from models.retriever import build_two_tower, by_video_index, fill_fixed
from models.targets import OBJECTIVES, Goal, Targets
from models.training import Fit, gradient_step
from models.two_tower import TwoTower, candidate_vectors, query_vectors
from models.watches import Catalogue, Watches
from tests.bench.negatives import Mined, Negatives, Queue, Uniform, loss_with
from workflow.config import Config
from workflow.console import no_report
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run, read_json

METRICS = ("recall@100", "ndcg@10", "coverage@10")
SHORT = {"max_rows_per_epoch": 100_000, "max_epochs": 3}
BLEND_QUERIES = 1_000
DEFAULT, UNBLENDED = "default", "no co-watch, no trend"


class Data:
    """What all rows read of a run."""

    def __init__(self, run: Run, parts: list[str]) -> None:
        self.config = Config.model_validate(read_json(run.config_file)["config"])
        self.store = FeatureStore(run)
        self.spec = FeatureSpec.load(self.store.root / "spec.json")
        self.tables = FeatureTables(self.store, self.spec)
        self.columns = sample_columns(self.spec, ranker=False)
        self.watches = Watches.read(self.store, self.spec, "train")
        limit = self.config.retriever.max_valid_users
        self.queries = {
            part: held_out_queries(self.store, part, self.columns).sample(limit, self.config.seed)
            for part in parts
        }
        per_user = np.bincount(self.watches.user_row, minlength=self.spec.num_users + 1)
        self.targets = Targets(self.store.histories(), per_user)

    def samples(self) -> pd.DataFrame:
        """Training watches, the columns that the towers read."""
        paths = self.store.samples("train")
        frame = pd.concat([read_frame(p, columns=[*self.columns, "watched"]) for p in paths])
        return frame.loc[frame["watched"] == 1, self.columns]


def no_more(data: Data, config: Config) -> Negatives:
    return Negatives()


def uniform(data: Data, config: Config) -> Negatives:
    return Uniform(2048, data.spec.num_videos)


def cross_batch(data: Data, config: Config) -> Negatives:
    return Queue(3, config.retriever.batch_size * OBJECTIVES["future"].num_targets, data.watches)


def mined(data: Data, config: Config) -> Negatives:
    return Mined(data.tables, data.samples(), data.watches)


@dataclass(frozen=True)
class Option:
    """How one row differs from the default."""

    settings: dict[str, Any] = field(default_factory=dict)
    goal: Goal = "future"
    co_watch_start: bool = True
    corrected: bool = True
    negatives: Callable[[Data, Config], Negatives] = no_more


OPTIONS = {
    DEFAULT: Option(),
    "uniform negatives 2048": Option(negatives=uniform),
    "cross-batch negatives 3": Option(negatives=cross_batch),
    "hard negatives 8 of 100": Option(negatives=mined),
    "no logQ": Option(corrected=False),
    "objective next": Option(goal="next"),
    "no co-watch start": Option(co_watch_start=False),
}


@dataclass(frozen=True)
class Epochs:
    """SampleBatches that tell the negatives when an epoch begins."""

    batches: SampleBatches
    begin: Callable[[], None]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensors]:
        self.begin()
        yield from self.batches


def train(data: Data, option: Option, seed: int) -> TwoTower:
    """A model without blend."""
    changed = data.config.retriever.model_copy(update=SHORT | option.settings)
    config = data.config.model_copy(update={"retriever": changed})
    tf.keras.utils.set_random_seed(seed)
    model = build_two_tower(data.tables, config, option.goal)
    if option.co_watch_start:
        start = co_watch_vectors(data.watches, changed.embedding_dim)
        model.start_from(by_video_index(start.history, data.tables))
    files = data.store.samples("train")
    batches = SampleBatches(
        files, data.columns, changed.batch_size,
        watched_only=True, shuffle=True, max_rows=changed.max_rows_per_epoch,
    )  # fmt: skip
    decay = tf.keras.optimizers.schedules.PolynomialDecay(
        changed.learning_rate, changed.max_epochs * len(batches), 0.0
    )
    optimizer = tf.keras.optimizers.Adam(decay)
    more = option.negatives(data, config)
    loss = loss_with(
        model, data.tables, data.targets, data.watches, more, corrected=option.corrected
    )
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        fit = Fit(
            model=model,
            optimizer=optimizer,
            step=gradient_step(model, optimizer, loss),
            batches=Epochs(batches, lambda: more.start_epoch(model)),
            validate=None,
            checkpoints=Path(folder),
            max_epochs=changed.max_epochs,
            patience=1,
        )
        fit.run(no_report, "")
    return model


def blended(data: Data, model: TwoTower) -> Blend:
    """Give the model the blend that validation prefers."""
    queries = data.queries["valid"].sample(BLEND_QUERIES, data.config.seed)
    fill_fixed(model, data.tables, data.watches, Blend(co_watch=1.0))
    vectors = query_vectors(model, data.tables, queries.samples)
    candidates = candidate_vectors(model, data.tables)
    learned = model.config.embedding_dim
    together = vectors @ candidates.T
    co_watch = vectors[:, learned:-1] @ candidates[:, learned:-1].T
    offsets = trend(data.watches), log_popularity(data.watches)
    blend, _ = choose_blend(Parts(together - co_watch, co_watch, *offsets), queries)
    fill_fixed(model, data.tables, data.watches, blend)
    return blend


def judge(data: Data, model: TwoTower, queries: Queries) -> dict[str, Any]:
    """Metric -> value per user."""
    vectors = query_vectors(model, data.tables, queries.samples)
    candidates = candidate_vectors(model, data.tables)
    bench = Bench(queries, Catalogue(data.watches.counts))
    return bench.judge(lambda at: vectors[at] @ candidates.T).values


Row = dict[str, dict[str, Any]]  # part -> metric -> value per user


def measure(data: Data, name: str, seeds: int) -> dict[str, Row]:
    """The option's row, averaged over seeds; the default's model also gives the unblended row."""
    rows: dict[str, list[Row]] = {}
    for seed in range(seeds):
        started = time.monotonic()
        model = train(data, OPTIONS[name], seed)
        if name == DEFAULT:
            rows.setdefault(UNBLENDED, []).append(judged(data, model))
        blend = blended(data, model)
        rows.setdefault(name, []).append(judged(data, model))
        print(f"# {name}, seed {seed}: {time.monotonic() - started:.0f} s, {blend}", flush=True)
    return {one: mean_of(found) for one, found in rows.items()}


def judged(data: Data, model: TwoTower) -> Row:
    return {part: judge(data, model, queries) for part, queries in data.queries.items()}


def mean_of(rows: list[Row]) -> Row:
    return {
        part: {metric: np.mean([row[part][metric] for row in rows], axis=0) for metric in METRICS}
        for part in rows[0]
    }


def show(name: str, row: Row, default: Row) -> None:
    """Print a row: means, and differences to the default where it is another."""
    for part, values in row.items():
        cells = []
        for metric in METRICS:
            cell = f"{metric} {values[metric].mean():.4f}"
            if row is not default:
                found = paired_interval(values[metric], default[part][metric])
                cell += f" {found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
            cells.append(cell)
        print(f"{name:24s} {part:6s}", "   ".join(cells), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="judge on the test part too")
    parser.add_argument("--only", choices=list(OPTIONS), action="append", help="besides default")
    chosen = parser.parse_args()
    parts = ["valid", "test"] if chosen.test else ["valid"]
    for folder in chosen.runs:
        data = Data(Run(folder), parts)
        print(f"{folder.name}: { ({part: len(q) for part, q in data.queries.items()}) } users")
        rows: dict[str, Row] = {}
        for name in [n for n in OPTIONS if n == DEFAULT or n in (chosen.only or OPTIONS)]:
            found = measure(data, name, chosen.seeds)
            rows |= found
            for one, row in found.items():
                show(one, row, rows[DEFAULT])
    return 0


if __name__ == "__main__":
    sys.exit(main())
