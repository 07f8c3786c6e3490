"""Features on a real Dask cluster: the same files, also when workers die at it."""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workflow.environment  # noqa: F401

import cloudpickle
import pytest
from distributed import Client
from distributed.diagnostics.plugin import WorkerPlugin
from typer.testing import CliRunner

from tests.fixtures import make_config, make_contract, make_tables, write_run
from workflow.cli import app
from workflow.errors import ConfigError
from workflow.features import cluster
from workflow.features.cluster import dask_cluster, require_shared
from workflow.job import Job, save_contract
from workflow.run import Run

CONTRACT, CONFIG = make_contract(), make_config()
ROOT = Path(__file__).parents[2]
# As a user starts them: without the settings that this process has.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not import tests


class DiesAt(WorkerPlugin):
    """Kills the worker process of a name when it begins its n-th task of a kind."""

    def __init__(self, name: str, kind: str, number: int) -> None:
        self.worker_name, self.kind, self.left = name, kind, number

    def setup(self, worker: Any) -> None:
        self.me = worker.name

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        if self.me == self.worker_name and finish == "executing" and self.kind in str(key):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Cluster:
    """A scheduler and workers, each a process."""

    folder: Path
    address: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", *command, "--no-dashboard"],
            env=ENVIRONMENT, cwd=self.folder, stdout=log, stderr=log,
        )  # fmt: skip

    def start_scheduler(self) -> None:
        file = self.folder / "scheduler.json"
        options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        self.start("scheduler", "distributed.cli.dask_scheduler", *options)
        deadline = time.monotonic() + 60
        while not self.address:
            assert time.monotonic() < deadline, "no scheduler"
            found = [
                line.split()[-1]
                for line in (self.folder / "scheduler.log").read_text().splitlines()
                if "Scheduler at:" in line
            ]
            self.address = found[0] if found else ""
            time.sleep(0.1)

    def start_worker(self, name: str) -> None:
        options = ("--no-nanny", "--nthreads", "1", "--name", name, "--host", "127.0.0.1")
        self.start(name, "distributed.cli.dask_worker", self.address, *options)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        started.start_scheduler()
        with pytest.raises(ConfigError, match="has no worker"), dask_cluster(started.address):
            pass
        for number in range(4):
            started.start_worker(f"worker-{number}")
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose validation is done, in six partitions."""
    tables = make_tables(num_users=60, num_videos=25, num_events=3_000, seed=4)
    run = write_run(tmp_path_factory.mktemp("run") / "run", CONTRACT, tables, num_partitions=6)
    Job(run, CONFIG).save()
    save_contract(run, CONTRACT)
    run.record("validate", "key", 0.0, {})
    return run


def features(run: Run, *options: str) -> Any:
    return CliRunner().invoke(app, ["features", "--run", str(run.root), *options])


def test_same_files_when_workers_die(validated: Run, dask: Cluster, tmp_path: Path) -> None:
    here, there = (Run(tmp_path / name) for name in ("here", "there"))
    for run in (here, there):
        shutil.copytree(validated.root, run.root)
    assert features(here).exit_code == 0
    with Client(dask.address, set_as_default=False) as client:
        client.wait_for_workers(4, timeout=60)
        client.register_plugin(DiesAt("worker-0", "", 3), name="at fit")
        client.register_plugin(DiesAt("worker-1", "encode_file", 2), name="at encode")
        answer = features(there, "--dask-scheduler", dask.address)
        assert answer.exit_code == 0, answer.output
        left = {worker["name"] for worker in client.scheduler_info()["workers"].values()}
    assert left == {"worker-2", "worker-3"}
    killed = {name for name, process in dask.processes.items() if process.poll() is not None}
    assert killed == {"worker-0", "worker-1"}
    files = sorted(p.relative_to(here.features) for p in here.features.rglob("*") if p.is_file())
    assert len(files) > 60
    assert files == sorted(
        p.relative_to(there.features) for p in there.features.rglob("*") if p.is_file()
    )
    _, different, missing = filecmp.cmpfiles(here.features, there.features, files, shallow=False)
    assert (different, missing) == ([], [])


def test_no_scheduler(validated: Run) -> None:
    answer = features(validated, "--dask-scheduler", "tcp://127.0.0.1:9")
    assert isinstance(answer.exception, ConfigError)
    assert "no Dask scheduler at tcp://127.0.0.1:9" in str(answer.exception)
    assert not validated.features.exists()


def test_workers_that_do_not_see_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Blind:
        def run(self, function: Any) -> dict[str, bool]:
            return {"tcp://10.0.0.2:4000": False, "tcp://10.0.0.3:4000": function()}

    monkeypatch.setattr(cluster, "current_client", Blind)
    with pytest.raises(
        ConfigError, match=r"1 Dask workers do not see .*not seen by tcp://10.0.0.2"
    ):
        require_shared(tmp_path)
