"""What the ranker predicts when an exposure had shown another video."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.inputs import FeatureTables, sample_columns
from models.metrics import Float32, Float64, Int64
from models.ranker import load_ranker
from models.ranker_predict import Predictor, combined, log_sigmoid
from models.retriever import load_two_tower
from models.two_tower import query_vectors
from workflow.config import Config
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.features.state import VideoState
from workflow.run import Run


class WhatIf:
    """A run's models over its samples with the video replaced.

    The numbers of a video (its counts, its age) are those of the new video at the sample's time.
    """

    def __init__(self, run: Run, config: Config) -> None:
        self._store = FeatureStore(run)
        self._spec = FeatureSpec.load(self._store.root / "spec.json")
        self._tables = FeatureTables(self._store, self._spec)
        self._ranker = load_ranker(run, config, self._tables)
        self._predictor = Predictor(self._ranker, self._tables, self._store)
        self._two_tower = load_two_tower(run, config, self._tables)
        path = run.retriever / "candidate_vectors.npy"
        self._vectors: Float32 = np.load(path, allow_pickle=False)

    def samples(self, samples: pd.DataFrame, video_rows: Int64) -> pd.DataFrame:
        """`samples` with other videos; int64 [n] rows."""
        time = samples["timestamp"].to_numpy(np.int64)
        numbers = VideoState(self._store, self._spec).at(video_rows, time)
        return samples.assign(video_row=video_rows.astype(np.int32), **numbers)

    def predict(self, samples: pd.DataFrame, video_rows: Int64) -> dict[str, Float64]:
        """{"score", "click": p(positive), "watch_s": expected seconds}; float64 [n, m] each.

        Args:
            video_rows: int64 [n, m], m videos for each sample.
        """
        columns = {str(name): samples[name].to_numpy() for name in samples.columns}
        out = self._predictor.lists(columns, video_rows.astype(np.int32), columns["timestamp"])
        score, _ = combined(self._ranker, out, self._retrieval(columns, video_rows))
        click = np.exp(log_sigmoid(self._ranker.scoring.label(out.label)))
        result = {"score": score, "click": click}
        if self._ranker.watch_time is not None:
            durations = np.asarray(self._store.duration_s())[video_rows].ravel()
            raw = out.watch_time.reshape(-1, 1)
            watch_s, _ = self._ranker.watch_time.decode(raw, durations)
            result["watch_s"] = click * watch_s.reshape(click.shape)
        return {name: values.astype(np.float64) for name, values in result.items()}

    def _retrieval(self, columns: dict[str, npt.NDArray[Any]], video_rows: Int64) -> Float32:
        """Retrieval scores; float32 [n, m]."""
        names = sample_columns(self._spec, ranker=False)
        queries = query_vectors(self._two_tower, self._tables, {n: columns[n] for n in names})
        scores: Float32 = np.einsum("nd,nmd->nm", queries, self._vectors[video_rows])
        return scores
