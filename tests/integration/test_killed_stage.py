"""kill -9 of a stage's process while requests come in: the service recovers by itself."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.servers import serving
from triton_repo.client import Client
from triton_repo.tensors import FUSED, STAGES
from workflow.errors import ServingError

STUB = "triton_python_backend_stub"


class Load:
    """Requests one after the other from several threads, until the block ends."""

    def __init__(self, url: str, user: int, threads: int = 4) -> None:
        self.client, self.user = Client(url, timeout_s=20), user
        self.expected = self.client.recommend(user, top_k=10, time=1).video_ids.tolist()
        self.right = 0
        self.wrong: list[Any] = []
        self.errors: list[str] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        while not self.stopped.is_set():
            try:
                answer = self.client.recommend(self.user, top_k=10, time=1).video_ids.tolist()
            except ServingError as error:
                self.errors.append(str(error))
                continue
            if answer == self.expected:
                self.right += 1
            else:
                self.wrong.append(answer)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        self.client.close()


def stub_of(server: int, stage: str) -> psutil.Process:
    for child in psutil.Process(server).children():
        words: list[str] = []
        with suppress(psutil.NoSuchProcess):  # a killed one that nobody waited for
            words = child.cmdline()
        model = Path(words[1]).parent.parent if len(words) > 1 else None  # of its model.py
        if model is not None and Path(words[0]).name == STUB and model.name == stage:
            return child
    raise AssertionError(f"no process of {stage}")


def pid_of(server: int, stage: str) -> int | None:
    with suppress(AssertionError):
        return stub_of(server, stage).pid
    return None


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not recover"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(marquee: Any, sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`marquee serve` of a run of its own; it must end well."""
    run = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(sim_run.folder, run, ignore=shutil.ignore_patterns("logs"))
    with serving(marquee, "--run", run) as server:
        yield server.endpoint
        time.sleep(1)  # the last warning comes when the load has returned
    assert server.ended is not None
    for stage in (FUSED, *STAGES):
        assert f"the process of {stage} died; it was loaded again" in server.ended.err


def test_the_killed_step_of_the_ensemble_comes_back(served: dict[str, Any], sim_run: Any) -> None:
    user = sim_run.result["recommendations"]["user_id"]
    with Load(served["grpc_url"], user) as load:
        wait_for(lambda: load.right >= 50)
        killed = stub_of(served["pid"], FUSED)
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: load.errors)  # it was felt
        after = load.right
        wait_for(lambda: load.right >= after + 200)
        assert stub_of(served["pid"], FUSED).pid != killed.pid
        time.sleep(5)  # what the dead process had taken fails late, a second per batch
        failed = len(load.errors)
        steady = load.right
        wait_for(lambda: load.right >= steady + 100)
        assert len(load.errors) == failed  # no after-effects
    assert not load.wrong
    for error in load.errors:
        assert "died and is being restarted" in error or "refused the request" in error


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_comes_back(served: dict[str, Any], sim_run: Any, stage: str) -> None:
    """It serves those who ask it alone; pages do not need it."""
    user = sim_run.result["recommendations"]["user_id"]
    with Load(served["grpc_url"], user) as load:
        wait_for(lambda: load.right >= 20)
        killed = stub_of(served["pid"], stage)
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: pid_of(served["pid"], stage) not in (None, killed.pid))
        wait_for(lambda: answers(served["grpc_url"], stage))
    assert not load.errors and not load.wrong


def answers(url: str, model: str) -> bool:
    """Whether a model answers a request of zeros, or refuses it."""
    with grpc.InferenceServerClient(url) as client:
        tensors = []
        for one in client.get_model_metadata(model).inputs:
            tensors.append(grpc.InferInput(one.name, [1, *one.shape[1:]], one.datatype))
            zeros = np.zeros([1, *one.shape[1:]], triton_to_np_dtype(one.datatype))
            tensors[-1].set_data_from_numpy(zeros)
        try:
            return bool(client.infer(model, tensors, client_timeout=20).get_response().outputs)
        except InferenceServerException as error:
            return "INVALID_ARGUMENT" in str(error.status())
