"""How long pages are gone: kill -9 of the process that makes them under load, a few times.

    .venv/bin/python tests/bench/killed_stage.py RUN [TIMES]

Starts `marquee serve` for the run. The outage is the longest time without a good answer; failed
requests and the slowest one are counted. Exit status 1 when it does not come back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from triton_repo.client import Client
from triton_repo.embedded import STUB
from triton_repo.ports import free_ports
from triton_repo.tensors import FUSED
from workflow.errors import ServingError

THREADS = 4
SETTLE_S = 6.0


class Caller(threading.Thread):
    """Asks without a pause; notes (asked at, answered at, whether it was good)."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.client, self.ended = Client(url, timeout_s=30), threading.Event()
        self.asked: list[tuple[float, float, bool]] = []

    def run(self) -> None:
        while not self.ended.is_set():
            started, good = time.monotonic(), True
            try:
                self.client.recommend(1, time=1)
            except ServingError:
                good = False
            self.asked.append((started, time.monotonic(), good))


def stub_pid(server: int, stage: str) -> int:
    for child in psutil.Process(server).children():
        words = child.cmdline() if child.status() != psutil.STATUS_ZOMBIE else []
        model = Path(words[1]).parent.parent if len(words) > 1 else None  # of its model.py
        if model is not None and Path(words[0]).name == STUB and model.name == stage:
            return child.pid
    raise SystemExit(f"no process of {stage}")


def kill(server: int, url: str, stage: str) -> dict[str, float]:
    callers = [Caller(url) for _ in range(THREADS)]
    for caller in callers:
        caller.start()
    time.sleep(1)
    killed = time.monotonic()
    os.kill(stub_pid(server, stage), signal.SIGKILL)
    time.sleep(SETTLE_S)
    for caller in callers:
        caller.ended.set()
    for caller in callers:
        caller.join()
    every = [one for caller in callers for one in caller.asked if one[1] > killed]
    good_ends = sorted([killed, *(end for _, end, good in every if good)])
    last_failure = max((end for _, end, good in every if not good), default=killed)
    if not any(good and start > last_failure for start, _, good in every):
        raise SystemExit(f"{stage} did not come back")
    return {
        "outage_s": round(float(np.diff(good_ends).max()), 2),
        "last_failure_s": round(last_failure - killed, 2),
        "failed": sum(not good for _, _, good in every),
        "slowest_s": round(max(end - start for start, end, _ in every), 2),
    }


def main(run: str, times: int = 3) -> int:
    names = ("--grpc-port", "--http-port", "--metrics-port")
    ports = [word for pair in zip(names, map(str, free_ports(3)), strict=True) for word in pair]
    marquee = str(Path(sys.executable).with_name("marquee"))
    words = [marquee, "serve", "--run", run, "--json", *ports]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        served = json.loads(process.stdout.readline())
        result = [kill(served["pid"], served["grpc_url"], FUSED) for _ in range(times)]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
