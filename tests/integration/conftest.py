"""Servers and deployments of the small runs of `tests/runs.py`, copies, looks at folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deployments import Bundles
from tests.runs import Made, Marquee
from tests.servers import serving
from triton_repo.client import Client
from triton_repo.deployment import Deployment, Pointer


@pytest.fixture
def copied(sim_run: Made, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    folder = tmp_path / "run"
    shutil.copytree(sim_run.folder, folder, ignore=shutil.ignore_patterns("logs"))
    return folder


# --- servers -------------------------------------------------------------------------------------
@contextmanager
def _endpoint(marquee: Marquee, *words: Any) -> Iterator[dict[str, Any]]:
    with serving(marquee, *words) as server:
        yield server.endpoint


@pytest.fixture(scope="session")
def serve(marquee: Marquee) -> Callable[[Path], Any]:
    """serve(folder) is a `with` block during which the run is served."""
    return lambda folder: _endpoint(marquee, "--run", folder)


@pytest.fixture(scope="session")
def serve_deployment(marquee: Marquee) -> Callable[[Path], Any]:
    """The same for a deployment folder."""
    return lambda folder: _endpoint(marquee, "--deployment", folder)


@pytest.fixture(scope="session")
def sim_server(marquee: Marquee, sim_run: Made) -> Iterator[dict[str, Any]]:
    with serving(marquee, "--run", sim_run.folder) as server:
        yield server.endpoint


@pytest.fixture(scope="session")
def clip_server(marquee: Marquee, clip_run: Made) -> Iterator[dict[str, Any]]:
    with serving(marquee, "--run", clip_run.folder) as server:
        yield server.endpoint


@pytest.fixture(scope="session")
def sim_client(sim_server: dict[str, Any]) -> Iterator[Client]:
    with Client(sim_server["grpc_url"]) as client:
        yield client


# --- deployments ---------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def bundles(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"), sim_run.folder / "model_repository")


@pytest.fixture
def place(bundles: Bundles, tmp_path: Path) -> Deployment:
    """A deployment of bundle 1; nothing serves it yet."""
    made = Deployment(tmp_path / "deployment")
    made.install(bundles.runs[1].repository)
    made.point(Pointer(1))
    return made


# --- looking at folders --------------------------------------------------------------------------
@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """contents(folder): hash by file, but for locks, logs, caches, checkpoints, state."""

    def hashes(folder: Path) -> dict[str, str]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        changing = {"logs", "__pycache__", "checkpoints", "state"}
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.name != ".lock" and not changing & set(path.relative_to(folder).parts)
        }

    return hashes


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """wait_for(condition, process): poll until it holds; a process that ends first is an error."""

    def wait(
        condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if process.poll() is not None and not condition():
                raise AssertionError(f"ended too early: {process.communicate()}")
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def leftovers() -> Callable[[Path], list[str]]:
    """leftovers(folder): temporary names and checkpoints in it."""

    def find(folder: Path) -> list[str]:
        found = [p for p in folder.rglob(".*") if ".tmp-" in p.name or ".old-" in p.name]
        found += [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]
        return [os.fspath(path.relative_to(folder)) for path in found]

    return find
