"""Retrieval baselines behind one protocol: fit on training watches, score the whole catalogue.

All of them read a request's history when they score, so a user whom training never saw and a
history that has grown since are answered like any other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from scipy import linalg
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits
from typing_extensions import Self

from models.metrics import Float32
from models.watches import Watches

SECONDS_PER_DAY = 86_400
MAX_EASE_VIDEOS = 10_000  # its time grows with the cube: a minute per fit and 1.6 GB at this size
MAX_KNN_PAIRS = 2e10  # pairs of videos that a user watched, over all users: about a minute per fit


class Baseline(Protocol):
    """What every retrieval baseline does; scores of a fitted one depend on the histories only."""

    def fit(self, watches: Watches) -> Self: ...

    def scores(self, histories: csr_matrix) -> Float32:
        """Score of every video for each history.

        Args:
            histories: CSR of ones [n, num_videos + 1]; an empty row gets popularity.
        Returns:
            float32 [n, num_videos + 1], a fresh array.
        """
        ...


def too_large(watches: Watches) -> dict[str, str]:
    """Baselines that this data is too large for, and why."""
    videos = int(np.count_nonzero(watches.counts))
    pairs = float((np.bincount(watches.user_row).astype(np.float64) ** 2).sum())
    reasons = {}
    if videos > MAX_EASE_VIDEOS:
        reasons["ease"] = (
            f"{videos:,} watched videos; its time is cubic in them, so it runs up to "
            f"{MAX_EASE_VIDEOS:,}"
        )
    if pairs > MAX_KNN_PAIRS:
        reasons["item_knn"] = (
            f"{pairs:.1g} pairs of videos watched by one user; it counts each, so it runs up to "
            f"{MAX_KNN_PAIRS:.0g}"
        )
    return reasons


@dataclass
class Popularity:
    """The most watched videos; with `days`, of the last days of training."""

    days: int | None = None
    popularity: Float32 = field(init=False, repr=False)

    def fit(self, watches: Watches) -> Self:
        if self.days is not None:
            last = int(watches.timestamp.max(initial=0))
            watches = watches.since(last - self.days * SECONDS_PER_DAY + 1)
        self.popularity = watches.counts.astype(np.float32)
        return self

    def scores(self, histories: csr_matrix) -> Float32:
        return np.tile(self.popularity, (histories.shape[0], 1))


class _FromHistory:
    """A model that has nothing to say about an empty history, where popularity speaks."""

    def fit(self, watches: Watches) -> Self:
        self._popularity = watches.counts.astype(np.float32)
        self._fit(watches.matrix)
        return self

    def scores(self, histories: csr_matrix) -> Float32:
        scores = self._scores(histories)
        scores[np.diff(histories.indptr) == 0] = self._popularity
        return scores

    def _fit(self, matrix: csr_matrix) -> None:
        raise NotImplementedError

    def _scores(self, histories: csr_matrix) -> Float32:
        raise NotImplementedError


@dataclass
class ItemKNN(_FromHistory):
    """Sum of the similarities between a video and those watched, each with its `neighbours`.

    Videos are compared by who watched them, weighted by BM25 (active users say less; the lower
    `saturation`, the more popular videos gain; `length_norm` 1 takes all popularity out), as in
    the library implicit.

    Source: Sarwar et al., Item-Based Collaborative Filtering, WWW 2001; Robertson & Zaragoza, The
    Probabilistic Relevance Framework: BM25 and Beyond, 2009.
    """

    neighbours: int = 100
    saturation: float = 1.2
    length_norm: float = 0.75

    def _fit(self, matrix: csr_matrix) -> None:
        from implicit.nearest_neighbours import BM25Recommender

        model = BM25Recommender(
            K=self.neighbours + 1,  # itself is one
            K1=self.saturation,
            B=self.length_norm,
            num_threads=1,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of conversions that it makes itself
            model.fit(matrix.astype(np.float64), show_progress=False)
        self._similar = model.similarity.astype(np.float32)

    def _scores(self, histories: csr_matrix) -> Float32:
        result: Float32 = (histories @ self._similar).toarray()
        return result


@dataclass
class EASE(_FromHistory):
    """Linear item-item model with a zero diagonal, in closed form.

    Source: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019.
    """

    regularisation: float = 500.0

    def _fit(self, matrix: csr_matrix) -> None:
        self._seen = np.flatnonzero(matrix.getnnz(axis=0))
        watched = matrix[:, self._seen]
        gram = (watched.T @ watched).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += self.regularisation
        factor = linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        inverse, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self._weights = weights.astype(np.float32)

    def _scores(self, histories: csr_matrix) -> Float32:
        scores = np.full(histories.shape, -np.inf, np.float32)
        scores[:, self._seen] = histories[:, self._seen] @ self._weights
        return scores


@dataclass
class IALS(_FromHistory):
    """Matrix factorisation with implicit feedback; a request's user vector comes from its history.

    Source: Hu et al., Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008, as in
    the library implicit. `confidence` is the weight of a watch beside that of a video not watched.
    """

    factors: int = 64
    regularisation: float = 10.0
    confidence: float = 10.0
    iterations: int = 15
    seed: int = 7

    def _fit(self, matrix: csr_matrix) -> None:
        from implicit.cpu.als import AlternatingLeastSquares

        with threadpool_limits(1, "blas"):  # more only get in the way of its own loops
            self._model: Any = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularisation,
                alpha=self.confidence,
                iterations=self.iterations,
                num_threads=1,
                random_state=self.seed,
            )
            self._model.fit(matrix, show_progress=False)

    def _scores(self, histories: csr_matrix) -> Float32:
        users = self._model.recalculate_user(np.arange(histories.shape[0]), histories)
        result: Float32 = users @ self._model.item_factors.T
        return result


def candidates() -> dict[str, list[Baseline]]:
    """What is tried on validation data, per model; one candidate means nothing to choose."""
    return {
        "popularity": [Popularity()],
        "popularity_30_days": [Popularity(days=30)],
        "item_knn": [
            ItemKNN(neighbours, saturation, length_norm)
            for neighbours in (50, 100, 200)
            for saturation in (0.3, 1.2, 5.0)
            for length_norm in (0.5, 1.0)
        ],
        "ease": [EASE(strength) for strength in (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)],
        "ials": [
            IALS(factors, strength, confidence)
            for factors in (64, 128)
            for strength in (10.0, 30.0, 100.0)
            for confidence in (2.0, 5.0, 10.0)
        ],
    }
