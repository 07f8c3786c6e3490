"""Deployments of marked bundles, and callers that know whose answer they got.

The bundles are copies of one exported bundle of which each stage answers differently, so that an
answer made by stages of two bundles is the answer of neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.bundles import Mixtures, variant
from tests.servers import serving
from triton_repo.client import Client
from triton_repo.control import ModelControl
from triton_repo.deployment import Deployment
from triton_repo.server import running_process
from workflow.console import Output
from workflow.errors import ServingError
from workflow.run import Run

USERS = 12
MOMENT = int(time.time())
OUTPUT = Output(as_json=True)


class Bundles:
    """Run folders with bundles 1, 2, … of the simulated run, and what each must answer."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.source = source
        self.runs = {version: Run(folder / str(version)) for version in (1, 2, 3)}
        for version, run in self.runs.items():
            variant(source, run.repository, version, mark=version)
        ids = np.load(next((source / "query_tower").glob("*/user_id.npy")))
        self.users = [int(user) for user in ids[:: len(ids) // USERS][:USERS]]
        self.local = Mixtures({version: run.repository for version, run in self.runs.items()})
        self.expected = {version: self.pages((version,) * 3) for version in self.runs}

    def pages(self, way: tuple[int, ...]) -> list[tuple[list[int], Any]]:
        """(ids, scores) per user when the stages come from these bundles."""
        inputs = {
            "user_id": np.array(self.users)[:, None],
            "time": np.full((len(self.users), 1), MOMENT),
        }
        answer = self.local.answer(inputs, way)
        return list(zip(answer["video_id"].tolist(), answer["score"], strict=True))

    def is_of(self, version: int, row: int, answer: Any) -> bool:
        """Whether an answer for user number `row` is the one of this bundle."""
        ids, scores = self.expected[version][row]
        return answer.video_ids.tolist() == ids and bool(
            np.allclose(answer.scores, scores, rtol=0, atol=1e-4)
        )

    def ask(self, client: Client, row: int) -> Any:
        return client.recommend(self.users[row], time=MOMENT)


@contextmanager
def served(
    marquee: Any, place: Deployment, killed: bool = False
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """`marquee serve --deployment`; yields the process and what it printed when ready."""
    with serving(marquee, "--deployment", place.root, killed=killed) as server:
        yield server.process, server.endpoint


def control_of(place: Deployment) -> ModelControl:
    server = running_process(place)
    assert server is not None
    return ModelControl(server.grpc_url, server.credentials)


class Load:
    """Callers that check each answer against the bundle that it says it is of."""

    def __init__(self, bundles: Bundles, url: str, concurrency: int) -> None:
        self.bundles, self.url = bundles, url
        self.stopped = threading.Event()
        self.failed: list[str] = []
        self.mixed: list[tuple[int, int]] = []
        self.seen: dict[int, int] = {}
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(concurrency)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, first: int) -> None:
        row = first
        with Client(self.url, timeout_s=60) as client:
            while not self.stopped.is_set():
                row = (row + 1) % USERS
                try:
                    answer = self.bundles.ask(client, row)
                except ServingError as error:
                    self.failed.append(str(error))
                    continue
                self.seen[answer.version] = self.seen.get(answer.version, 0) + 1
                if not self.bundles.is_of(answer.version, row, answer):
                    self.mixed.append((answer.version, row))

    def wait_for(self, version: int, count: int = 20, timeout_s: float = 60) -> None:
        """Until `count` more answers of this bundle came."""
        goal = self.seen.get(version, 0) + count
        deadline = time.monotonic() + timeout_s
        while self.seen.get(version, 0) < goal:
            assert time.monotonic() < deadline, (version, self.seen, self.failed[:3])
            time.sleep(0.01)
