"""Measure a run's served ensemble with perf_analyzer over gRPC, on requests of real users."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triton_repo import perf_analyzer
from triton_repo.client import MODEL, Client, Input
from triton_repo.server import RunningServer, running_server
from workflow.console import Report, no_report
from workflow.errors import ConfigError, MissingArtifactError
from workflow.run import Run, read_json, write_json

NUM_REQUESTS = 1_000
_MAX_PARTS = 4  # of the events; the latest ones would be one kind of user, so they are spread
_WARM_UP_S = 1.0


def bench(
    run: Run,
    *,
    concurrencies: Sequence[int] = (1, 4, 16),
    duration_s: float = 5.0,
    report: Report = no_report,
) -> dict[str, Any]:
    """Latency, throughput and the server's CPU time at several concurrencies.

    Uses the run's live server, or one of its own. The load generator runs on the same machine
    and takes its share of the cores; its CPU time is not counted.

    Args:
        concurrencies: requests in flight at a time.
        duration_s: measured time per concurrency.
    Returns:
        What `run.benchmark/bench.json` then holds; "results" has one entry per concurrency.
    Raises:
        ConfigError: a concurrency or duration that cannot be measured.
        MissingArtifactError: nothing was exported.
        ServingError: no server, or perf_analyzer does not run.
    """
    _check(concurrencies, duration_s)
    facts = _facts(run)
    results = []
    with running_server(run) as server, tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        command = perf_analyzer.locate()
        requests = Path(folder) / "requests.json"
        with Client(server.grpc_url, credentials=server.credentials) as client:
            rows = sample_requests(run, client.inputs())
            requests.write_text(json.dumps({"data": rows}), encoding="utf-8")
            load = _Load(command, requests, server, client)
            load.at(1, _WARM_UP_S)
            for done, concurrency in enumerate(concurrencies):
                report(done, len(concurrencies), f"{concurrency} at a time")
                results.append(load.at(concurrency, duration_s))
    report(len(concurrencies), len(concurrencies), "")
    result = {"results": results, **facts}
    write_json(run.benchmark / "bench.json", result)
    return result


def _check(concurrencies: Sequence[int], duration_s: float) -> None:
    wrong = [one for one in concurrencies if not 1 <= one <= 1024]
    if wrong or not concurrencies:
        raise ConfigError(
            f"concurrency {wrong[0] if wrong else 'missing'}", expected="1 to 1024, at least one"
        )
    if not 0 < duration_s <= 600:
        raise ConfigError(f"duration {duration_s:g} s", expected="more than 0, at most 600")


class _Load:
    """perf_analyzer pointed at one server with one set of requests."""

    def __init__(
        self, command: list[str], requests: Path, server: RunningServer, client: Client
    ) -> None:
        self.command = command
        self.requests = requests
        self.server = server
        self.client = client

    def at(self, concurrency: int, duration_s: float) -> dict[str, Any]:
        """One entry of "results"."""
        cpu_before, count_before = self.server.cpu_seconds(), self.client.request_count()
        measured = perf_analyzer.measure(
            self.command,
            model=MODEL,
            grpc_url=self.server.grpc_url,
            credentials=self.server.credentials,
            input_file=self.requests,
            concurrency=concurrency,
            duration_s=duration_s,
        )
        # perf_analyzer's own warm-up requests are in both numbers.
        cpu_s = self.server.cpu_seconds() - cpu_before
        count = self.client.request_count() - count_before
        return {
            "concurrency": concurrency,
            "p50_ms": measured.p50_ms,
            "p95_ms": measured.p95_ms,
            "p99_ms": measured.p99_ms,
            "requests_per_s": measured.requests_per_s,
            "server_cpu_ms_per_request": round(1000 * cpu_s / max(count, 1), 3),
        }


# --- requests ------------------------------------------------------------------------------------
def sample_requests(
    run: Run, inputs: dict[str, Input], count: int = NUM_REQUESTS, seed: int = 7
) -> list[dict[str, list[Any]]]:
    """`count` requests as perf_analyzer takes them: input name -> [value].

    Each is an event of the run: its user, time and context. So active users ask more often, as
    they do in life. Null context is left out of the request.

    Raises:
        MissingArtifactError: the run has no validated data.
    """
    import pyarrow.parquet as pq

    parts = _event_parts(run)
    rng = np.random.default_rng(seed)
    user_ids = pq.read_table(run.data / "users.parquet", columns=["user_id"]).column("user_id")
    rows: list[dict[str, list[Any]]] = []
    for part in parts:
        names = set(pq.read_schema(part).names)
        context = [name for name in inputs if name in names and name != "user_id"]
        events = pq.read_table(part, columns=["user_row", "timestamp", *context])
        known = np.flatnonzero(events.column("user_row").to_numpy() > 0)
        wanted = min(len(known), -(-count // len(parts)))
        picked = rng.choice(known, size=wanted, replace=False)
        for event in events.take(picked).to_pylist():
            user_id = user_ids[event["user_row"] - 1].as_py()
            rows.append(_request(user_id, event, inputs, context))
    return [rows[index] for index in rng.permutation(len(rows))[:count]]


def _event_parts(run: Run) -> list[Path]:
    folder = run.require(run.data / "events", "validated data", "marquee validate")
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise MissingArtifactError(
            f"no events in {folder}", next_step=f"marquee validate --force --run {run}"
        )
    every = np.linspace(0, len(parts) - 1, min(len(parts), _MAX_PARTS)).astype(int)
    return [parts[index] for index in every]


def _request(
    user_id: Any, event: dict[str, Any], inputs: dict[str, Input], context: list[str]
) -> dict[str, list[Any]]:
    values = {"user_id": user_id, **{name: event[name] for name in context}}
    if "time" in inputs:
        values["time"] = event["timestamp"]
    return {
        name: [str(value) if inputs[name].datatype == "BYTES" else int(value)]
        for name, value in values.items()
        if value is not None
    }


# --- what was measured ---------------------------------------------------------------------------
def _facts(run: Run) -> dict[str, Any]:
    """Sizes and quality that the numbers belong to, the machine and the time."""
    run.require(run.repository, "model repository", "marquee export")
    data = read_json(run.require(run.data / "report.json", "validated data", "marquee validate"))
    index = read_json(run.require(run.index / "report.json", "index report", "marquee index"))
    return {
        "num_videos": data.get("num_videos"),
        "num_candidates": index.get("num_candidates"),
        "recall_vs_exact": index.get("recall_vs_exact"),
        "hardware": machine(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on: {"cpu", "cores", "memory_gb"}."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
    }


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
