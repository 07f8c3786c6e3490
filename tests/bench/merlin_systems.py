"""CPU time of Merlin Systems 23.8's own ensemble against Marquee's, on the same run, in turns.

    PYTHONPATH=. .venv/bin/python tests/bench/merlin_systems.py RUN
        [--environment DIR] [--rounds 5] [--requests 40] [--json FILE]

RUN is an exported run (tests/bench/serving_100k.py makes one with 100,000 videos). DIR (default
runs/merlin-systems) gets a virtual environment of its own with the packages of merlin_systems.txt,
and what is built in it; both are used again while nothing changed. The ensemble is that of
Merlin's example "Deploying a multi-stage RecSys with Merlin Systems": QueryFeast →
TransformWorkflow → PredictTensorflow → QueryFaiss → QueryFeast → TransformWorkflow →
UnrollFeatures → PredictTensorflow → SoftmaxSampling, exported by `Ensemble.export` and run by
Merlin's executor model.

The same on both sides: the trained query tower and ranker with their weights, the candidate
vectors, the features, the requests (user and device at the end of the log), how many candidates
are ranked and shown, the embedded tritonserver, one thread per library, one request at a time.
Before measuring, scores that Merlin's ensemble serves are compared with those of the offline
models, without their retrieval term: "scores" in the result.

Not the same, and in Merlin's favour where it matters for cost:
- Features are the latest ones of the feature store: no point-in-time history of the request's
  second, no open session, no age of a video by the request's time. Hour and weekday come with the
  request.
- Watched videos are not left out. The index is the one that QueryFaiss's own `setup_faiss` makes
  (IVF32, nprobe 8), whose recall is far below Marquee's.
- The final score has no retrieval term, since QueryFaiss drops scores.
- Ids of videos are row numbers (QueryFaiss passes int32) and text features are codes (QueryFeast
  has no text). A value that is absent counts as an unknown one.
- The page is drawn by SoftmaxSampling with the example's temperature, which is nearly uniform.
Not the same, and against Merlin by the little that it costs (its share is printed): the embedded
Triton has no TensorFlow backend, so both SavedModels are served by Python models of one call.

CPU time is that of tritonserver and all its Python stubs, user and system, over all requests of a
round. Rounds alternate; the ratio is that of the medians, with the smallest and the largest ratio
of a round. Exit status 1 when it is below the bar.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
from merlin_systems_carry import carry
from tritonclient import grpc

from models.offline import OfflineRecommender
from triton_repo.bench import machine, sample_requests
from triton_repo.client import Client
from triton_repo.embedded import embedded_triton
from triton_repo.ports import free_ports
from triton_repo.process import http_ready, tree_cpu_seconds
from triton_repo.server import running_server
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.samples import time_context
from workflow.job import Job
from workflow.run import Run, read_json, write_json

HERE = Path(__file__).parent
PACKAGES, BUILD, CARRY = (
    HERE / f"merlin_systems{end}" for end in (".txt", "_build.py", "_carry.py")
)
PIP = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
MERLIN_MODEL = "executor_model"
BAR_TIMES = 150.0
START_S, CHECKED, WARM_UP, MARQUEE_TIMES = 1200.0, 20, 5, 20


# --- environment, build ---------------------------------------------------------------------------
def environment(folder: Path) -> Path:
    """The Python of a virtual environment with the packages of merlin_systems.txt."""
    python, stamp = folder / "venv" / "bin" / "python", folder / "installed"
    digest = hashlib.sha256(PACKAGES.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == digest):
        note(f"installing Merlin Systems into {folder}")
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(python.parents[1])], check=True
        )
        names = [line for line in PACKAGES.read_text().splitlines() if "==" in line]
        tools = [name for name in names if re.match("(pip|setuptools|wheel)==", name)]
        for part in (tools, [name for name in names if name not in tools]):
            subprocess.run([str(python), *PIP, *part], check=True, env=_plain())
        stamp.write_text(digest)
    return python


def _plain() -> dict[str, str]:
    """The environment variables without those that lead to this project's packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def build(run: Run, folder: Path, python: Path) -> Path:
    """The exported repository of Merlin's ensemble; made again when run or scripts changed."""
    target, stamp = folder / "build", folder / "built"
    weights = [run.retriever / "weights.npz", run.ranker / "weights.npz"]
    digest = hashlib.sha256()
    for path in (*weights, PACKAGES, BUILD, CARRY):
        digest.update(path.read_bytes())
    if not (stamp.exists() and stamp.read_text() == digest.hexdigest()):
        shutil.rmtree(target, ignore_errors=True)
        note("carrying models and features over")
        carry(run, target)
        note("filling the feature store, exporting the ensemble")
        subprocess.run([str(python), str(BUILD), str(target)], check=True, env=_plain())
        stamp.write_text(digest.hexdigest())
    return target / "repository"


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# --- servers --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Side:
    """One served ensemble: `ask(i)` sends request i and waits for the answer."""

    pid: int
    ask: Callable[[int], Any]

    def cpu_ms(self, first: int, count: int) -> tuple[float, float]:
        """(CPU ms of the server a request, median latency in ms) of `count` requests in a row."""
        times, before = [], tree_cpu_seconds(self.pid)
        for number in range(first, first + count):
            started = time.perf_counter()
            self.ask(number)
            times.append(time.perf_counter() - started)
        cpu_s = tree_cpu_seconds(self.pid) - before
        return 1000 * cpu_s / count, 1000 * statistics.median(times)


@contextmanager
def merlin_server(repository: Path, python: Path, log: Path) -> Iterator[tuple[int, str]]:
    """(pid, gRPC address) of the embedded tritonserver with Merlin's environment."""
    triton, (grpc_port, http_port, metrics_port) = embedded_triton(), free_ports(3)
    venv = python.parents[1]
    variables = triton.environment | {
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(venv),
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "DASK_DATAFRAME__QUERY_PLANNING": "False",
    }
    ports = (("grpc", grpc_port), ("http", http_port), ("metrics", metrics_port))
    command = [str(triton.binary), f"--model-repository={repository}"]
    command += [f"--backend-directory={triton.backends}", "--allow-gpu-metrics=false"]
    command += [f"--{name}-port={port}" for name, port in ports]
    command += [f"--{name}-address=127.0.0.1" for name in ("grpc", "http")]
    command += [f"--backend-config=python,shm-region-prefix-name=merlin-{os.getpid()}-"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_S
        while not http_ready(f"http://127.0.0.1:{http_port}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"Merlin's ensemble did not start; see {log}")
            time.sleep(0.5)
        yield process.pid, f"127.0.0.1:{grpc_port}"
    finally:
        process.terminate()
        process.wait(60)


# --- requests -------------------------------------------------------------------------------------
class Requests:
    """Requests of events of the log, by users who watched something, all at the end of the log."""

    def __init__(self, run: Run, recommender: OfflineRecommender, inputs: dict[str, Any]) -> None:
        store, spec = FeatureStore(run), recommender.spec
        start, known = np.asarray(store.histories().start), np.asarray(store.user("user_id"))
        rows = [{k: v[0] for k, v in row.items()} for row in sample_requests(run, inputs)]
        self.known = known
        row_of = np.searchsorted(known, [row["user_id"] for row in rows]) + 1
        watched = start[row_of + 1] > start[row_of]
        self.time = spec.last_event + 1
        self.rows = [row for row, keep in zip(rows, watched, strict=True) if keep]
        self.context = [f.name for f in spec.of_group("context")]
        self.table = CompiledTable.load(store.root / "workflows" / "events")
        self.recommender = recommender
        self.codes = [self._codes(row) for row in self.rows]

    def _codes(self, row: dict[str, Any]) -> dict[str, int]:
        user_row = np.searchsorted(self.known, [row["user_id"]]) + 1
        offset_s = self.recommender._utc_offset_s(user_row, {})
        clock = time_context(self.time + offset_s.astype(np.int64))
        values = row | {name: int(v[0]) for name, v in clock.items()}
        return {name: self._code(name, values.get(name)) for name in self.context}

    def _code(self, name: str, value: Any) -> int:
        raw = np.array(["" if value is None else value])
        return int(self.table[name].encode(raw, np.array([value is None]))[0])

    def raw_context(self, number: int) -> dict[str, Any]:
        row = self.rows[number % len(self.rows)]
        return {k: v for k, v in row.items() if k not in ("user_id", "time")}

    def user(self, number: int) -> int:
        return int(self.rows[number % len(self.rows)]["user_id"])

    def merlin(self, client: Any, number: int) -> tuple[Any, Any]:
        """(video rows, scores) of Merlin's page, in its order."""
        codes = self.codes[number % len(self.codes)]
        tensors = [_tensor("user_id", self.user(number), np.int64, "INT64")]
        tensors += [_tensor(name, code, np.int32, "INT32") for name, code in codes.items()]
        answer = client.infer(MERLIN_MODEL, tensors)
        return answer.as_numpy("ordered_ids").ravel(), answer.as_numpy("ordered_scores").ravel()


def _tensor(name: str, value: int, dtype: Any, datatype: str) -> Any:
    tensor = grpc.InferInput(name, [1], datatype)
    tensor.set_data_from_numpy(np.array([value], dtype))
    return tensor


# --- measuring ------------------------------------------------------------------------------------
def check(requests: Requests, recommender: OfflineRecommender, client: Any) -> dict[str, float]:
    """How far Merlin's served scores are from those of the offline models."""
    errors = []
    for number in range(CHECKED):
        rows, scores = requests.merlin(client, number)
        raw = requests.raw_context(number)
        context = {
            c.name: np.array([raw.get(c.name)], object)
            for c in recommender.contract.features("context")
        }
        times = np.array([requests.time])
        samples = recommender._requests(np.array([requests.user(number)]), times, context)
        none = np.zeros(len(rows), np.float32)
        expected = recommender._score(samples, 0, rows, none, requests.time)
        errors.append(np.abs(scores - expected).max())
    return {"median_error": float(np.median(errors)), "max_error": float(np.max(errors))}


def by_model(client: Any) -> dict[str, dict[str, float]]:
    """{"calls", "ms"} a request of each of Merlin's models so far; times include what it calls."""
    stats = client.get_inference_statistics(as_json=True)["model_stats"]
    asked = {one["name"]: one["inference_stats"]["success"] for one in stats}
    total = int(asked[MERLIN_MODEL]["count"])
    return {
        name: {
            "calls": round(int(one.get("count", 0)) / total, 2),
            "ms": round(int(one.get("ns", 0)) / 1e6 / total, 2),
        }
        for name, one in asked.items()
    }


def measure(run: Run, folder: Path, rounds: int, count: int) -> dict[str, Any]:
    python = environment(folder)
    repository = build(run, folder, python)
    job = Job.load(run)
    recommender = OfflineRecommender(run, job.config, job.contract)
    note("starting both servers")
    with (
        running_server(run) as ours,
        Client(ours.grpc_url, timeout_s=30) as our_client,
        merlin_server(repository, python, folder / "triton.log") as (pid, url),
        grpc.InferenceServerClient(url) as client,
    ):
        requests = Requests(run, recommender, our_client.inputs())
        result = {"scores": check(requests, recommender, client)}
        note(f"scores compared: {result['scores']}")
        sides = {
            "merlin_systems": (Side(pid, lambda n: requests.merlin(client, n)), count),
            "marquee": (
                Side(ours.pid, lambda n: ask(our_client, requests, n)),
                MARQUEE_TIMES * count,
            ),
        }
        for side, _ in sides.values():
            side.cpu_ms(0, WARM_UP)
        return result | alternate(sides, rounds) | {"merlin_models": by_model(client)}


def ask(client: Client, requests: Requests, number: int) -> None:
    context = requests.raw_context(number)
    client.recommend(requests.user(number), time=requests.time, context=context)


def alternate(sides: dict[str, tuple[Side, int]], rounds: int) -> dict[str, Any]:
    """CPU ms and latency of each side by round, and the ratio."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, (side, count) in sides.items():
            measured[name].append(side.cpu_ms(number * count, count))
            note(f"round {number + 1}, {name}: {measured[name][-1][0]:.2f} ms of CPU a request")
    cpu = {name: [one[0] for one in many] for name, many in measured.items()}
    ratios = [m / o for m, o in zip(cpu["merlin_systems"], cpu["marquee"], strict=True)]
    median = {name: statistics.median(many) for name, many in cpu.items()}
    return {
        "ratio": round(median["merlin_systems"] / median["marquee"], 1),
        "ratio_range": [round(min(ratios), 1), round(max(ratios), 1)],
        "cpu_ms": {name: round(value, 3) for name, value in median.items()},
        "cpu_ms_rounds": {name: [round(one, 3) for one in many] for name, many in cpu.items()},
        "p50_ms": {
            name: round(statistics.median(one[1] for one in many), 2)
            for name, many in measured.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--environment", type=Path, default=Path("runs/merlin-systems"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40, help="of Merlin Systems, a round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    folder, run = options.environment.resolve(), Run(options.run)
    folder.mkdir(parents=True, exist_ok=True)
    result = measure(run, folder, options.rounds, options.requests)
    index = read_json(run.index / "report.json")
    result |= {"num_videos": index["num_videos"], "index": index["kind"], "hardware": machine()}
    if options.json:
        write_json(options.json, result)
    low, high = result["ratio_range"]
    print(json.dumps(result, indent=2))
    word = "PASS" if result["ratio"] >= BAR_TIMES else "FAIL"
    print(
        f"{word} Merlin Systems {result['cpu_ms']['merlin_systems']} ms, Marquee"
        f" {result['cpu_ms']['marquee']} ms of CPU a request: {result['ratio']} times"
        f" ({low} to {high}; bar: at least {BAR_TIMES:g})"
    )
    return 0 if result["ratio"] >= BAR_TIMES else 1


if __name__ == "__main__":
    sys.exit(main())
