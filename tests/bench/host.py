"""What the host does to CPU time: the same loop, without rests and with rests between.

    python tests/bench/host.py

A loop of additions needs no memory, so it should take the same CPU time however it is called. On a
virtual machine whose cores are shared it does not: what runs after a rest is slower for many
milliseconds, most likely since the host gave the core's other thread to somebody else meanwhile. A
server rests between requests, a loop in process does not. Prints, by length of the rests, the CPU
milliseconds of the loop (10th percentile, median, 90th), taken in turns.
"""

from __future__ import annotations

import json
import statistics
import time

ADDITIONS, ROUNDS, CALLS = 100_000, 6, 150
RESTS_MS = (0, 1, 10)


def loop() -> int:
    total = 0
    for i in range(ADDITIONS):
        total += i
    return total


def cpu_ms(rest_ms: int) -> list[float]:
    """Of each call."""
    took = []
    for _ in range(CALLS):
        if rest_ms:
            time.sleep(rest_ms / 1_000)
        started = time.thread_time_ns()
        loop()
        took.append((time.thread_time_ns() - started) / 1e6)
    return took


def main() -> None:
    took: dict[int, list[float]] = {rest_ms: [] for rest_ms in RESTS_MS}
    for _ in range(ROUNDS):
        for rest_ms in RESTS_MS:
            took[rest_ms] += cpu_ms(rest_ms)
    found = {}
    for rest_ms, values in took.items():
        tenths = statistics.quantiles(values, n=10)
        found[f"rests of {rest_ms} ms"] = [round(tenths[at], 2) for at in (0, 4, 8)]
    print(json.dumps({"cpu_ms_p10_median_p90": found}, indent=2))


if __name__ == "__main__":
    main()
