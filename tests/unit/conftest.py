"""What several unit tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.loopback import Server
from tests.simulated import CONFIG, Dataset
from workflow.data.simulator import simulate


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder for what a loader writes."""
    made = tmp_path / "target"
    made.mkdir()
    return made


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """serve(content, name) starts a Server; waiting between tries takes no time."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("workflow.data.download.time.sleep", lambda _: None)
    servers: list[Server] = []

    def start(content: bytes, name: str = "archive.zip") -> Server:
        servers.append(Server(content, name))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A simulated folder to look at, not to change."""
    folder = tmp_path_factory.mktemp("sim")
    simulate(CONFIG, folder)
    return Dataset(folder)
