"""What the online state costs: server CPU per request, in alternation on the same requests.

    .venv/bin/python tests/bench/online_state.py RUN [SECONDS]

Four servers of one exported run take turns: no state, an SQLite file without events, one with
20 events of every user who asks, and the same in Redis (redis-server must be installed). The
table gives the median over the rounds, and the median of the differences to no state. It also
says how long one event takes until it is acknowledged (SQLite; fsync included).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.redis_server import RedisServer
from triton_repo import perf_analyzer
from triton_repo.bench import _Load, sample_requests
from triton_repo.client import Client
from triton_repo.local import LocalPipeline
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from triton_repo.server import RunningServer
from triton_repo.templates.common.store import open_store
from workflow.features.encoded import FeatureStore
from workflow.run import Run

ROUNDS = 5
CONCURRENCIES = (1, 16)
EVENTS = 20


def main(run: Run, duration_s: float) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marquee-state-")))
        redis = RedisServer(folder / "redis")
        stack.callback(redis.kill)
        states = {
            "no state": None,
            "SQLite, no events": str(folder / "empty.sqlite"),
            f"SQLite, {EVENTS} events a user": str(folder / "full.sqlite"),
            f"Redis, {EVENTS} events a user": redis.url,
        }
        loads: dict[str, Any] = {}
        for name, state in states.items():
            server = stack.enter_context(started(run, folder, state))
            client = stack.enter_context(Client(server.grpc_url))
            rows = sample_requests(run, client.inputs())
            if state is not None and "20" in name:
                fill(run, state, rows)
            requests = folder / "requests.json"
            requests.write_text(json.dumps({"data": rows}), encoding="utf-8")
            running = RunningServer(server.grpc_url, server.http_url, "", server.pid)
            loads[name] = _Load(perf_analyzer.locate(), requests, running, client)
        in_process(run, states, rows)
        for concurrency in CONCURRENCIES:
            measure(loads, concurrency, duration_s)
        acknowledged(loads["SQLite, no events"].client, run)


def started(run: Run, folder: Path, state: str | None) -> TritonServer:
    grpc_port, http_port, metrics_port = free_ports(3)
    return TritonServer(
        run.repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port,
        log_file=folder / f"{grpc_port}.log", state=state,
    )  # fmt: skip


def fill(run: Run, state: str, rows: list[dict[str, list[Any]]]) -> None:
    """Events of every user who asks, before all requests, so that each request reads them."""
    random = np.random.default_rng(1)
    videos = FeatureStore(run).video("video_id").tolist()
    store = open_store(state, 200, 5.0)
    store.connect()
    users = {str(row["user_id"][0]).encode() for row in rows}
    picked = {user: random.choice(len(videos), EVENTS, replace=False) for user in sorted(users)}
    store.add(
        {
            user: [[1 + n, videos[at], 1, None] for n, at in enumerate(chosen)]
            for user, chosen in picked.items()
        }
    )


def in_process(run: Run, states: dict[str, str | None], rows: list[dict[str, list[Any]]]) -> None:
    """CPU of the query tower per request, by batch size."""
    stages = {name: LocalPipeline(run, state).fused.query_tower for name, state in states.items()}
    users = np.array([row["user_id"] for row in rows])
    moments = np.array([row["time"] for row in rows])
    for size in (1, 16):
        used: dict[str, list[float]] = {name: [] for name in stages}
        for _ in range(20):
            for name, stage in stages.items():
                begin = time.process_time()
                for at in range(0, 480, size):
                    chosen = slice(at, at + size)
                    stage.run({"user_id": users[chosen], "time": moments[chosen]})
                used[name].append(1e6 * (time.process_time() - begin) / 480)
        print(f"query tower in this process, batches of {size}: CPU a request")
        for name, values in used.items():
            print(f"  {name:28} {median(values):.0f} µs")


def measure(loads: dict[str, Any], concurrency: int, duration_s: float) -> None:
    for load in loads.values():
        load.at(concurrency, 1.0)
    rounds = [
        {name: load.at(concurrency, duration_s) for name, load in loads.items()}
        for _ in range(ROUNDS)
    ]
    [baseline, *_] = loads
    print(f"{concurrency} in flight: median of {ROUNDS} rounds")
    for name in loads:
        cpu = [one[name]["server_cpu_ms_per_request"] for one in rounds]
        more = [
            one - base[baseline]["server_cpu_ms_per_request"]
            for one, base in zip(cpu, rounds, strict=True)
        ]
        p50 = median(one[name]["p50_ms"] for one in rounds)
        print(f"  {name:28} CPU {median(cpu):.3f} ms (+{median(more):.3f}), p50 {p50:.2f} ms")


def acknowledged(client: Client, run: Run, count: int = 200) -> None:
    users = FeatureStore(run).user("user_id")[:count].tolist()
    video = FeatureStore(run).video("video_id")[0].item()
    times = []
    for user in users:
        begin = time.perf_counter()
        client.watched(user, video)
        times.append(1e3 * (time.perf_counter() - begin))
    print(f"one event acknowledged: p50 {median(times):.2f} ms, worst {max(times):.2f} ms")


if __name__ == "__main__":
    main(Run(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 3.0)
