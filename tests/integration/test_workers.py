"""Several processes train what one trains; one that is lost takes nothing along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triton_repo.ports import free_ports

LOSS_TOLERANCE = 2e-4  # reports round to 4 digits
WEIGHT_TOLERANCE = 2e-3  # of weights that training moved by more than ten times as much
SETTINGS = {
    "sim.num_users": 2000,
    "sim.num_videos": 500,
    "sim.num_events": 40_000,
    "retriever.objectives": '["next"]',
    "retriever.max_epochs": 2,
    "retriever.max_rows_per_epoch": 4_000,
    "retriever.batch_size": 255,  # odd: the workers' shares differ
    "retriever.id_dropout": 0,
    "ranker.max_epochs": 2,
    "ranker.batch_size": 2048,
    "ranker.id_dropout": 0,
    "ranker.dropout": 0,
    "ranker.history_dropout": 0,
}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(marquee: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with features."""
    run = tmp_path_factory.mktemp("workers") / "run"
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    marquee.json("validate", "--run", run, "--dataset", "sim", *words)
    marquee.json("features", "--run", run)
    return run


@pytest.fixture(scope="module")
def alone(made: Path) -> Path:
    """The same, trained by one process."""
    run = made.with_name("alone")
    shutil.copytree(made, run)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.train_together", run, run],
        cwd=REPOSITORY, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return run


def start(*words: Any, count: int = 2) -> list[subprocess.Popen[str]]:
    """One process for each worker."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "no_proxy": "127.0.0.1", "TF_CONFIG": json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": index}}
            )},
        )
        for index in range(count)
    ]  # fmt: skip


def weights(file: Path) -> list[np.ndarray[Any, Any]]:
    with np.load(file) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


def report(run: Path, model: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "models" / model / "report.json").read_text())
    return value


@pytest.mark.timeout(1800)
def test_two_processes_train_what_one_does(made: Path, alone: Path, tmp_path: Path) -> None:
    """Losses of all epochs and the final weights; the ranker with the same retriever."""
    first, second = tmp_path / "retriever", tmp_path / "ranker"
    shutil.copytree(made, first)
    shutil.copytree(alone, second)
    shutil.rmtree(second / "models" / "ranker")
    for process in start("-m", "tests.train_together", first, second):
        _, err = process.communicate(timeout=1500)
        assert process.returncode == 0, err
    for model, run in (("retriever", first), ("ranker", second)):
        together, one = report(run, model), report(alone, model)
        assert len(one["losses"]) == 2
        assert np.allclose(together["losses"], one["losses"], rtol=0, atol=LOSS_TOLERANCE)
        name = "search_weights.npz" if model == "retriever" else "weights.npz"
        pairs = [weights(r / "models" / model / name) for r in (run, alone)]
        gaps = [np.abs(got - want).max() for got, want in zip(*pairs, strict=True)]
        assert max(gaps) < WEIGHT_TOLERANCE, gaps
    assert list((first / "checkpoints").rglob("*.index")) == []


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_worker_ends_the_others(
    made: Path, alone: Path, tmp_path: Path, lost: int,
    contents: Callable[[Path], dict[str, str]], wait_for: Callable[..., None],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    before = contents(run / "models")
    endless = ("--set", "retriever.max_epochs=1000", "--set", "retriever.patience=1000")
    words = ("train", "--run", run, "--model", "retriever", "--force", *endless)
    workers = start("-c", "from workflow.cli import main; main()", *words)
    progress = run / "checkpoints" / "retriever" / "search_next" / "progress.json"
    wait_for(progress.exists, workers[0], 1200)
    workers[lost].kill()
    workers[lost].communicate()
    _, err = workers[1 - lost].communicate(timeout=300)
    assert workers[1 - lost].returncode not in (0, None)
    if lost == 1:
        assert f"worker {1 - lost} of 2 cannot go on with the others" in err, err
    assert contents(run / "models") == before
