"""The index stage: a FAISS index whose search effort is chosen by measured recall."""

from __future__ import annotations

import time
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np
import numpy.typing as npt

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
EFFORTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def build_index(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Index the candidate vectors and choose the cheapest search effort that reaches the target.

    Index position i holds video row i + 1. Writes index.faiss and report.json.

    Returns:
        {"kind", "effort", "recall_vs_exact", "num_candidates", "num_videos", "build_s",
        "search_ms", "exact_ms"}; `effort` is nprobe or efSearch, 0 for a flat index; times are
        per query on one thread.
    """
    path = run.require(run.retriever / "candidate_vectors.npy", "retriever", "marquee train")
    vectors = np.load(path, allow_pickle=False)[1:]
    queries = _sample_queries(run, config)
    num_candidates = min(config.serving.num_candidates, len(vectors))
    faiss.omp_set_num_threads(1)
    report(0, 3, "exact search")
    exact, exact_ms = _timed_search(_flat(vectors), queries, num_candidates)
    summary: dict[str, Any] = {
        "num_videos": len(vectors),
        "num_candidates": num_candidates,
        "exact_ms": round(exact_ms, 4),
    }
    report(1, 3, "building")
    started = time.perf_counter()
    index, chosen = _choose(vectors, queries, exact, exact_ms, config.index)
    summary |= {"build_s": round(time.perf_counter() - started, 3), **chosen}
    with replaced_folder(run.index) as folder:
        faiss.write_index(index, str(folder / "index.faiss"))
        write_json(folder / "report.json", summary)
    return summary


def _sample_queries(run: Run, config: Config) -> Vectors:
    """Query vectors of real requests, which is what search effort must be measured on."""
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    tables = FeatureTables(store, spec)
    model = load_two_tower(run, config, tables)
    queries = held_out_queries(store, "test", sample_columns(spec, ranker=False))
    chosen = np.random.default_rng(config.seed).permutation(len(queries))
    queries = queries.take(np.sort(chosen[: config.index.sample_queries]))
    return query_vectors(model, tables, queries.samples)


def _choose(
    vectors: Vectors,
    queries: Vectors,
    exact: npt.NDArray[np.int64],
    exact_ms: float,
    config: IndexConfig,
) -> tuple[Any, dict[str, Any]]:
    """(index, {"kind", "effort", "recall_vs_exact", "search_ms"}) by the rule below.

    Small catalogues are searched exactly. Above `flat_up_to_videos`, IVF is used if it reaches
    the target recall faster than exact search, else HNSW under the same condition, else exact.
    """
    automatic = config.kind == "auto"
    if config.kind == "flat" or (automatic and len(vectors) <= config.flat_up_to_videos):
        return _flat(vectors), _chosen("flat", 0, 1.0, exact_ms)
    for kind, build in (("ivf", _ivf), ("hnsw", _hnsw)):
        if not automatic and kind != config.kind:
            continue
        index = build(vectors)
        effort, recall, search_ms = _tune(index, kind, queries, exact, config.target_recall)
        if not automatic or (recall >= config.target_recall and search_ms < exact_ms):
            return index, _chosen(kind, effort, recall, search_ms)
    return _flat(vectors), _chosen("flat", 0, 1.0, exact_ms)


def _chosen(kind: str, effort: int, recall: float, search_ms: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "effort": effort,
        "recall_vs_exact": round(recall, 5),
        "search_ms": round(search_ms, 4),
    }


def _tune(
    index: Any, kind: str, queries: Vectors, exact: npt.NDArray[np.int64], target: float
) -> tuple[int, float, float]:
    """Smallest tried effort whose recall reaches `target`: (effort, recall, ms per query)."""
    effort, recall, search_ms = 0, 0.0, 0.0
    for effort in EFFORTS:
        set_effort(index, kind, effort)
        found, search_ms = _timed_search(index, queries, exact.shape[1])
        recall = recall_against(found, exact)
        if recall >= target or (kind == "ivf" and effort >= index.nlist):
            break
    return effort, recall, search_ms


def set_effort(index: Any, kind: str, effort: int) -> None:
    """Set nprobe of an IVF index or efSearch of an HNSW index; flat indexes have none."""
    if kind == "ivf":
        index.nprobe = effort
    elif kind == "hnsw":
        index.hnsw.efSearch = effort


def recall_against(found: npt.NDArray[np.int64], exact: npt.NDArray[np.int64]) -> float:
    """Share of the exact result that was found, averaged over queries."""
    if len(exact) == 0:
        return 1.0
    kept = [
        len(np.intersect1d(a, b, assume_unique=False)) for a, b in zip(found, exact, strict=True)
    ]
    return float(np.mean(kept) / exact.shape[1])


def _timed_search(index: Any, queries: Vectors, k: int) -> tuple[npt.NDArray[np.int64], float]:
    """(positions [n, k], milliseconds per query when asked one at a time)."""
    timed = queries[:200]
    index.search(queries[:1], k)
    started = time.perf_counter()
    for row in range(len(timed)):
        index.search(timed[row : row + 1], k)
    milliseconds = (time.perf_counter() - started) * 1e3 / max(len(timed), 1)
    _, found = index.search(queries, k)
    return found, milliseconds


def _flat(vectors: Vectors) -> Any:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _ivf(vectors: Vectors) -> Any:
    lists = int(2 ** np.round(np.log2(4 * np.sqrt(len(vectors)))))
    lists = max(1, min(lists, len(vectors) // 39))
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 7
    sample = np.random.default_rng(7).permutation(len(vectors))[: 64 * lists]
    index.train(vectors[np.sort(sample)])
    index.add(vectors)
    index.own_fields = True
    quantizer.this.disown()
    return index


def _hnsw(vectors: Vectors) -> Any:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(vectors)
    return index
