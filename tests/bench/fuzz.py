"""Bar: 10,000 malformed or hostile requests; server alive, memory flat, each answered or refused.

    .venv/bin/python tests/bench/fuzz.py RUN [COUNT] [SEED]

Serves the run by itself. Memory is that of the server and its stages after a first tenth of the
requests (allocators and thread pools fill up once) against the end; the bar is 5%. Exit status 1
when a bar is missed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hostile import Hostile

from triton_repo.client import Client
from triton_repo.server import RunningServer, running_server
from workflow.run import Run

THREADS = 3
BAR_GROWTH = 1.05
GOOD_ENDS = {"answered", "refused", "closed"}


def memory_mb(pid: int) -> float:
    """Private and shared resident memory of the server and its stages, each page once."""
    root = psutil.Process(pid)
    return sum(one.memory_full_info().pss for one in (root, *root.children())) / 1e6


def attack(server: RunningServer, count: int, seed: int) -> Counter[tuple[str, str]]:
    def one(part: int) -> Counter[tuple[str, str]]:
        attacker = Hostile(server.grpc_url, server.http_url, seed * THREADS + part)
        try:
            return Counter(attacker.send() for _ in range(count // THREADS))
        finally:
            attacker.close()

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(one, range(THREADS)), Counter[tuple[str, str]]())


def main(run: str, count: int = 10_000, seed: int = 1) -> int:
    with running_server(Run(Path(run))) as server, Client(server.grpc_url, timeout_s=20) as client:
        good = client.recommend(1, time=1).scores.tolist()
        stages = {child.pid for child in psutil.Process(server.pid).children()}
        started = time.monotonic()
        ends = attack(server, count // 10, seed)
        before = memory_mb(server.pid)
        ends += attack(server, count - count // 10, seed + 1)
        after = memory_mb(server.pid)
        alive = client.recommend(1, time=1).scores.tolist() == good
        alive &= {child.pid for child in psutil.Process(server.pid).children()} == stages
    bad = {f"{kind}: {end}": n for (kind, end), n in ends.items() if end not in GOOD_ENDS}
    table = Counter[str]()
    for (_, end), n in ends.items():
        table[end] += n
    result = {
        "requests": ends.total(), "ends": dict(table), "without_an_answer": bad,
        "same_answer_and_stages_afterwards": alive, "seconds": round(time.monotonic() - started),
        "memory_mb": [round(before), round(after)], "memory_ratio": round(after / before, 3),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    return 0 if alive and not bad and after <= before * BAR_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
