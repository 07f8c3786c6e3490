"""Deploys and rolls back a served run under load; counts failed requests and mixed answers.

    PYTHONPATH=. .venv/bin/python tests/bench/swap.py --run RUN [--swaps 50] [--concurrency 16]

The bundles are copies of the run's export in which each stage answers differently, so an answer
made by stages of two bundles is the answer of neither. Every answer is compared with the one that
the bundle it names gives in this process. Exit status 1 when a request failed or an answer mixed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.bundles import Mixtures, variant
from triton_repo.bench import sample_requests
from triton_repo.client import Client
from triton_repo.deploy import deploy, rollback
from triton_repo.deployment import Deployment
from triton_repo.ports import free_ports
from workflow.console import Output
from workflow.errors import ServingError
from workflow.run import Run

NUM_BUNDLES, NUM_REQUESTS, TOLERANCE = 4, 40, 1e-4


class Load:
    """Callers that keep asking and check every answer."""

    def __init__(self, url: str, requests: list[dict[str, Any]], expected: Any) -> None:
        self.url, self.requests, self.expected = url, requests, expected
        self.stopped = threading.Event()
        self.answers: Counter[int] = Counter()
        self.failed: list[str] = []
        self.mixed: list[tuple[int, int]] = []
        self.latencies_s: list[float] = []

    def caller(self, first: int) -> None:
        """One caller, until stopped."""
        row = first
        with Client(self.url, timeout_s=60) as client:
            while not self.stopped.is_set():
                row = (row + 1) % len(self.requests)
                started = time.monotonic()
                try:
                    answer = client.recommend(**self.requests[row])
                except ServingError as error:
                    self.failed.append(str(error))
                    continue
                self.latencies_s.append(time.monotonic() - started)
                self.answers[answer.version] += 1
                ids, scores = self.expected[answer.version][row]
                same = answer.video_ids.tolist() == ids
                if not same or np.abs(answer.scores - scores).max() > TOLERANCE:
                    self.mixed.append((answer.version, row))


def requests_of(run: Run, client: Client) -> list[dict[str, Any]]:
    rows = sample_requests(run, client.inputs(), NUM_REQUESTS)
    names = ("user_id", "time")
    return [{name: row[name][0] for name in names} for row in rows]


def pages(local: Mixtures, requests: list[dict[str, Any]], way: tuple[int, ...]) -> list[Any]:
    users = [one["user_id"] for one in requests]
    dtype = object if isinstance(users[0], str) else np.int64
    users = [user.encode() if isinstance(user, str) else user for user in users]
    inputs = {
        "user_id": np.array(users, dtype)[:, None],
        "time": np.array([one["time"] for one in requests])[:, None],
    }
    answer = local.answer(inputs, way)
    ids = answer["video_id"].tolist()
    ids = [[one.decode() if isinstance(one, bytes) else one for one in row] for row in ids]
    return list(zip(ids, answer["score"], strict=True))


def hidden_mixtures(local: Mixtures, requests: list[Any], expected: Any) -> int:
    """Mixed answers that could not be told from a bundle's own; must be none."""
    hidden = 0
    for way in local.mixed():
        for row, (ids, scores) in enumerate(pages(local, requests, way)):
            for own in expected.values():
                gap = np.abs(scores - own[row][1]).max()
                hidden += bool(ids == own[row][0] and gap <= TOLERANCE)
    return hidden


def measure(run: Run, folder: Path, swaps: int, concurrency: int) -> dict[str, Any]:
    runs = {version: Run(folder / str(version)) for version in range(1, NUM_BUNDLES + 1)}
    for version, one in runs.items():
        variant(run.repository, one.repository, version, mark=version)
    local = Mixtures({version: one.repository for version, one in runs.items()})
    place, output = Deployment(folder / "deployment"), Output(as_json=True)
    deploy(place, runs[1], None, output)
    with served(place) as url, Client(url) as client:
        requests = requests_of(run, client)
        expected = {version: pages(local, requests, (version,) * 3) for version in runs}
        hidden = hidden_mixtures(local, requests, expected)
        load = Load(url, requests, expected)
        threads = [threading.Thread(target=load.caller, args=(n,)) for n in range(concurrency)]
        for thread in threads:
            thread.start()
        seconds = []
        try:
            for number in range(swaps):
                started = time.monotonic()
                if number % 5 == 4:
                    rollback(place, None, output)
                else:
                    live = place.pointer().live or 1
                    deploy(place, runs[live % NUM_BUNDLES + 1], None, output)
                seconds.append(time.monotonic() - started)
                time.sleep(0.3)
        finally:
            load.stopped.set()
            for thread in threads:
                thread.join()
    latencies = 1000 * np.array(load.latencies_s)
    return {
        "swaps": len(seconds),
        "rollbacks": len(seconds) // 5,
        "concurrency": concurrency,
        "answers": int(sum(load.answers.values())),
        "answers_by_bundle": {str(k): v for k, v in sorted(load.answers.items())},
        "failed": len(load.failed),
        "first_failure": next(iter(load.failed), None),
        "mixed": len(load.mixed),
        "undetectable_mixtures": hidden,
        "swap_s_median": round(float(np.median(seconds)), 2),
        "p50_ms": round(float(np.median(latencies)), 1),
        "p99_ms": round(float(np.quantile(latencies, 0.99)), 1),
        "max_ms": round(float(latencies.max()), 1),
    }


@contextmanager
def served(place: Deployment) -> Iterator[str]:
    """`marquee serve --deployment` in a process of its own; yields its gRPC address."""
    names = ("--grpc-port", "--http-port", "--metrics-port")
    ports = [w for pair in zip(names, map(str, free_ports(3)), strict=True) for w in pair]
    words = ["-c", "from workflow.cli import main; main()", "serve", "--json"]
    words += ["--deployment", str(place.root), *ports]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["grpc_url"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marquee-swap-") as folder:
        result = measure(Run(arguments.run), Path(folder), arguments.swaps, arguments.concurrency)
    print(json.dumps(result, indent=2))
    bad = result["failed"] or result["mixed"] or result["undetectable_mixtures"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
