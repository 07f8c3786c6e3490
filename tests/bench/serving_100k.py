"""Bars of serving: CPU per request, latency against an echo, recall. 100k videos, 100 candidates.

    .venv/bin/python tests/bench/serving_100k.py [RUN]

Simulates 200,000 users, 100,000 videos and a million events, trains one epoch of each model
(speed does not depend on how good they are) and exports, unless the run is there already. Measures
with perf_analyzer the ensemble and, in alternation, an echo (one Python model that
takes the same request and gives an answer of the same size, without computing anything). The
median of the rounds counts. Exit status 1 when a bar is missed. Takes some minutes.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from triton_repo import perf_analyzer
from triton_repo.bench import sample_requests
from triton_repo.client import MODEL, Client
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from triton_repo.server import running_server
from workflow.job import Job
from workflow.run import Run, read_json

MARQUEE = str(Path(sys.executable).with_name("marquee"))
BAR_CPU_MS = {1: 1.6, 32: 0.9}
BAR_ECHO_TIMES = 4.0
BAR_RECALL = 0.99
ROUNDS, DURATION_S = 3, 4.0
SETTINGS = {
    "sim.num_users": 200_000,
    "sim.num_videos": 100_000,
    "sim.num_events": 1_000_000,
    "retriever.max_epochs": 1,
    "ranker.max_epochs": 1,
    "retriever.refit": "false",
    "ranker.refit": "false",
    "serving.num_candidates": 100,
}
ECHO = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = {}
        for one in config["output"]:
            shape = [1, *(int(size) if int(size) > 0 else TOP_K for size in one["dims"])]
            dtype = pb_utils.triton_string_to_numpy(one["data_type"])
            self.outputs[one["name"]] = np.zeros(shape, dtype)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensor.as_numpy()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in self.outputs.items()]
        )
"""


class Load:
    """perf_analyzer pointed at one model of one server."""

    def __init__(self, server: Any, model: str, requests: Path) -> None:
        self.server, self.model, self.requests = server, model, requests
        self.command = perf_analyzer.locate()
        self.client = Client(server.grpc_url)
        self.client.inputs(model)

    def at(self, concurrency: int) -> dict[str, float]:
        """{"p50_ms", "p99_ms", "requests_per_s", "cpu_ms"}; CPU of server and stubs."""
        cpu, count = self.server.cpu_seconds(), self.count()
        got = perf_analyzer.measure(
            self.command,
            model=self.model,
            grpc_url=self.server.grpc_url,
            input_file=self.requests,
            concurrency=concurrency,
            duration_s=DURATION_S,
        )
        cpu_ms = 1000 * (self.server.cpu_seconds() - cpu) / max(self.count() - count, 1)
        return {
            "p50_ms": got.p50_ms,
            "p99_ms": got.p99_ms,
            "requests_per_s": got.requests_per_s,
            "cpu_ms": cpu_ms,
        }

    def count(self) -> int:
        stats = self.client._client.get_inference_statistics(self.model, as_json=True)
        return int(stats["model_stats"][0]["inference_stats"]["success"].get("count", 0))


def echo_repository(ensemble: Path, folder: Path, top_k: int) -> Path:
    """A repository with one Python model that has the ensemble's tensors."""
    config = (ensemble / MODEL / "config.pbtxt").read_text()
    head = config.partition("ensemble_scheduling")[0]
    tensors = re.sub(r"^(name|platform|version_policy):.*\n", "", head, flags=re.MULTILINE)
    tensors = re.sub(r',\n\s*\{ name: "\w+_us"[^\n,]*', "", tensors)
    (folder / "echo" / "1").mkdir(parents=True)
    (folder / "echo" / "1" / "model.py").write_text(ECHO.replace("TOP_K", str(top_k)))
    body = 'backend: "python"\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n'
    body += "dynamic_batching { max_queue_delay_microseconds: 0 }\n"
    (folder / "echo" / "config.pbtxt").write_text('name: "echo"\n' + tensors + body)
    return folder


def make(run: str) -> None:
    """The run, unless it is there already."""
    if not (Path(run) / "model_repository").exists():
        changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([MARQUEE, "run", "--dataset", "sim", "--run", run, *changes], check=True)


def measure(run: Run) -> dict[str, Any]:
    """Medians over the rounds: {concurrency: {"ensemble": …, "echo": …}}."""
    top_k = Job.load(run).config.serving.default_top_k
    grpc_port, http_port, metrics_port = free_ports(3)
    with tempfile.TemporaryDirectory() as temporary, running_server(run) as server:
        folder = Path(temporary)
        requests = folder / "requests.json"
        with Client(server.grpc_url) as client:
            rows = sample_requests(run, client.inputs())
        requests.write_text(json.dumps({"data": rows}))
        with TritonServer(
            echo_repository(run.repository, folder / "repository", top_k),
            log_file=folder / "echo.log",
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
        ) as other:
            loads = {
                "ensemble": Load(server, MODEL, requests),
                "echo": Load(other, "echo", requests),
            }
            for load in loads.values():
                load.at(1)  # warm
            return {concurrency: alternate(loads, concurrency) for concurrency in BAR_CPU_MS}


def alternate(loads: dict[str, Load], concurrency: int) -> dict[str, dict[str, float]]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
    for _ in range(ROUNDS):
        for name, load in loads.items():
            rounds[name].append(load.at(concurrency))
    return {
        name: {key: round(statistics.median(one[key] for one in many), 3) for key in many[0]}
        for name, many in rounds.items()
    }


def main(folder: str) -> int:
    make(folder)
    run = Run(folder)
    index = read_json(run.index / "report.json")
    measured = measure(run)
    print(json.dumps({"index": index, "serving": measured}, indent=2))
    times = measured[1]["ensemble"]["p50_ms"] / measured[1]["echo"]["p50_ms"]
    bars = [
        (
            f"server CPU ms a request, {concurrency} at a time",
            measured[concurrency]["ensemble"]["cpu_ms"],
            bar,
        )
        for concurrency, bar in BAR_CPU_MS.items()
    ]
    bars.append(("p50 in times that of the echo", round(times, 2), BAR_ECHO_TIMES))
    bars.append(
        (
            "missed recall against exact search",
            round(1 - index["recall_vs_exact"], 4),
            1 - BAR_RECALL,
        )
    )
    for name, value, bar in bars:
        print(f"{'PASS' if value <= bar else 'FAIL'} {name}: {value} (bar: at most {bar:.3g})")
    return 0 if all(value <= bar for _, value, bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "runs/sim-100k"))
