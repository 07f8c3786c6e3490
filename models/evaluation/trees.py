"""Ranker baseline: boosted trees on the ranker's scalar features (LightGBM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.evaluation.biases import Biases
from models.evaluation.ranker_metrics import Events
from models.metrics import Float32
from workflow.features.encoded import FeatureStore
from workflow.features.spec import NULL, Feature, FeatureSpec
from workflow.frames import read_frame

MAX_INDICATORS = 64  # values of a list feature that become columns of their own
MAX_ROWS = 3_000_000  # training samples; more are sampled
MAX_ROUNDS, PATIENCE = 2000, 50
IDS = ("user_index", "video_index")


@dataclass(frozen=True)
class Samples:
    """Ranker samples of some parts as one matrix.

    Attributes:
        values: float32 [n, columns].
        names: of the columns.
        categorical: those that carry indices.
    """

    events: Events
    values: Float32
    names: list[str]
    categorical: list[str]


def read_events(store: FeatureStore, spec: FeatureSpec, part: str) -> Events:
    """What happened at the samples of a part, in file order."""
    return _events(_read(store, spec, (part,), []), spec)


def read_samples(
    store: FeatureStore, spec: FeatureSpec, biases: Biases, parts: tuple[str, ...]
) -> Samples:
    """The samples of `parts` in file order, with every scalar feature that the ranker has.

    Features of the request and counts come from the samples, those of users and videos from the
    encoded tables. Ids are target-encoded: `biases` say what each id was worth until the event.
    Lists of users and videos with few values become one column per value; histories are left to
    models that can read them. Of many training samples, MAX_ROWS are drawn.
    """
    features = [f for f in spec.features if f.group != "history" and f.name not in IDS]
    frame = _read(store, spec, parts, [f.name for f in features if not _in_table(f)])
    encodings = biases.encodings(*parts)
    if "train" in parts and len(frame) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(0).permutation(len(frame))[:MAX_ROWS])
        frame, encodings = frame.iloc[chosen].reset_index(drop=True), encodings[chosen]
    columns: dict[str, npt.NDArray[Any]] = {
        "video_bias": encodings[:, 0],
        "user_bias": encodings[:, 1],
    }
    for feature in features:
        columns |= _feature_columns(feature, frame, store)
    return Samples(
        events=_events(frame, spec),
        values=np.stack([values.astype(np.float32) for values in columns.values()], axis=1),
        names=list(columns),
        categorical=[f.name for f in features if f.kind == "categorical"],
    )


def _read(
    store: FeatureStore, spec: FeatureSpec, parts: tuple[str, ...], columns: list[str]
) -> pd.DataFrame:
    names = ["user_row", "video_row", "watched", "label", *columns]
    names += ["log_watch"] if spec.has_watch_time else []
    frames = [read_frame(path, columns=names) for path in store.samples(*parts)]
    return pd.concat(frames, ignore_index=True)


def _events(frame: pd.DataFrame, spec: FeatureSpec) -> Events:
    watch_s = np.full(len(frame), np.nan, np.float32)
    if spec.has_watch_time:
        watched = frame["watched"].to_numpy() == 1
        watch_s[watched] = np.expm1(frame["log_watch"].to_numpy(np.float32)[watched])
    return Events(
        frame["user_row"].to_numpy(np.int64), frame["label"].to_numpy(np.float32), watch_s
    )


def _in_table(feature: Feature) -> bool:
    return feature.group in ("user", "video")


def _feature_columns(
    feature: Feature, frame: pd.DataFrame, store: FeatureStore
) -> dict[str, npt.NDArray[Any]]:
    if not _in_table(feature):
        return {feature.name: frame[feature.name].to_numpy()}
    table = store.user(feature.name) if feature.group == "user" else store.video(feature.name)
    rows = frame[f"{feature.group}_row"].to_numpy()
    if not feature.is_list:
        return {feature.name: np.asarray(table)[rows]}
    if feature.cardinality > MAX_INDICATORS:
        return {}
    values = range(NULL, feature.cardinality)
    return {f"{feature.name}_{v}": (np.asarray(table) == v).any(axis=1)[rows] for v in values}


class Trees:
    """LightGBM for the label and, where there are watch times, for log watch time.

    The number of rounds, and whether indices are categories or plain numbers (by frequency), are
    chosen by validation loss; the chosen setting is refitted on train + validation.
    """

    def __init__(self, store: FeatureStore, spec: FeatureSpec, biases: Biases) -> None:
        self._store, self._spec, self._biases = store, spec, biases

    def fit(self) -> Trees:
        train, valid = self._read("train"), self._read("valid")
        chosen = [_search(train, valid, objective) for objective in self._objectives]
        del train, valid
        both = self._read("train", "valid")
        self._models = [
            _train(_data(both, o, categories), o, rounds)
            for o, (categories, rounds) in zip(self._objectives, chosen, strict=True)
        ]
        return self

    def predict(self, part: str) -> tuple[Float32, Float32 | None]:
        """(p(positive), watch seconds or None) of the samples of a part, in file order."""
        values = self._read(part).values
        p, *log_watch = [model.predict(values).astype(np.float32) for model in self._models]
        return p, np.expm1(log_watch[0]) if log_watch else None

    def _read(self, *parts: str) -> Samples:
        return read_samples(self._store, self._spec, self._biases, parts)

    @property
    def _objectives(self) -> tuple[str, ...]:
        return ("binary", "regression") if self._spec.has_watch_time else ("binary",)


def _search(train: Samples, valid: Samples, objective: str) -> tuple[bool, int]:
    """(indices as categories?, rounds) with the lowest validation loss."""
    tried = []
    for categories in (False, True):
        data = _data(train, objective, categories)
        model = _train(data, objective, MAX_ROUNDS, _data(valid, objective, categories, data))
        (loss,) = model.best_score["valid_0"].values()
        tried.append((loss, categories, model.best_iteration))
    _, categories, rounds = min(tried)
    return categories, rounds


def _data(samples: Samples, objective: str, categories: bool, reference: Any = None) -> Any:
    import lightgbm

    target, chosen = samples.events.label, np.arange(len(samples.values))
    if objective == "regression":
        target = np.log1p(samples.events.watch_s)
        chosen = np.flatnonzero(np.isfinite(target))
    return lightgbm.Dataset(
        samples.values[chosen],
        target[chosen],
        feature_name=samples.names,
        categorical_feature=samples.categorical if categories else [],
        reference=reference,
        params={"verbosity": -1},
    )


def _train(data: Any, objective: str, rounds: int, valid: Any = None) -> Any:
    import lightgbm

    parameters = {
        "objective": objective,
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 100,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": 7,
        "verbosity": -1,
    }
    known = (
        {}
        if valid is None
        else {
            "valid_sets": [valid],
            "callbacks": [lightgbm.early_stopping(PATIENCE, verbose=False)],
        }
    )
    return lightgbm.train(parameters, data, rounds, **known)
