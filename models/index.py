"""The index stage: the FAISS index that needs least CPU time for the recall that is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np

from models.index_kinds import QueryLists, flat, hnsw
from models.index_tuning import QUERIES_FILE, Sample, Tuned, Vectors, measure_exact, megabytes, tune
from models.inputs import FeatureTables, sample_columns
from models.queries import held_out_queries
from models.retriever import load_two_tower
from models.two_tower import query_vectors
from workflow.config import Config, IndexConfig
from workflow.console import Report, no_report
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run, replaced_folder, write_json


def build_index(run: Run, config: Config, report: Report = no_report) -> dict[str, Any]:
    """Index the candidate vectors and choose kind and search effort by the rule of `choose`.

    Index position i holds video row i + 1. Writes index.faiss, report.json, which also lists
    every kind that was tried, and queries.npz: what shaped and measured the index.

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
        np.savez(folder / QUERIES_FILE, known=known, asked=asked)
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


def choose(
    vectors: Vectors, sample: Sample, config: IndexConfig
) -> tuple[Any, Tuned, tuple[Tuned, ...]]:
    """(index, how it was tuned, every kind that was tried).

    The rule: of the kinds whose recall on held-out real queries reaches the target, the one with
    the least CPU time a query. Exact search always reaches it. Up to `flat_up_to_videos` nothing
    else is built. HNSW is built only where it is asked for: on vectors of so different lengths it
    does not reach the target, and building it takes longest.
    """
    exact = Tuned("flat", 0, 1.0, round(sample.exact_ms, 4), 0.0, megabytes(vectors.nbytes))
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
