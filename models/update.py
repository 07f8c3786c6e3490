"""Trained models that go on learning: a few steps on the newest days instead of a training anew.

Hyper-parameters, objective, blend, calibration and the weights of the final score stay those of
the last full training. What is computed from the log (co-watch vectors, trend, popularity) is
computed again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf

from models.blend import Blend
from models.candidates import Retrieval, past_lists
from models.growth import load_grown
from models.inputs import FeatureTables, SampleBatches, sample_columns
from models.queries import held_out_queries
from models.ranker import TaskBatches, build_ranker, ranker_loss
from models.retriever import batch_loss, build_two_tower, fill_fixed
from models.training import Fit, Progress, Setting, gradient_step, save_weights
from models.two_tower import candidate_vectors
from models.watch_time import WatchTime
from models.watches import Watches
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.features.encoded import FeatureStore
from workflow.features.history import SECONDS_PER_DAY
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run, read_json, replaced_folder, write_json

EVERYTHING = ("train", "valid", "test")


@dataclass(frozen=True)
class Steps:
    """Passes over the samples of an update, at a constant learning rate of Adam."""

    epochs: int
    learning_rate: float


# Judged by tests/bench/daily_update.py.
RETRIEVER, RANKER = Steps(6, 1e-3), Steps(1, 3e-4)
REPLAY_DAYS = 3  # before the new ones, read again so that what changes slowly is not forgotten


class RecentStore(FeatureStore):
    """The encoded arrays of a run, with only the samples since a moment, as one part."""

    def __init__(self, run: Run, folder: Path, since: int) -> None:
        super().__init__(run)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, files in self._by_name(super().samples(*EVERYTHING)).items():
            parts = [read_frame(path) for path in files]
            recent = _joined([part[part["timestamp"] >= since] for part in parts])
            if len(recent):
                recent.to_parquet(folder / name, index=False)

    @staticmethod
    def _by_name(files: list[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in files:
            found.setdefault(path.name, []).append(path)
        return found

    def samples(self, *parts: str) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))


def _joined(parts: list[Any]) -> Any:
    """Samples of one partition, in the order of users and time again."""
    import pandas as pd

    frame = pd.concat(parts, ignore_index=True)
    return frame.sort_values(["user_row", "timestamp"], kind="stable", ignore_index=True)


def update_models(
    parent: Run,
    target: Run,
    config: Config,
    since: int,
    report: Report = no_report,
) -> dict[str, Any]:
    """Write retriever and ranker of `target`, whose features continue those of `parent`.

    Args:
        since: unix second from which on the log is new to the models.
    Returns:
        {"samples": how many were read, "retriever_loss", "ranker_loss"}.
    """
    tf.keras.utils.set_random_seed(config.seed + len(parent.updates()) + 1)
    scratch = target.checkpoints
    shutil.rmtree(scratch, ignore_errors=True)
    store = RecentStore(target, scratch / "recent", since - REPLAY_DAYS * SECONDS_PER_DAY)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    setting = Setting(store, tables, config, scratch, report)
    retriever = _update_retriever(parent, target, setting)
    ranker = _update_ranker(parent, target, setting)
    shutil.rmtree(scratch, ignore_errors=True)
    return {
        "samples": ranker.rows,
        "retriever_loss": round(retriever.losses[-1], 4),
        "ranker_loss": round(ranker.losses[-1], 4),
    }


def _update_retriever(parent: Run, target: Run, setting: Setting) -> Progress:
    store, tables, config = setting.store, setting.tables, setting.config
    before = read_json(parent.retriever / "report.json")
    model = build_two_tower(tables, config, before["objective"])
    load_grown(model, parent.retriever / "weights.npz")
    columns = sample_columns(tables.spec, ranker=False)
    batches = SampleBatches(
        store.samples(), columns, config.retriever.batch_size, watched_only=True, shuffle=True,
        max_rows=config.retriever.max_rows_per_epoch,
    )  # fmt: skip
    whole = FeatureStore(target)
    everything = Watches.read(whole, tables.spec, *EVERYTHING)
    loss = batch_loss(model, setting, everything)
    fit = _fit(model, loss, batches, setting.checkpoints / "retriever", RETRIEVER)
    progress = fit.run(setting.report, "retriever")
    queries = held_out_queries(whole, "test", columns)
    queries = queries.sample(config.retriever.max_valid_users, config.seed)
    fill_fixed(model, setting, everything, Blend(**before["blend"]), queries)
    with replaced_folder(target.retriever) as folder:
        save_weights(model, folder / "weights.npz")
        np.save(folder / "candidate_vectors.npy", candidate_vectors(model, tables))
        write_json(folder / "report.json", before)
    return progress


def _update_ranker(parent: Run, target: Run, setting: Setting) -> Progress:
    store, tables, config = setting.store, setting.tables, setting.config
    model = build_ranker(tables, config)
    load_grown(model, parent.ranker / "weights.npz")
    kept = ["scoring.json", "report.json"]
    if model.has_watch_time:
        model.watch_time = WatchTime.load(parent.ranker / "watch_time.npz")
        kept.append("watch_time.npz")
    retrieval = Retrieval(target, config, store, tables, "final")
    lists = past_lists(retrieval, EVERYTHING, config.ranker.list_queries)
    batches = TaskBatches(setting, lists, EVERYTHING)
    loss = partial(ranker_loss, model, tables)
    fit = _fit(model, loss, batches, setting.checkpoints / "ranker", RANKER)
    progress = fit.run(setting.report, "ranker")
    with replaced_folder(target.ranker) as folder:
        save_weights(model, folder / "weights.npz")
        for name in kept:
            shutil.copyfile(parent.ranker / name, folder / name)
    return progress


def _fit(model: Any, loss: Any, batches: Any, checkpoints: Path, steps: Steps) -> Fit:
    optimizer = tf.keras.optimizers.Adam(steps.learning_rate)
    return Fit(
        model=model,
        optimizer=optimizer,
        step=gradient_step(model, optimizer, loss),
        batches=batches,
        validate=None,
        checkpoints=checkpoints,
        max_epochs=steps.epochs,
        patience=1,
    )
