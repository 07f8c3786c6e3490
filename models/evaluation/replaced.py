"""What the ranker predicts when an exposure had shown another video."""

from __future__ import annotations

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import tensorflow as tf

from models.inputs import FeatureTables, Tensors, sample_columns
from models.metrics import Float64, Int64
from models.ranker import PREDICT_BATCH, load_ranker, predict
from workflow.config import Config
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.history import DailyCounts
from workflow.features.samples import Known, video_numbers
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run
from workflow.schema import Contract


class WhatIf:
    """A run's ranker over its samples with the video replaced.

    The numbers of a video (its counts, its age) are those of the new video at the sample's time.
    """

    def __init__(self, run: Run, config: Config, contract: Contract) -> None:
        self._store = FeatureStore(run)
        self._spec = FeatureSpec.load(self._store.root / "spec.json")
        self._tables = FeatureTables(self._store, self._spec)
        self._model = load_ranker(run, config, self._tables)
        self._run_batch = tf.function(
            lambda batch: predict(self._model, self._tables, batch), reduce_retracing=True
        )
        self._contract = contract
        self._known = _known(run, self._store, self._spec, contract)
        self._compiled = CompiledTable.load(self._store.root / "workflows" / "events")

    def samples(self, samples: pd.DataFrame, video_rows: Int64) -> pd.DataFrame:
        """`samples` with other videos; int64 [n] rows."""
        changed = samples.assign(video_row=video_rows.astype(np.int32))
        for name, values in video_numbers(changed, self._contract, self._known).items():
            changed[name] = self._compiled[name].normalise(values)
        return changed

    def predict(self, samples: pd.DataFrame, video_rows: Int64) -> dict[str, Float64]:
        """{"score", "click": p(positive), "watch_s": expected seconds}; float64 [n, m] each.

        Args:
            video_rows: int64 [n, m], m videos for each sample.
        """
        columns = sample_columns(self._spec, ranker=True)
        size = max(1, PREDICT_BATCH // video_rows.shape[1])
        parts = []
        for start in range(0, len(samples), size):
            rows = samples.iloc[start : start + size]
            repeated = rows.iloc[np.repeat(np.arange(len(rows)), video_rows.shape[1])]
            chosen = video_rows[start : start + size].ravel()
            batch = self.samples(repeated, chosen)[columns]
            tensors = {name: tf.constant(batch[name].to_numpy()) for name in columns}
            parts.append(self._run_batch(tensors))
        return self._rewards(parts, video_rows.shape)

    def _rewards(self, parts: list[Tensors], shape: tuple[int, ...]) -> dict[str, Float64]:
        joined = {
            name: np.concatenate([part[name].numpy() for part in parts]).reshape(shape)
            for name in parts[0]
        }
        values = {name: array.astype(np.float64) for name, array in joined.items()}
        result = {"score": values["score"], "click": values["p_positive"]}
        if self._spec.has_watch_time:
            result["watch_s"] = values["p_positive"] * np.expm1(values["log_watch"])
        return result


def _known(run: Run, store: FeatureStore, spec: FeatureSpec, contract: Contract) -> Known:
    """Daily counts of all videos, as the features stage had them."""
    daily = DailyCounts(spec.num_videos)
    for path in sorted((run.data / "events").glob("*.parquet")):
        events = read_frame(path, columns=["video_row", "timestamp", "label"])
        video, time = events["video_row"].to_numpy(), events["timestamp"].to_numpy()
        daily.add(video, time, events["label"].to_numpy(np.float64))
    daily.finish()
    publish = np.asarray(store.video("publish_time")) if contract.has_publish_time else None
    files = store.samples("train", "valid")
    labels = np.concatenate([read_frame(path, columns=["label"])["label"] for path in files])
    prior = float(labels.mean(dtype=np.float64))
    return Known(store.histories(), daily, spec.num_videos, publish, prior)
