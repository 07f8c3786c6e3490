"""Bars of a server with a million videos: start to ready, resident memory, retrieval CPU.

    .venv/bin/python tests/bench/serving_1m.py RUN [NUM_VIDEOS]

RUN is an exported run (tests/bench/serving_100k.py makes one). Its repository is copied and grown:
the vectors as tests/bench/catalogue_growth.py grows them, with an index of the kind that the rule
chooses; every table that has a row per video, those of the ONNX graphs included, by repeating its
rows. The copy is served from a folder that is deleted afterwards.

Resident memory is the proportional share (Pss) of tritonserver and its stubs after requests of
1,000 users, so a page that several of them map counts once; the bar compares it with the candidate
vectors and the ranker's rows of all videos. Exit status 1 when a bar is missed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import faiss
import numpy as np
import onnx
import psutil
from catalogue_growth import grow
from onnx import numpy_helper

from models.index import choose, real_queries
from models.index_tuning import measure_exact
from triton_repo.bench import sample_requests
from triton_repo.bundle import MANIFEST, READY, seal, verified_bundle
from triton_repo.client import Client
from triton_repo.graph import save_graph
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.job import Job
from workflow.run import Run, read_json, write_json

BAR_READY_S, BAR_MEMORY_TIMES, BAR_RETRIEVAL_MS = 20.0, 1.5, 2.0
BY_VIDEO = ("video_vector", "video_value", "video_id", "publish_time", "video_index")


def grown(run: Run, count: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """(the grown repository, the index's report)."""
    repository = folder / "repository"
    bundle = verified_bundle(run.repository)
    shutil.copytree(run.repository, repository, ignore=shutil.ignore_patterns(MANIFEST, READY))
    job = Job.load(run)
    report = _index(run, job, count, folder, next(repository.glob("retrieval/*/stage.json")))
    spec = FeatureSpec.load(FeatureStore(run).root / "spec.json")
    for file in repository.rglob("*.npy"):
        if file.stem in BY_VIDEO:
            _repeat_array(file, spec.num_videos, count)
    for file in repository.rglob("*.onnx"):
        _repeat_tables(file, spec["video_index"].cardinality, count)
    seal(repository, bundle.version, bundle.schema)
    return repository, report


def _index(run: Run, job: Job, count: int, folder: Path, settings_file: Path) -> dict[str, Any]:
    learned = np.load(run.retriever / "candidate_vectors.npy")[1:]
    parts = (job.config.retriever.embedding_dim, job.config.retriever.co_watch_dim)
    known, asked = real_queries(run, job.config)
    vectors = grow(learned, count, parts, folder / "vectors.npy")
    sample = measure_exact(vectors, known, asked[:1000], job.config.serving.num_candidates)
    index, tuned, _ = choose(vectors, sample, job.config.index)
    faiss.write_index(index, str(settings_file.with_name("index.faiss")))
    settings = read_json(settings_file) | {"kind": tuned.kind, "effort": tuned.effort}
    write_json(settings_file, settings)
    return {"kind": tuned.kind, "recall": tuned.recall_vs_exact, "search_ms": tuned.search_ms}


def _repeat_array(file: Path, known: int, count: int) -> None:
    """Rows of videos up to `count`; ids stay sorted and different. A row 0 for no video stays."""
    values = np.load(file)
    first = len(values) - known
    rows = np.r_[np.arange(first), first + np.arange(count) % known]
    longer = values[rows]
    if file.stem == "video_id":
        number = np.arange(1, count + 1)
        ids = np.char.mod(b"v%09d", number) if values.dtype.kind == "S" else number
        longer = np.concatenate([np.zeros(first, np.asarray(ids).dtype), ids])
    np.save(file, longer)


def _repeat_tables(file: Path, cardinality: int, count: int) -> None:
    model = onnx.load(str(file))
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.dims[0] == cardinality:
            table = numpy_helper.to_array(tensor)
            longer = table[np.arange(count) % cardinality]
            tensor.CopyFrom(numpy_helper.from_array(longer, tensor.name))
    file.with_suffix(".weights").unlink(missing_ok=True)
    save_graph(model, file)


def serve(run: Run, repository: Path, log: Path) -> dict[str, Any]:
    """Ready after how many seconds, hashes checked, and what is resident after requests."""
    grpc_port, http_port, metrics_port = free_ports(3)
    started = time.perf_counter()
    verified_bundle(repository)
    with TritonServer(
        repository,
        log_file=log,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
    ) as server:
        ready_s = time.perf_counter() - started
        with Client(server.grpc_url, timeout_s=30) as client:
            for row in sample_requests(run, client.inputs()):
                given = {name: values[0] for name, values in row.items()}
                user, moment = given.pop("user_id"), given.pop("time")
                answer = client.recommend(user, time=moment, context=given)
                assert len(answer.video_ids) > 0
        root = psutil.Process(server.pid)
        processes = [root, *root.children(recursive=True)]
        used = [process.memory_full_info() for process in processes]
    return {
        "ready_s": round(ready_s, 1),
        "resident_mb": round(sum(one.pss for one in used) / 1e6),
        "resident_private_mb": round(sum(one.uss for one in used) / 1e6),
    }


def main(folder: str, count: int) -> int:
    run = Run(folder)
    with tempfile.TemporaryDirectory() as temporary:
        repository, index = grown(run, count, Path(temporary))
        measured = serve(run, repository, Path(temporary) / "triton.log")
        rows = [file for file in repository.rglob("*.npy") if file.stem in BY_VIDEO]
        size = (Path(temporary) / "vectors.npy").stat().st_size
        rows_mb = round((size + sum(file.stat().st_size for file in rows)) / 1e6)
    print(json.dumps({"num_videos": count, "rows_mb": rows_mb, **index, **measured}, indent=2))
    bars = [
        ("seconds from start to ready", measured["ready_s"], BAR_READY_S),
        (
            "resident, in times the rows",
            round(measured["resident_mb"] / rows_mb, 2),
            BAR_MEMORY_TIMES,
        ),
        ("CPU ms of a search", index["search_ms"], BAR_RETRIEVAL_MS),
        ("missed recall", round(1 - index["recall"], 4), 0.01),
    ]
    for name, value, bar in bars:
        print(f"{'PASS' if value <= bar else 'FAIL'} {name}: {value} (bar: at most {bar})")
    return 0 if all(value <= bar for _, value, bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000))
