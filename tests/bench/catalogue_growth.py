"""Index kinds on catalogues of 10 thousand to 10 million videos: recall, CPU, memory, build time.

    .venv/bin/python tests/bench/catalogue_growth.py RUN [--json FILE]
    .venv/bin/python tests/bench/catalogue_growth.py RUN --sizes 10000000 --kinds ivf,ivf_fp16
    .venv/bin/python tests/bench/catalogue_growth.py RUN --sizes 10000,100000 --kinds hnsw

RUN is a trained run, best one with many videos (tests/bench/serving_100k.py makes one). A catalogue
of n videos is grown from its vectors:

- videos with co-watches and those without are kinds of their own, in the learned proportion; the
  learned part of a new video is 3/4 that of a drawn video of its kind, 1/4 that of another, plus
  noise of the kind's covariance with half its deviation, and is given the length of a third one;
- bias and co-watch part come from the drawn video as they are, the latter turned by noise of a
  tenth of its length: heavy tails and zeros stay in the proportion in which they were learned.

Queries are vectors of real requests of the run's test part; one half of the users shape the lists,
the others measure. Vectors and written indexes are mapped from disk, exact search reads a million
vectors at a time, and one index at a time is in memory. Memory in the table is what a new process
gains (resident) by reading the written index and answering all queries; CPU a query is the least of
five passes over the queries. Prints a table, and JSON with --json. Exit status 1 when a bar is
missed at a million videos.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np
import numpy.typing as npt
import psutil

from models.index import real_queries
from models.index_kinds import QueryLists, flat, hnsw, read_index
from models.index_tuning import Sample, Tuned, measure_exact, timed_search, tune
from workflow.job import Job
from workflow.run import Run, write_json

Vectors = npt.NDArray[np.float32]
KINDS = ("flat", "ivf", "ivf_fp16")
NUM_CANDIDATES, TARGET, SEED = 100, 0.99, 7
BATCH = 100_000
PASSES = 5
BAR_SIZE, BAR_RECALL, BAR_CPU_MS = 1_000_000, 0.99, 2.0


def grow(learned: Vectors, count: int, parts: tuple[int, int], path: Path) -> Vectors:
    """`count` vectors like the learned ones, written to `path` and mapped; see the module's text.

    Args:
        learned: float32 [n, dim]; those of the run.
        parts: widths of the learned and the co-watch part.
    """
    rng = np.random.default_rng(SEED)
    new = np.lib.format.open_memmap(path, "w+", np.float32, (count, learned.shape[1]))
    kinds = _kinds(learned, parts)
    for start in range(0, count, BATCH):
        rows = slice(start, min(start + BATCH, count))
        new[rows] = _resampled(learned, kinds, parts, rows.stop - rows.start, rng)
    new.flush()
    return np.load(path, mmap_mode="r")


def _kinds(learned: Vectors, parts: tuple[int, int]) -> list[tuple[npt.NDArray[Any], Vectors]]:
    """(rows, root of the covariance of the learned part) of videos with and without co-watches."""
    width = parts[0]
    has = np.abs(learned[:, width : sum(parts)]).max(axis=1) > 0
    kinds = []
    for chosen in (np.flatnonzero(has), np.flatnonzero(~has)):
        if len(chosen):
            weight, axes = np.linalg.eigh(np.cov(learned[chosen, :width].T))
            kinds.append((chosen, (axes * np.sqrt(np.maximum(weight, 0))).astype(np.float32)))
    return kinds


def _resampled(
    learned: Vectors,
    kinds: list[tuple[npt.NDArray[Any], Vectors]],
    parts: tuple[int, int],
    count: int,
    rng: np.random.Generator,
) -> Vectors:
    width, co_watch = parts[0], slice(parts[0], sum(parts))
    share = np.array([len(rows) for rows, _ in kinds]) / len(learned)
    result = np.empty((count, learned.shape[1]), np.float32)
    kind_of = rng.choice(len(kinds), size=count, p=share)
    for kind, (rows, root) in enumerate(kinds):
        mine = np.flatnonzero(kind_of == kind)
        one, other, long = (learned[rng.choice(rows, len(mine))] for _ in range(3))
        noise = rng.normal(size=(len(mine), width)).astype(np.float32) @ root.T
        moved = 0.75 * one[:, :width] + 0.25 * other[:, :width] + 0.5 * noise
        length = np.linalg.norm(long[:, :width], axis=1) / np.linalg.norm(moved, axis=1)
        turned = one[:, co_watch].copy()
        size = np.linalg.norm(turned, axis=1, keepdims=True) / np.sqrt(turned.shape[1])
        turned += 0.1 * size * rng.normal(size=turned.shape).astype(np.float32)
        result[mine] = np.concatenate(
            [moved * length[:, None], turned, one[:, sum(parts) :]], axis=1
        )
    return result


def measure(run: str, count: int, kinds: tuple[str, ...], folder: str) -> list[dict[str, Any]]:
    """One row per kind."""
    job = Job.load(Run(run))
    learned = np.load(Run(run).retriever / "candidate_vectors.npy")[1:]
    parts = (job.config.retriever.embedding_dim, job.config.retriever.co_watch_dim)
    known, asked = real_queries(Run(run), job.config)
    vectors = grow(learned, count, parts, Path(folder) / "vectors.npy")
    note(f"{count:,} videos; exact search")
    sample = measure_exact(vectors, known, asked[:1000], NUM_CANDIDATES)
    note(f"exact search takes {sample.exact_ms:.2f} ms of CPU a query; building")
    rows = []
    for index, tuned in built(vectors, sample, kinds):
        path = str(Path(folder) / "index.faiss")
        faiss.write_index(index, path)
        del index
        read = {"num_videos": count, **asdict(tuned), **in_new_process(path, tuned, asked)}
        rows.append(read)
        print(json.dumps(read), file=sys.stderr, flush=True)
    return rows


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def built(vectors: Vectors, sample: Sample, kinds: tuple[str, ...]) -> Iterator[tuple[Any, Tuned]]:
    """Each kind with the effort that reaches the target; the lists are fitted once."""
    lists, lists_s = None, 0.0
    for kind in kinds:
        started = time.perf_counter()
        if kind == "flat":
            index = flat(vectors)
            build_s = time.perf_counter() - started
            yield index, Tuned("flat", 0, 1.0, sample.exact_ms, round(build_s, 3))
            continue
        if kind == "hnsw":
            index = hnsw(vectors)
        else:
            if lists is None:
                lists = QueryLists.fitted(vectors, sample.known)
                lists_s, started = time.perf_counter() - started, time.perf_counter()
            index = lists.index(vectors, half=kind == "ivf_fp16")
            started -= lists_s
        yield index, tune(index, kind, sample, TARGET, started)
        del index  # before the next one is built


def in_new_process(path: str, tuned: Tuned, asked: Vectors) -> dict[str, float]:
    """{"megabytes", "resident_mb", "open_ms", "search_ms"} of a written index."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_read_and_search, (path, tuned.kind, tuned.effort, asked))


def _read_and_search(path: str, kind: str, effort: int, asked: Vectors) -> dict[str, float]:
    faiss.omp_set_num_threads(1)
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    index = read_index(path, kind, effort)
    open_ms = (time.perf_counter() - started) * 1e3
    index.search(asked, NUM_CANDIDATES)  # touches what queries need
    search_ms = min(timed_search(index, asked, NUM_CANDIDATES)[1] for _ in range(PASSES))
    return {
        "megabytes": round(Path(path).stat().st_size / 1e6, 1),
        "resident_mb": round((psutil.Process().memory_info().rss - before) / 1e6, 1),
        "open_ms": round(open_ms, 1),
        "search_ms": round(search_ms, 4),
    }


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        "| videos | kind | effort | recall@100 | CPU ms a query | file MB | resident MB | build s |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    names = (
        "kind",
        "effort",
        "recall_vs_exact",
        "search_ms",
        "megabytes",
        "resident_mb",
        "build_s",
    )
    for row in rows:
        cells = [f"{row['num_videos']:,}", *(str(row[name]) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(options.run, size, tuple(options.kinds.split(",")), folder)
    print(table(rows))
    if options.json:
        write_json(options.json, {"num_candidates": NUM_CANDIDATES, "rows": rows})
    reached = [row for row in rows if row["recall_vs_exact"] >= BAR_RECALL]
    missed = [
        size
        for size in {row["num_videos"] for row in rows if row["num_videos"] <= BAR_SIZE}
        if all(row["search_ms"] > BAR_CPU_MS for row in reached if row["num_videos"] == size)
    ]
    for size in missed:
        print(f"FAIL {size:,} videos: no kind reaches {BAR_RECALL} within {BAR_CPU_MS} ms")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
