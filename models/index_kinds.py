"""FAISS indexes for maximum inner product, built for the queries that will be asked.

Candidate vectors are not alike: learned parts of similar length, co-watch parts that differ in
length a thousandfold and that most queries do not ask about, and a bias. Lists of an IVF index made
by clustering such vectors as they are hold nothing in common, and a list's mean says little about
its best video. Here queries decide both:

1. Videos are clustered where distance means difference of score: |y - z|² is the mean squared
   difference of the scores of two videos over the sample of queries.
2. The vector that a query is compared with to choose lists is fitted: the linear function of the
   query that predicts a list's best score, by ridge regression from the list's mean.

The result is an ordinary FAISS index over the vectors themselves: nothing else is needed to search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
BATCH = 20_000
SEED = 7
MIN_WEIGHT = 1e-6  # of a direction that no query has, against the strongest one
PER_LIST = 64  # videos that k-means reads per list
RIDGE = 0.01
GROUP = 16
# Pages of the file itself, shared by every process that reads it; FAISS before 1.11 copies them.
MAPPED = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)


def read_index(path: str, kind: str, effort: int) -> Any:
    """A written index, mapped rather than read, ready to search with `effort`."""
    index = faiss.read_index(path, MAPPED)
    set_effort(index, kind, effort)
    return index


def ivf_of(index: Any) -> Any:
    """The IVF index itself, also where vectors are padded in front of it."""
    return faiss.downcast_index(faiss.extract_index_ivf(index))


def set_effort(index: Any, kind: str, effort: int) -> None:
    """Set nprobe of an IVF index or efSearch of an HNSW index; flat indexes have none."""
    if kind.startswith("ivf"):
        faiss.extract_index_ivf(index).nprobe = effort
    elif kind == "hnsw":
        index.hnsw.efSearch = effort


def flat(vectors: Vectors) -> Any:
    """Exact search."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    for part in _parts(len(vectors)):
        index.add(np.ascontiguousarray(vectors[part]))
    return index


def hnsw(vectors: Vectors) -> Any:
    """A graph of neighbours by inner product."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(np.ascontiguousarray(vectors))
    return index


class QueryLists:
    """Which list a video is in, and what a query is compared with to choose lists.

    Attributes:
        assigned: int64 [num_videos].
        probes: float32 [lists, dim].
    """

    def __init__(self, assigned: Int64, probes: Vectors) -> None:
        self.assigned, self.probes = assigned, probes

    @classmethod
    def fitted(cls, vectors: Vectors, queries: Vectors) -> QueryLists:
        """Cluster, assign, fit; see the module's text. Without queries, videos stand for them."""
        queries = queries if len(queries) else np.asarray(vectors[:BATCH])
        count = list_count(len(vectors))
        forward, back = score_space(queries)
        centres = _k_means(vectors, forward, count)
        assigned = _nearest(vectors, forward, centres)
        probes = _fit_probes(vectors, assigned, centres, queries, back)
        return cls(assigned, probes)

    def index(self, vectors: Vectors, *, half: bool) -> Any:
        """An IVF index of the vectors as float32, or as half precision numbers."""
        width = self.probes.shape[1]
        # FAISS compares half precision numbers quickly only in whole groups of 16.
        index = _empty_ivf(_padded(self.probes, width + -width % GROUP if half else width), half)
        for number, size in enumerate(np.bincount(self.assigned, minlength=index.nlist)):
            # Room for exactly these, or growing lists would take up to twice the memory.
            index.invlists.resize(number, int(size))
            index.invlists.resize(number, 0)
        for part in _parts(len(vectors)):
            block = _padded(vectors[part], index.d)
            lists = np.ascontiguousarray(self.assigned[part])
            index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(lists))
        if not half:
            return index
        padding = faiss.RemapDimensionsTransform(width, index.d, False)
        whole = faiss.IndexPreTransform(padding, index)
        whole.own_fields = True
        padding.this.disown()
        index.this.disown()
        return whole


def _empty_ivf(probes: Vectors, half: bool) -> Any:
    count, dim = probes.shape
    inner = faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(probes)
    if half:
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, count, kind, inner, False)
    else:
        index = faiss.IndexIVFFlat(quantizer, dim, count, inner)
    index.is_trained = True
    index.own_fields = True
    quantizer.this.disown()
    return index


def _padded(vectors: Vectors, width: int) -> Vectors:
    """With zeros up to `width`; contiguous."""
    extra = width - vectors.shape[1]
    whole = np.pad(vectors, ((0, 0), (0, extra))) if extra else vectors
    return np.ascontiguousarray(whole)


def list_count(num_videos: int) -> int:
    """About 4 sqrt(n) lists, a power of two, of at least 39 videos on average."""
    lists = int(2 ** np.round(np.log2(4 * np.sqrt(max(num_videos, 1)))))
    return max(1, min(lists, num_videos // 39))


def score_space(queries: Vectors) -> tuple[Vectors, Vectors]:
    """(to videos, to queries): float32 [dim, dim] each, the inverse transpose of one another.

    With y = x @ to_videos, |y - z|² is the mean of (score difference)² over the queries; inner
    products stay what they are when queries are multiplied by the other matrix.
    """
    moment = queries.T.astype(np.float64) @ queries / max(len(queries), 1)
    weight, axes = np.linalg.eigh(moment)
    root = np.sqrt(np.maximum(weight, max(weight[-1], 1e-30) * MIN_WEIGHT))
    return (axes * root).astype(np.float32), (axes / root).astype(np.float32)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def _k_means(vectors: Vectors, forward: Vectors, count: int) -> Vectors:
    drawn = np.random.default_rng(SEED).permutation(len(vectors))[: PER_LIST * count]
    sample = np.asarray(vectors[np.sort(drawn)]) @ forward
    means = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=10,
        seed=SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=PER_LIST,
    )
    means.train(sample)
    centres: Vectors = means.centroids
    return centres


def _nearest(vectors: Vectors, forward: Vectors, centres: Vectors) -> Int64:
    search = faiss.IndexFlatL2(centres.shape[1])
    search.add(centres)
    parts = [search.search(vectors[part] @ forward, 1)[1][:, 0] for part in _parts(len(vectors))]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _fit_probes(
    vectors: Vectors, assigned: Int64, centres: Vectors, queries: Vectors, back: Vectors
) -> Vectors:
    """Linear functions of a query that predict each list's best score; float32 [lists, dim]."""
    asked = queries @ back
    best = _best_scores(vectors, assigned, len(centres), queries)
    error = best - asked @ centres.T
    moment = asked.T.astype(np.float64) @ asked / len(asked) + RIDGE * np.eye(asked.shape[1])
    change = np.linalg.solve(moment, asked.T.astype(np.float64) @ error / len(asked))
    probes = (centres.T + change).T @ back.T.astype(np.float64)
    return np.ascontiguousarray(probes, np.float32)


def _best_scores(
    vectors: Vectors, assigned: Int64, count: int, queries: Vectors
) -> npt.NDArray[np.float32]:
    """Each query's best score in each list; float32 [n, lists]. Empty lists get the lowest."""
    order = np.argsort(assigned, kind="stable")
    best = np.full((len(queries), count), -np.inf, np.float32)
    for part in _parts(len(order)):
        rows = order[part]
        scores = queries @ np.asarray(vectors[rows]).T
        lists, starts = np.unique(assigned[rows], return_index=True)
        found = np.maximum.reduceat(scores, starts, axis=1)
        best[:, lists] = np.maximum(best[:, lists], found)
    return np.where(np.isfinite(best), best, best[np.isfinite(best)].min(initial=0.0))
