"""The index stage: the FAISS index that needs least CPU time for the recall that is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np
import numpy.typing as npt

from models.index_kinds import QueryLists, flat, hnsw, set_effort
from models.inputs import FeatureTables, sample_columns
from models.queries import held_out_queries
from models.retriever import load_two_tower
from models.two_tower import query_vectors
from workflow.config import Config, IndexConfig
from workflow.console import Report, no_report
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run, replaced_folder, write_json

Vectors = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
# Each about 1.4 times the one before: the next smaller one misses the target.
EFFORTS = tuple(round(2 ** (step / 2)) for step in range(6, 25))
TIMED_QUERIES = 200
BLOCK = 1_000_000  # videos that exact search holds in memory at a time


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


def build_index(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Index the candidate vectors and choose kind and search effort by the rule of `choose`.

    Index position i holds video row i + 1. Writes index.faiss and report.json, which also lists
    every kind that was tried.

    Returns:
        {"kind", "effort", "recall_vs_exact", "num_candidates", "num_videos", "build_s",
        "search_ms", "exact_ms", "megabytes"}; see Tuned.
    """
    path = run.require(run.retriever / "candidate_vectors.npy", "retriever", "marquee train")
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)[1:]
    known, asked = real_queries(run, config)
    num_candidates = min(config.serving.num_candidates, len(vectors))
    report(0, 2, "exact search")
    sample = measure_exact(vectors, known, asked, num_candidates)
    report(1, 2, "building")
    index, chosen, tried = choose(vectors, sample, config.index)
    summary: dict[str, Any] = {
        "num_videos": len(vectors),
        "num_candidates": num_candidates,
        "exact_ms": round(sample.exact_ms, 4),
        **asdict(chosen),
    }
    with replaced_folder(run.index) as folder:
        faiss.write_index(index, str(folder / "index.faiss"))
        write_json(folder / "report.json", summary | {"tried": [asdict(one) for one in tried]})
    return summary


def real_queries(run: Run, config: Config) -> tuple[Vectors, Vectors]:
    """Query vectors of requests of the test part: (known, asked), of different users."""
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    tables = FeatureTables(store, spec)
    model = load_two_tower(run, config, tables)
    queries = held_out_queries(store, "test", sample_columns(spec, ranker=False))
    drawn = np.random.default_rng(config.seed).permutation(len(queries))
    asked = min(config.index.sample_queries, (len(queries) + 1) // 2)
    known = drawn[asked : asked + 2 * config.index.sample_queries]
    parts = (queries.take(np.sort(part)) for part in (known, drawn[:asked]))
    first, second = (query_vectors(model, tables, part.samples) for part in parts)
    return (first if len(first) else second), second


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


def choose(
    vectors: Vectors, sample: Sample, config: IndexConfig
) -> tuple[Any, Tuned, tuple[Tuned, ...]]:
    """(index, how it was tuned, every kind that was tried).

    The rule: of the kinds whose recall on held-out real queries reaches the target, the one with
    the least CPU time a query. Exact search always reaches it. Up to `flat_up_to_videos` nothing
    else is built. HNSW is built only where it is asked for: on vectors of so different lengths it
    does not reach the target, and building it takes longest.
    """
    exact = Tuned("flat", 0, 1.0, round(sample.exact_ms, 4), 0.0, _megabytes(vectors.nbytes))
    automatic = config.kind == "auto"
    if config.kind == "flat" or (automatic and len(vectors) <= config.flat_up_to_videos):
        return flat(vectors), exact, (exact,)
    index, best, tried = None, exact, [exact]
    for candidate, tuned in _tuned_kinds(vectors, sample, config):
        tried.append(tuned)
        reached = tuned.recall_vs_exact >= config.target_recall
        if not automatic or (reached and tuned.search_ms < best.search_ms):
            index, best = candidate, tuned
    return (flat(vectors) if index is None else index), best, tuple(tried)


def _tuned_kinds(
    vectors: Vectors, sample: Sample, config: IndexConfig
) -> Iterator[tuple[Any, Tuned]]:
    """The approximate kinds that `config` asks for, one after another."""
    started = time.perf_counter()
    if config.kind == "hnsw":
        index = hnsw(vectors)
        yield index, tune(index, "hnsw", sample, config.target_recall, started)
        return
    lists = QueryLists.fitted(vectors, sample.known)
    shared_s = time.perf_counter() - started
    for kind in ("ivf", "ivf_fp16") if config.kind == "auto" else (config.kind,):
        started = time.perf_counter() - shared_s
        index = lists.index(vectors, half=kind == "ivf_fp16")
        yield index, tune(index, kind, sample, config.target_recall, started)


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
    size = _megabytes(_written_bytes(index))
    return Tuned(kind, effort, round(recall, 5), round(search_ms, 4), round(build_s, 3), size)


def _written_bytes(index: Any) -> int:
    """Size of the index file, without a copy in memory."""
    sizes: list[int] = []
    writer = faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part)), 1 << 20)
    faiss.write_index(index, writer)
    del writer  # it writes what it still holds
    return sum(sizes)


def _megabytes(size: int) -> float:
    return round(size / 1e6, 1)


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
