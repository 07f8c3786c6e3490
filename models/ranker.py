"""The ranker stage: train the DLRM on logged events and retrieved lists, then calibrate it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import tensorflow as tf

from models.candidates import CandidateLists, Retrieval, past_lists, sampled
from models.dlrm import Outputs, Ranker
from models.inputs import FeatureTables, Tensors, sample_columns
from models.metrics import auc, log_loss
from models.ranker_predict import Predictor, combined, log_sigmoid
from models.scoring import Platt, Scoring, fit_platt, fit_spread, fit_weights
from models.team import team
from models.training import Fit, Progress, Setting, gradient_step, load_weights, save_weights
from models.watch_time import WatchTime
from models.windows import WindowBatches
from workflow.config import Config, ScoreWeights
from workflow.console import Report, no_report
from workflow.errors import TrainingError
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.features.state import VideoState
from workflow.frames import read_frame
from workflow.run import Run, replaced_folder, write_json

MAX_VALID_LISTS = 5_000


def train_ranker(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Train with early stopping on validation, then refit on train + validation.

    The first model has not seen the validation part: calibration and the weights of the final
    score are fitted there with it. Writes weights.npz, scoring.json and report.json into the
    run's ranker folder.

    Returns:
        {"epochs", "valid_auc", "rows_per_s", "scores", "weights"}; valid_auc is of the label, or
        of what was watched of retrieved lists where there is no label; scores are what decided
        when to stop: minus the label's log loss, or that AUC.
    """
    tf.keras.utils.set_random_seed(config.seed)
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    if tables.spec.has_label:
        _check_labels(store)
    setting = Setting(store, tables, config, run.checkpoints / "ranker", report)
    report(0, 1, "candidate lists")
    search = Retrieval(run, config, store, tables, "search")
    valid = past_lists(search, ("valid",), MAX_VALID_LISTS, first_only=True)
    model, progress = _fit(setting, search, ("train",), valid=valid)
    scoring, valid_auc = _scoring(model, setting, valid)
    if config.ranker.refit:
        final = Retrieval(run, config, store, tables, "final")
        model, _ = _fit(setting, final, ("train", "valid"), epochs=progress.best_epoch)
    summary = progress.summary("valid_auc") | {
        "valid_auc": round(valid_auc, 4),
        "weights": scoring.weights.model_dump(),
    }
    with replaced_folder(run.ranker) as target:
        save_weights(model, target / "weights.npz")
        scoring.save(target / "scoring.json")
        if model.watch_time is not None:
            model.watch_time.save(target / "watch_time.npz")
        write_json(target / "report.json", summary)
    shutil.rmtree(setting.checkpoints, ignore_errors=True)
    return summary


def _check_labels(store: FeatureStore) -> None:

    labels = [read_frame(p, columns=["label"])["label"] for p in store.samples("valid")]
    mean = float(np.mean([part.mean() for part in labels])) if labels else 0.0
    if not 0 < mean < 1:
        raise TrainingError(
            "the ranker needs positive and negative examples in the validation part",
            expected="labels of both kinds",
            found=f"{mean:.0%} positive",
            next_step="check the label column and positive_at_least in the contract",
        )


def _fit(
    setting: Setting,
    retrieval: Retrieval,
    parts: tuple[str, ...],
    *,
    valid: CandidateLists | None = None,
    epochs: int | None = None,
) -> tuple[Ranker, Progress]:
    """Train on `parts`: with `valid` until the score there stops rising, or for `epochs` epochs.

    The learning rate falls linearly over `max_epochs`, also where training ends before them.
    """
    store, tables, config = setting.store, setting.tables, setting.config
    settings = config.ranker
    model = build_ranker(tables, config)
    if model.has_watch_time:
        model.watch_time = _watch_time(store, parts)
    batches = TaskBatches(setting, past_lists(retrieval, parts, settings.list_queries), parts)
    decay = tf.keras.optimizers.schedules.PolynomialDecay(
        settings.learning_rate, settings.max_epochs * len(batches), settings.learning_rate / 20
    )
    optimizer = tf.keras.optimizers.Adam(decay)
    fit = Fit(
        model=model,
        optimizer=optimizer,
        step=gradient_step(model, optimizer, lambda batch: ranker_loss(model, tables, batch)),
        batches=batches,
        validate=None if valid is None else lambda: _valid_score(model, setting, valid),
        checkpoints=setting.checkpoints / retrieval.phase,
        max_epochs=epochs or settings.max_epochs,
        patience=settings.patience,
    )
    return model, fit.run(setting.report, f"ranker {retrieval.phase}")


def ranker_loss(model: Ranker, tables: FeatureTables, batch: Tensors) -> Any:
    """Loss of one batch of TaskBatches; scalar."""
    loss = tf.constant(0.0)
    batch = team().mine({name: batch[name] for name in ("events", "lists")})
    if batch["events"]:
        events = batch["events"] | {"duration_s": tables.duration_s(batch["events"])}
        loss += model.event_loss(*tables.ranker_windows(events), events)
    lists = batch["lists"]
    candidates = tables.ranker_candidates(lists["rows"], lists["numbers"])
    query = tables.ranker_requests(lists["samples"])
    on_lists = model.list_loss(query, candidates, lists["watched"], lists["present"])
    return loss + model.config.list_loss_weight * on_lists


def _watch_time(store: FeatureStore, parts: tuple[str, ...]) -> WatchTime:
    columns = ["video_row", "watched", "log_watch"]
    frames = [read_frame(path, columns=columns) for path in store.samples(*parts)]
    frame = pd.concat(frames, ignore_index=True).query("watched == 1")
    durations = store.duration_s()[frame["video_row"].to_numpy()]
    return WatchTime.fit(np.expm1(frame["log_watch"].to_numpy()), durations)


class TaskBatches:
    """Batches of both kinds of training data, side by side.

    Iterating yields {"events": samples of logged events (empty where they teach nothing),
    "lists": requests with sampled candidates, "user_row": the rows to count}.
    """

    def __init__(self, setting: Setting, lists: CandidateLists, parts: tuple[str, ...]) -> None:
        self._setting, self._lists, self._epoch = setting, lists, 0
        self._state = VideoState(setting.store, setting.tables.spec)
        spec, size = setting.tables.spec, setting.config.ranker.batch_size
        self._events: WindowBatches | None = None
        if spec.has_label or spec.has_watch_time:
            columns = sample_columns(spec, ranker=True)
            files = setting.store.samples(*parts)
            self._events = WindowBatches(files, columns, size, seed=setting.config.seed)
        width = setting.config.ranker.list_retrieved + setting.config.ranker.list_uniform
        self._count = len(self._events or range(-(-len(lists) * width // size)))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensors]:
        self._epoch += 1
        setting = self._setting
        rng = np.random.default_rng((setting.config.seed, self._epoch))
        lists = sampled(self._lists, rng, setting.config, setting.tables.spec.num_videos)
        pieces = np.array_split(rng.permutation(len(lists)), len(self))
        events = iter(self._events) if self._events is not None else iter([{}] * len(self))
        for number, batch in enumerate(events):
            part = list_tensors(lists.take(pieces[number % len(pieces)]), self._state)
            counted = part["samples"]["user_row"]
            if batch:
                counted = tf.boolean_mask(batch["user_row"], batch["present"])
            yield {"events": batch, "lists": part, "user_row": counted}


def list_tensors(lists: CandidateLists, state: VideoState) -> Tensors:
    """Lists as the ranker reads them; videos' numbers are those of the request's time."""
    time = lists.samples["timestamp"].astype(np.int64)[:, None]
    present = lists.rows > 0
    return {
        "samples": {name: tf.constant(values) for name, values in lists.samples.items()},
        "rows": tf.constant(lists.rows),
        "numbers": {n: tf.constant(v) for n, v in state.at(lists.rows, time).items()},
        "watched": tf.constant((lists.gains() > 0).astype(np.float32)),
        "present": tf.constant(present),
    }


def _valid_score(model: Ranker, setting: Setting, valid: CandidateLists) -> float:
    """Minus the log loss of the label, without labels the AUC of lists.

    AUC may rise for an epoch more, when the model is already surer than it should be; calibration
    mends that less well. Lists are not sampled as in training, so their log loss says little.
    """
    predictor = Predictor(model, setting.tables, setting.store)
    if setting.tables.spec.has_label:
        truth, out = predictor.events("valid")
        return -log_loss(truth["label"], np.exp(log_sigmoid(out.label)))
    return _list_auc(_on_lists(predictor, valid), valid)


def _list_auc(out: Outputs, lists: CandidateLists) -> float:
    present = lists.rows > 0
    return auc((lists.gains()[present] > 0).astype(np.float32), out.watch[present])


def _on_lists(predictor: Predictor, lists: CandidateLists) -> Outputs:
    return predictor.lists(lists.samples, lists.rows, lists.samples["timestamp"].astype(np.int64))


def _scoring(model: Ranker, setting: Setting, valid: CandidateLists) -> tuple[Scoring, float]:
    """(calibration and score weights, AUC of the label or of lists), of the validation part."""
    predictor = Predictor(model, setting.tables, setting.store)
    out, gains, present = _on_lists(predictor, valid), valid.gains(), valid.rows > 0
    if model.has_label:
        truth, events = predictor.events("valid")
        label = fit_spread(events.label, truth["label"])
        valid_auc = auc(truth["label"], events.label)
    else:
        label, valid_auc = Platt(), _list_auc(out, valid)
    watch = fit_platt(out.watch[present], gains[present] > 0)
    weights = setting.config.ranker.score_weights
    if not isinstance(weights, ScoreWeights):
        model.scoring = Scoring(label, watch)
        terms = np.stack(combined(model, out, valid.scores)[1], axis=2)
        weights = fit_weights(terms, gains, present)
    return Scoring(label, watch, weights), valid_auc


def build_ranker(tables: FeatureTables, config: Config) -> Ranker:
    """A built model with fresh weights."""
    model = Ranker(tables.spec, config.ranker)
    model(*tables.ranker_windows(_one_sample(tables.spec)))
    return model


def _one_sample(spec: FeatureSpec) -> Tensors:
    floats = {f.name for f in spec.features if f.kind == "continuous"}
    return {
        name: tf.zeros([1, 1], tf.float32 if name in floats else tf.int32)
        for name in sample_columns(spec, ranker=True)
    }


def load_ranker(run: Run, config: Config, tables: FeatureTables) -> Ranker:
    """The trained model of a run, with its calibration and score weights."""
    path = run.require(run.ranker / "weights.npz", "ranker", "marquee train")
    model = build_ranker(tables, config)
    load_weights(model, path)
    model.scoring = Scoring.load(run.ranker / "scoring.json")
    if model.has_watch_time:
        model.watch_time = WatchTime.load(run.ranker / "watch_time.npz")
    return model
