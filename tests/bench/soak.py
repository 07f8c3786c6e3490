"""Bar: N minutes (30) at 80% load: no error, memory flat within 5%.

    .venv/bin/python tests/bench/soak.py RUN [MINUTES]

Serves the run by itself. Capacity is measured anew every 20 seconds, at 32 callers for two, as
other work on the machine changes it; the load is 80% of that. Memory is that of the server and its
stages, after the first tenth of the time against the most after it. Exit status 1 when a bar is
missed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import psutil
from load import Load, Outcome, payloads

from triton_repo.server import running_server
from workflow.run import Run

BAR_GROWTH = 1.05
LOOK_S = 2.0
CALLERS, LOAD, MEASURE_S, ROUND_S = 32, 0.8, 2.0, 20.0


def memory_mb(pid: int) -> dict[str, float]:
    """Private and shared resident memory of the server and each stage, each page once."""
    root = psutil.Process(pid)
    return {_name(one): one.memory_full_info().pss / 1e6 for one in (root, *root.children())}


def _name(process: psutil.Process) -> str:
    """`retrieval` of a Python stage's process, which has its model's folder on its command line."""
    words = [Path(word) for word in process.cmdline() if word.endswith("model.py")]
    return words[0].parents[1].name if words else process.name()


def whole(outcomes: list[Outcome]) -> Outcome:
    """One outcome of several phases."""
    result = Outcome()
    for one in outcomes:
        result.seconds += one.seconds
        result.sent += one.sent
        result.answered_s += one.answered_s
        result.refused_s += one.refused_s
        result.errors += one.errors
    return result


def rounds(load: Load, minutes: float) -> tuple[list[float], list[Outcome]]:
    """Capacities measured, and what became of all requests, those of measuring included."""
    capacities, outcomes = [], []
    ends = time.monotonic() + minutes * 60
    while time.monotonic() < ends:
        most = load.at_concurrency(CALLERS, MEASURE_S)
        capacities.append(most.per_s)
        outcomes += [most, load.at_rate(LOAD * most.per_s, ROUND_S - MEASURE_S)]
    return capacities, outcomes


def main(run: str, minutes: float = 30.0) -> int:
    with running_server(Run(Path(run))) as server:
        load = Load(server.grpc_url, payloads(Run(Path(run)), server))
        load.at_concurrency(CALLERS, 10)
        seen: list[dict[str, float]] = []
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_S):
                seen.append(memory_mb(server.pid))

        watcher = threading.Thread(target=look)
        watcher.start()
        started = time.monotonic()
        capacities, outcomes = rounds(load, minutes)
        ended.set()
        watcher.join()
    outcome = whole(outcomes)
    totals = [sum(one.values()) for one in seen]
    first = totals[len(seen) // 10]
    most = max(totals[len(seen) // 10 :])
    result = {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "capacity_per_s": [round(min(capacities)), round(max(capacities))],
        "sent": outcome.sent,
        "answered": len(outcome.answered_s),
        "refused": len(outcome.refused_s),
        "errors": dict(outcome.errors),
        "p50_ms": round(outcome.p_ms(50), 2),
        "p99_ms": round(outcome.p_ms(99), 2),
        "memory_mb": [round(first, 1), round(most, 1), round(totals[-1], 1)],
        "memory_mb_by_process": {
            name: [round(one[name], 1) for one in seen[len(seen) // 10 :: 60]] for name in seen[-1]
        },
        "memory_ratio": round(most / first, 3),
    }
    print(json.dumps(result, indent=2))
    good = len(outcome.answered_s) == outcome.sent and most <= first * BAR_GROWTH
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
