"""The ranker stage: train the DLRM with early stopping on validation AUC."""

from __future__ import annotations

import shutil
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.dlrm import Ranker
from models.inputs import FeatureTables, SampleBatches, Tensors, sample_columns
from models.metrics import auc, calibration_error, log_loss, per_user_auc
from models.training import Fit, Progress, Setting, gradient_step, load_weights, save_weights
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.errors import TrainingError
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run, replaced_folder, write_json

PREDICT_BATCH = 16_384


def train_ranker(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Train with early stopping on validation AUC, then refit on train + validation.

    Writes weights.npz and report.json into the run's ranker folder.

    Returns:
        {"epochs", "valid_auc", "rows_per_s", "scores"}.
    """
    tf.keras.utils.set_random_seed(config.seed)
    store = FeatureStore(run)
    tables = FeatureTables(store, FeatureSpec.load(store.root / "spec.json"))
    _check_labels(store)
    setting = Setting(store, tables, config, run.checkpoints / "ranker", report)
    model, progress = _fit(setting, "search", ("train",))
    if config.ranker.refit:
        model, _ = _fit(setting, "refit", ("train", "valid"), epochs=progress.best_epoch)
    summary = progress.summary("valid_auc")
    with replaced_folder(run.ranker) as target:
        save_weights(model, target / "weights.npz")
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
    setting: Setting, name: str, parts: tuple[str, ...], *, epochs: int | None = None
) -> tuple[Ranker, Progress]:
    """Train on `parts`: until validation AUC stops rising, or for `epochs` epochs."""
    store, tables, config = setting.store, setting.tables, setting.config
    settings = config.ranker
    model = build_ranker(tables, config)
    optimizer = tf.keras.optimizers.Adam(settings.learning_rate)

    def validate() -> float:
        labels, predictions = predict_samples(model, tables, store, "valid")
        return auc(labels["label"], predictions["p_positive"])

    fit = Fit(
        model=model,
        optimizer=optimizer,
        step=gradient_step(model, optimizer, lambda b: model.loss(tables.ranker(b), b)),
        batches=SampleBatches(
            store.samples(*parts),
            sample_columns(tables.spec, ranker=True),
            settings.batch_size,
            shuffle=True,
        ),
        validate=validate if epochs is None else None,
        checkpoints=setting.checkpoints / name,
        max_epochs=epochs or settings.max_epochs,
        patience=settings.patience,
    )
    return model, fit.run(setting.report, f"ranker {name}")


def build_ranker(tables: FeatureTables, config: Config) -> Ranker:
    """A built model with fresh weights."""
    model = Ranker(tables.spec, config.ranker)
    model(tables.ranker(_one_sample(tables.spec)))
    return model


def _one_sample(spec: FeatureSpec) -> Tensors:
    floats = {f.name for f in spec.features if f.kind == "continuous"}
    return {
        name: tf.zeros([1], tf.float32 if name in floats else tf.int32)
        for name in sample_columns(spec, ranker=True)
    }


def load_ranker(run: Run, config: Config, tables: FeatureTables) -> Ranker:
    """The trained model of a run."""
    path = run.require(run.ranker / "weights.npz", "ranker", "marquee train")
    model = build_ranker(tables, config)
    load_weights(model, path)
    return model


def predict(model: Ranker, tables: FeatureTables, batch: Tensors) -> dict[str, Any]:
    """p_positive, log_watch and score of a batch of samples; float32 [batch] each."""
    logit, log_watch = model(tables.ranker(batch))
    score = model.score(logit, log_watch)
    return {"p_positive": tf.sigmoid(logit), "log_watch": log_watch, "score": score}


def predict_samples(
    model: Ranker, tables: FeatureTables, store: FeatureStore, part: str
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[np.float32]]]:
    """(columns of the samples, predictions) of a whole part, in file order."""
    run_batch = tf.function(lambda b: predict(model, tables, b), reduce_retracing=True)
    columns = sample_columns(tables.spec, ranker=True)
    batches = SampleBatches(store.samples(part), columns, PREDICT_BATCH)
    seen: list[Tensors] = []
    predicted: list[Tensors] = []
    for batch in batches:
        seen.append(
            {
                name: batch[name].numpy()
                for name in ("user_row", "label", "log_watch")
                if name in batch
            }
        )
        predicted.append({name: value.numpy() for name, value in run_batch(batch).items()})
    return _joined(seen), _joined(predicted)


def _joined(parts: list[Tensors]) -> dict[str, Any]:
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )


def ranker_metrics(
    model: Ranker, tables: FeatureTables, store: FeatureStore, part: str
) -> dict[str, float]:
    """auc, per_user_auc, log_loss, ece and, with watch times, the error of log watch time."""
    truth, predicted = predict_samples(model, tables, store, part)
    label, p = truth["label"], predicted["p_positive"]
    metrics = {
        "auc": auc(label, p),
        "per_user_auc": per_user_auc(label, p, truth["user_row"]),
        "log_loss": log_loss(label, p),
        "ece": calibration_error(label, p),
        "positive_share": float(label.mean()),
    }
    if "log_watch" in truth:
        measured = np.isfinite(truth["log_watch"]) & (label > 0.5)
        error = np.abs(predicted["log_watch"][measured] - truth["log_watch"][measured])
        metrics["log_watch_mae"] = float(error.mean()) if measured.any() else float("nan")
    return metrics
