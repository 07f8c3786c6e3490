"""Bar: batch answers at least 5 times as many users per CPU second as the server.

    .venv/bin/python tests/bench/batch_throughput.py [RUN] [ROUNDS]

In alternation, so that what else the machine does meets both: `marquee bench` at concurrency 32
(requests per second of server CPU; at concurrency 1 too, for comparison) and `marquee batch` for
all users with one process (users per second of its CPU: stages, rows and files, as it reports them;
and of the whole command, with imports and loading). A run with few users pays loading for little:
use one with at least 20,000. Exit status 1 when the bar is missed by the median round.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MARQUEE = str(Path(sys.executable).with_name("marquee"))
BAR = 5.0
CONCURRENCY = (1, 32)


def marquee(*words: str) -> tuple[dict[str, Any], float]:
    """(what the command printed, its CPU seconds)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([MARQUEE, *words, "--json"], check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout), used


def served_per_cpu_s(run: str) -> list[float]:
    """Requests per second of server CPU, by concurrency."""
    levels = [word for level in CONCURRENCY for word in ("-c", str(level))]
    measured, _ = marquee("bench", "--run", run, *levels, "--duration-s", "6")
    return [1000 / one["server_cpu_ms_per_request"] for one in measured["results"]]


def batch_per_cpu_s(run: str) -> tuple[float, float]:
    """Users per CPU second: of answering and writing, and of the whole command."""
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        output = str(Path(folder) / "batch")
        result, used = marquee("batch", "--run", run, "--output", output, "--workers", "1")
    return result["num_users"] / result["cpu_s"], result["num_users"] / used


def main(run: str, rounds: int) -> int:
    ratios = []
    for _ in range(rounds):
        alone, served = served_per_cpu_s(run)
        batch, whole = batch_per_cpu_s(run)
        ratios.append(batch / served)
        print(
            f"served {served:,.0f} requests, batch {batch:,.0f} users per CPU second "
            f"({whole:,.0f} with imports and loading): {batch / served:.2f} times "
            f"({batch / alone:.2f} times that of requests one at a time)"
        )
    median = statistics.median(ratios)
    print(f"median {median:.2f} times the served throughput a core (bar: at least {BAR})")
    return 0 if median >= BAR else 1


if __name__ == "__main__":
    arguments = sys.argv[1:]
    rounds = int(arguments[1]) if len(arguments) > 1 else 3
    sys.exit(main(arguments[0] if arguments else "runs/sim-100k", rounds))
