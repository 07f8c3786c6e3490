"""Videos that come after training: what the trained models make of them."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.cold import cold_boost
from models.inputs import FeatureTables
from models.metrics import Lists
from models.ranker import load_ranker
from models.retriever import load_two_tower
from models.two_tower import TwoTower
from models.weights import fold_videos, ranker_weights
from workflow.config import Config
from workflow.features.encoded import FeatureStore
from workflow.features.spec import OUT_OF_VOCABULARY, FeatureSpec
from workflow.run import Run

Array = npt.NDArray[np.float32]
Encoded = dict[str, npt.NDArray[Any]]
BOOST_QUERIES = 500


class NewVideos:
    """A run's models, applied to encoded videos (workflow.features.new_videos).

    Args:
        run: the run whose models are loaded.
    """

    def __init__(self, run: Run, config: Config) -> None:
        self.run, self.config = run, config
        self.store = FeatureStore(run)
        self.spec = FeatureSpec.load(self.store.root / "spec.json")
        self.tables = FeatureTables(self.store, self.spec)

    def vectors(self, encoded: Encoded) -> Array:
        """Candidate vectors without an id, which the tower is trained for (blocks.drop_ids).

        Their offset is the one of videos that nobody has watched, their share of the candidates
        (models/cold.py) included, where training knew such videos.

        Returns:
            float32 [n, output_dim].
        """
        model = load_two_tower(self.run, self.config, self.tables)
        return embed(model, self.spec, encoded)

    def boost(self, vectors: Array, catalogue: Array, queries: Array) -> np.float32:
        """What to add to the last column of new vectors where training had no unwatched video.

        Args:
            vectors: float32 [n, dim], new ones; catalogue: float32 [num_videos, dim].
            queries: float32 [m, dim] of real requests.
        """
        if (np.asarray(self.store.video("video_index"))[1:] == OUT_OF_VOCABULARY).any():
            return np.float32(0)  # their offset has it
        asked = queries[:BOOST_QUERIES]
        none = np.zeros((1, catalogue.shape[1]), np.float32)  # row 0
        scores = asked @ np.concatenate([none, catalogue, vectors]).T
        cold = np.arange(scores.shape[1]) > len(catalogue)
        empty = Lists(np.zeros(0, np.int64), np.zeros(len(asked) + 1, np.int64))
        return np.float32(cold_boost(scores, cold, empty, self.config.retriever.cold_share))

    def ranker_rows(self, encoded: Encoded) -> tuple[Array, Array]:
        """What the ranker keeps of each video: `fold_videos` of these rows alone."""
        weights = ranker_weights(load_ranker(self.run, self.config, self.tables))
        features = self.spec.of_group("video", "video_state")
        fields = {f.name: encoded[f.name] for f in features if f.kind != "continuous"}
        values = {f.name: encoded[f.name] for f in features if f.kind == "continuous"}
        return fold_videos(weights, fields, values)


def embed(model: TwoTower, spec: FeatureSpec, encoded: Encoded) -> Array:
    """Candidate vectors of encoded videos that are no rows of the model; float32 [n, dim]."""
    features = {}
    for feature in spec.candidate():
        values = encoded[feature.name]
        features[feature.name] = tf.constant(values[:, None] if values.ndim == 1 else values)
    # Row 0 is padding: nobody has watched it either, so its offset is that of new videos.
    rows = tf.zeros([len(encoded["video_index"])], tf.int32)
    vectors: Array = model.candidate(features, rows).numpy()
    return vectors
