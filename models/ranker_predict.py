"""What a trained ranker says about logged events and about lists of candidates."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.candidates import CandidateLists
from models.dlrm import Outputs, Ranker
from models.inputs import FeatureTables, Tensors, sample_columns
from models.metrics import auc, calibration_error, log_loss, per_user_auc
from models.scoring import TERMS, Scoring
from models.windows import WindowBatches
from workflow.features.encoded import FeatureStore
from workflow.features.state import VideoState

PREDICT_BATCH = 16_384
LIST_BATCH = 128
SEEN = ("user_row", "label", "log_watch")

Array = npt.NDArray[np.float32]


class Predictor:
    """Runs the ranker without training it.

    Args:
        model: a built ranker.
    """

    def __init__(self, model: Ranker, tables: FeatureTables, store: FeatureStore) -> None:
        self.model, self.tables, self.store = model, tables, store
        self._on_events = tf.function(
            lambda batch: vars(model(*tables.ranker_windows(batch))), reduce_retracing=True
        )
        self._on_lists = tf.function(self._score_lists, reduce_retracing=True)

    def _score_lists(self, samples: Tensors, rows: Any, numbers: Tensors) -> Tensors:
        query = self.tables.ranker_requests(samples)
        return vars(self.model(query, self.tables.ranker_candidates(rows, numbers)))

    def events(self, part: str) -> tuple[dict[str, npt.NDArray[Any]], Outputs]:
        """(user_row, label and log_watch; outputs float32 [n]) of a whole part, in file order."""
        columns = sample_columns(self.tables.spec, ranker=True)
        seen: list[Tensors] = []
        said: list[Tensors] = []
        for batch in WindowBatches(self.store.samples(part), columns, PREDICT_BATCH):
            present = batch["present"].numpy()
            seen.append({name: batch[name].numpy()[present] for name in SEEN if name in batch})
            said.append({n: v.numpy()[present] for n, v in self._on_events(batch).items()})
        return _joined(seen), Outputs(**_joined(said))

    def lists(self, lists: CandidateLists) -> Outputs:
        """Outputs float32 [n, k] for every candidate, with the numbers of each request's time."""
        state = VideoState(self.store, self.tables.spec)
        said: list[Tensors] = []
        for start in range(0, len(lists), LIST_BATCH):
            part = lists.take(np.arange(start, min(start + LIST_BATCH, len(lists))))
            numbers = state.at(part.rows, part.samples["timestamp"].astype(np.int64)[:, None])
            said.append(self.candidates(part.samples, part.rows, numbers))
        return Outputs(**_joined(said))

    def candidates(
        self, samples: dict[str, npt.NDArray[Any]], rows: npt.NDArray[Any], numbers: dict[str, Any]
    ) -> dict[str, Array]:
        """Outputs by name, float32 [n, k].

        Args:
            samples: the requests' columns [n].
            rows: int [n, k], video rows.
            numbers: float32 [n, k] per feature of the groups video_state and cross.
        """
        out = self._on_lists(
            {name: tf.constant(values) for name, values in samples.items()},
            tf.constant(rows),
            {name: tf.constant(values) for name, values in numbers.items()},
        )
        return {name: values.numpy() for name, values in out.items()}


def _joined(parts: list[Tensors]) -> dict[str, Any]:
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    )


def combined(
    model: Ranker, scoring: Scoring, out: Outputs, retrieval: Array
) -> tuple[Array, list[Array]]:
    """(score, its terms in the order of TERMS) of candidates; float32, shape of `retrieval`.

    Terms of tasks that the data does not have are zero.
    """
    none = np.zeros_like(retrieval)
    terms = [
        retrieval,
        log_sigmoid(scoring.watch(out.watch)),
        log_sigmoid(scoring.label(out.label)) if model.has_label else none,
        out.log_watch if model.has_watch_time else none,
    ]
    weights = [np.float32(getattr(scoring.weights, name)) for name in TERMS]
    score = sum((w * term for w, term in zip(weights, terms, strict=True)), none)
    return score.astype(np.float32), terms


def log_sigmoid(x: npt.NDArray[Any]) -> Array:
    """log(1 / (1 + exp(-x))) without overflow."""
    result: Array = -np.logaddexp(0, -x).astype(np.float32)
    return result


def predict_samples(
    model: Ranker, scoring: Scoring, tables: FeatureTables, store: FeatureStore, part: str
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Array]]:
    """(columns of the samples, p_positive and log_watch) of a whole part, in file order."""
    truth, out = Predictor(model, tables, store).events(part)
    p = np.exp(log_sigmoid(scoring.label(out.label)))
    return truth, {"p_positive": p, "log_watch": out.log_watch}


def ranker_metrics(
    model: Ranker, scoring: Scoring, tables: FeatureTables, store: FeatureStore, part: str
) -> dict[str, float]:
    """auc, per_user_auc, log_loss and ece of the label; with watch times, the error of their log.

    Empty for data that has neither.
    """
    truth, predicted = predict_samples(model, scoring, tables, store, part)
    label, metrics = truth["label"], {}
    if model.has_label:
        p = predicted["p_positive"]
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
