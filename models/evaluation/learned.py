"""The trained models of a run as plain arrays for the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import models.compat  # noqa: F401

import numpy as np

from models.evaluation.ranker_metrics import Predictions
from models.index_kinds import read_index
from models.inputs import FeatureTables, sample_columns
from models.metrics import Float32, Int64, Scorer, top_k
from models.queries import Queries
from models.ranker import load_ranker
from models.ranker_predict import Predictor, combined, predict_samples
from models.retriever import load_two_tower
from models.two_tower import query_vectors
from workflow.config import Config
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json


@dataclass(frozen=True)
class Trained:
    """The models of one seed: a run folder and the settings they were trained with."""

    run: Run
    config: Config

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(self.run)

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec.load(self.store.root / "spec.json")

    @property
    def query_columns(self) -> list[str]:
        """Sample columns that queries need for the query tower and for ranking candidates."""
        names = sample_columns(self.spec, ranker=False) + sample_columns(self.spec, ranker=True)
        return [*dict.fromkeys([*names, "timestamp"])]

    @property
    def candidate_vectors(self) -> Float32:
        """float32 [num_videos + 1, dim]; row 0 is zero."""
        path = self.run.retriever / "candidate_vectors.npy"
        path = self.run.require(path, "retriever", "marquee train")
        vectors: Float32 = np.load(path, allow_pickle=False)
        return vectors

    def query_vectors(self, queries: Queries) -> Float32:
        """float32 [queries, dim]."""
        tables = FeatureTables(self.store, self.spec)
        model = load_two_tower(self.run, self.config, tables)
        columns = sample_columns(self.spec, ranker=False)
        return query_vectors(model, tables, {name: queries.samples[name] for name in columns})

    def two_tower(self, queries: Queries) -> Scorer:
        """Full-catalogue scores of the two-tower model by query position."""
        vectors, candidates = self.query_vectors(queries), self.candidate_vectors
        return lambda at: vectors[at] @ candidates.T

    def dlrm(self, part: str) -> Predictions:
        """The ranker's predictions for the samples of a part, in file order."""
        tables = FeatureTables(self.store, self.spec)
        model = load_ranker(self.run, self.config, tables)
        _, predicted = predict_samples(model, tables, self.store, part)
        return Predictions(predicted["p_positive"], predicted.get("watch_s"))

    def candidate_scores(self, queries: Queries, rows: Int64) -> Float32:
        """What the served list is sorted by, for candidates [queries, k]; float32, same shape.

        The numbers of videos are those known when the test part began, as at the last export;
        where there is no such moment (leave-last-out), those of each request's time.
        """
        store, spec = self.store, self.spec
        tables = FeatureTables(store, spec)
        predictor = Predictor(load_ranker(self.run, self.config, tables), tables, store)
        time = queries.samples["timestamp"].astype(np.int64)
        if spec.test_from:
            time = np.full(len(queries), spec.test_from, np.int64)
        out = predictor.lists(queries.samples, rows.astype(np.int32), time)
        vectors, candidates = self.query_vectors(queries), self.candidate_vectors
        retrieval = np.einsum("qd,qkd->qk", vectors, candidates[rows])
        scores, _ = combined(predictor.model, out, retrieval)
        return scores

    def candidates(self, queries: Queries) -> tuple[Int64, Int64]:
        """Best unwatched videos by exact search and by the served index.

        Returns:
            int64 [queries, num_candidates] each, best first; 0 fills up.
        """
        self.run.require(self.run.index / "index.faiss", "index", "marquee index")
        report = read_json(self.run.index / "report.json")
        path = str(self.run.index / "index.faiss")
        index = read_index(path, report["kind"], report["effort"])
        vectors, k = self.query_vectors(queries), report["num_candidates"]
        approximate = np.zeros((len(queries), k), np.int64)
        for row in range(len(queries)):  # one at a time, with the over-fetch of serving
            watched = queries.excluded[row]
            _, found = index.search(vectors[row : row + 1], min(k + len(watched), index.ntotal))
            rows = found[0][found[0] >= 0] + 1
            rows = rows[~np.isin(rows, watched)][:k]
            approximate[row, : len(rows)] = rows
        return top_k(vectors, self.candidate_vectors, queries.excluded, k), approximate
