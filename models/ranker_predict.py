"""What a trained ranker says about logged events and about lists of candidates."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.dlrm import Outputs, Ranker
from models.inputs import FeatureTables, Tensors, sample_columns
from models.scoring import TERMS
from models.tracing import any_length
from models.windows import WindowBatches
from workflow.features.encoded import FeatureStore
from workflow.features.state import VideoState

PREDICT_BATCH = 16_384
LIST_PAIRS = 16_384
SEEN = ("user_row", "video_row", "label", "log_watch")

Array = npt.NDArray[np.float32]


class Predictor:
    """Runs the ranker without training it.

    Args:
        model: a built ranker.
    """

    def __init__(self, model: Ranker, tables: FeatureTables, store: FeatureStore) -> None:
        self.model, self.tables, self.store = model, tables, store
        self._on_events = any_length(lambda batch: vars(model(*tables.ranker_windows(batch))))
        self._on_lists = any_length(self._score_lists)

    def _score_lists(self, samples: Tensors, rows: Any, numbers: Tensors) -> Tensors:
        query = self.tables.ranker_requests(samples)
        out: Outputs = self.model(query, self.tables.ranker_candidates(rows, numbers))
        return vars(out)

    def events(self, part: str) -> tuple[dict[str, npt.NDArray[Any]], Outputs]:
        """(columns SEEN; outputs float32 [n]) of the samples of a whole part, in file order."""
        columns = sample_columns(self.tables.spec, ranker=True)
        seen: list[Tensors] = []
        said: list[Tensors] = []
        for batch in WindowBatches(self.store.samples(part), columns, PREDICT_BATCH):
            present = batch["present"].numpy()
            seen.append({name: batch[name].numpy()[present] for name in SEEN if name in batch})
            said.append({n: v.numpy()[present] for n, v in self._on_events(batch).items()})
        return _joined(seen), Outputs(**_joined(said))

    def lists(
        self,
        samples: dict[str, npt.NDArray[Any]],
        rows: npt.NDArray[Any],
        time: npt.NDArray[np.int64],
    ) -> Outputs:
        """Outputs float32 [n, k] for candidates int [n, k] of requests with columns [n].

        Args:
            time: int64 [n], unix seconds; the videos' numbers are those of that moment.
        """
        state = VideoState(self.store, self.tables.spec)
        columns = sample_columns(self.tables.spec, ranker=True)
        size = max(1, LIST_PAIRS // max(rows.shape[1], 1))
        said: list[Tensors] = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            numbers = state.at(rows[part], time[part, None])
            request = {name: samples[name][part] for name in columns}
            said.append(self.candidates(request, rows[part], numbers))
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


def combined(model: Ranker, out: Outputs, retrieval: Array) -> tuple[Array, list[Array]]:
    """(score, its terms in the order of TERMS) of candidates; float32, shape of `retrieval`.

    Terms of tasks that the data does not have are zero.
    """
    none, scoring = np.zeros_like(retrieval), model.scoring
    terms = [
        retrieval,
        log_sigmoid(scoring.watch(out.watch)),
        log_sigmoid(scoring.label(out.label)) if model.has_label else none,
        np.exp(log_sigmoid(out.watch_time)) if model.has_watch_time else none,
    ]
    weights = [np.float32(getattr(scoring.weights, name)) for name in TERMS]
    score = sum((w * term for w, term in zip(weights, terms, strict=True)), none)
    return score.astype(np.float32), terms


def log_sigmoid(x: npt.NDArray[Any]) -> Array:
    """log(1 / (1 + exp(-x))) without overflow."""
    result: Array = -np.logaddexp(0, -x).astype(np.float32)
    return result


def predict_samples(
    model: Ranker, tables: FeatureTables, store: FeatureStore, part: str
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Array]]:
    """(columns of the samples, predictions) of a whole part, in file order.

    Predictions, float32 [n]: p_positive (calibrated; without labels 1) and, with watch times,
    watch_s (seconds if watched) and watch_quantile (free of duration).
    """
    truth, out = Predictor(model, tables, store).events(part)
    p = np.exp(log_sigmoid(model.scoring.label(out.label)))
    predicted = {"p_positive": p if model.has_label else np.ones_like(p)}
    if model.watch_time is not None:
        durations = np.asarray(store.duration_s())[truth["video_row"]]
        raw = out.watch_time[:, None]
        predicted["watch_s"], predicted["watch_quantile"] = model.watch_time.decode(raw, durations)
    return truth, predicted
