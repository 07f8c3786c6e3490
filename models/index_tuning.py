"""How much effort an index needs for a recall, measured on the queries of real requests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from models.index_kinds import flat, set_effort
from workflow.config import Config
from workflow.run import Run

Vectors = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
# Each about 1.4 times the one before: the next smaller one misses the target.
EFFORTS = tuple(round(2 ** (step / 2)) for step in range(6, 25))
TIMED_QUERIES = 200
BLOCK = 1_000_000  # videos that exact search holds in memory at a time
QUERIES_FILE = "queries.npz"  # of the index stage: `known` and `asked` of its Sample


@dataclass(frozen=True)
class Tuned:
    """What a kind of index was measured to need.

    Attributes:
        effort: nprobe or efSearch, 0 for exact search.
        recall_vs_exact: share of the exact result that it finds, over held-out queries.
        search_ms: CPU milliseconds per query, asked one at a time on one thread.
        build_s: seconds to build it.
        megabytes: of the index file.
    """

    kind: str
    effort: int
    recall_vs_exact: float
    search_ms: float
    build_s: float = 0.0
    megabytes: float = 0.0


@dataclass(frozen=True)
class Sample:
    """Queries of real requests: `known` shape the index, `asked`, of other users, measure it.

    Attributes:
        known, asked: float32 [n, dim] each.
        exact: int64 [asked, num_candidates], what exact search finds; exact_ms is what it costs.
    """

    known: Vectors
    asked: Vectors
    exact: Int64
    exact_ms: float


def sample_queries(run: Run, config: Config) -> tuple[Vectors, Vectors]:
    """`known` and `asked` of the index stage; embedded again where it did not keep them."""
    path = run.index / QUERIES_FILE
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return kept["known"], kept["asked"]
    from models.index import real_queries  # loads TensorFlow

    return real_queries(run, config)


def measure_exact(vectors: Vectors, known: Vectors, asked: Vectors, num_candidates: int) -> Sample:
    """The sample with what exact search finds."""
    faiss.omp_set_num_threads(1)
    exact, exact_ms = exact_search(vectors, asked, num_candidates)
    return Sample(known, asked, exact, exact_ms)


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> tuple[Int64, float]:
    """`timed_search` of a flat index, block by block: vectors may be mapped and exceed memory."""
    found = np.zeros((len(queries), 0), np.int64)
    scores, total_ms = np.zeros(found.shape, np.float32), 0.0
    for start in range(0, len(vectors), BLOCK):
        block = flat(vectors[start : start + BLOCK])
        total_ms += _search_ms(block, queries, min(k, block.ntotal))
        more, positions = block.search(queries, min(k, block.ntotal))
        scores, found = np.c_[scores, more], np.c_[found, positions + start]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, found = (np.take_along_axis(one, best, axis=1) for one in (scores, found))
    return found, total_ms


def tune(index: Any, kind: str, sample: Sample, target: float, started: float = 0.0) -> Tuned:
    """The smallest tried effort whose recall reaches `target`, or the largest one.

    Args:
        started: time.perf_counter() when building began.
    """
    build_s = time.perf_counter() - started
    most = faiss.extract_index_ivf(index).nlist if kind.startswith("ivf") else EFFORTS[-1]
    efforts = [effort for effort in EFFORTS if effort < most]
    for effort in (*efforts, most):
        set_effort(index, kind, effort)
        _, found = index.search(sample.asked, sample.exact.shape[1])
        recall = recall_against(found, sample.exact)
        if recall >= target:
            break
    _, search_ms = timed_search(index, sample.asked[:TIMED_QUERIES], sample.exact.shape[1])
    size = megabytes(_written_bytes(getattr(index, "inner", index)))
    return Tuned(kind, effort, round(recall, 5), round(search_ms, 4), round(build_s, 3), size)


def recall_against(found: Int64, exact: Int64) -> float:
    """Share of the exact result that was found, averaged over queries."""
    if len(exact) == 0:
        return 1.0
    kept = [
        len(np.intersect1d(a, b, assume_unique=False)) for a, b in zip(found, exact, strict=True)
    ]
    return float(np.mean(kept) / exact.shape[1])


def timed_search(index: Any, queries: Vectors, k: int) -> tuple[Int64, float]:
    """(positions [n, k], CPU milliseconds per query when asked one at a time)."""
    milliseconds = _search_ms(index, queries, k)
    _, found = index.search(queries, k)
    return found, milliseconds


def _search_ms(index: Any, queries: Vectors, k: int) -> float:
    timed = queries[:TIMED_QUERIES]
    index.search(queries[:1], k)
    started = time.thread_time()
    for row in range(len(timed)):
        index.search(timed[row : row + 1], k)
    return (time.thread_time() - started) * 1e3 / max(len(timed), 1)


def _written_bytes(index: Any) -> int:
    """Size of the index file, without a copy in memory."""
    sizes: list[int] = []
    writer = faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part)), 1 << 20)
    faiss.write_index(index, writer)
    del writer  # it writes what it still holds
    return sum(sizes)


def megabytes(size: int) -> float:
    """Bytes as MB, rounded for a report."""
    return round(size / 1e6, 1)
