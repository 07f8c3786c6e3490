"""`marquee run` killed with SIGKILL at many points goes on with --resume; Ctrl-C keeps all."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from workflow.run import read_json


def recorded(run: Path, stage: str) -> bool:
    try:
        return stage in json.loads((run / "manifest.json").read_text())["stages"]
    except (OSError, ValueError, KeyError):
        return False


def epochs(run: Path, fit: str) -> int:
    try:
        return int(read_json(run / "checkpoints" / fit / "progress.json")["epoch"])
    except (OSError, ValueError, KeyError):
        return 0


def triton_of(pid: int) -> list[psutil.Process]:
    try:
        return [
            child
            for child in psutil.Process(pid).children(recursive=True)
            if "triton" in child.name()
        ]
    except psutil.Error:
        return []


# In the order in which a run comes by.
POINTS: dict[str, Callable[[Path, int], bool]] = {
    "while simulating": lambda run, _: any(run.glob(".source.tmp-*/*")),
    "while validating": lambda run, _: any(run.glob(".data.tmp-*/*")) or recorded(run, "validate"),
    "while building features": lambda run, _: any(run.glob(".features.tmp-*/*")),
    "in the first epoch": lambda run, _: (run / "checkpoints/retriever/key.json").exists(),
    "after the retriever's first epoch": lambda run, _: epochs(run, "retriever/search_future") == 1,
    "with the second objective": lambda run, _: epochs(run, "retriever/search_next") == 1,
    "while refitting the retriever": lambda run, _: epochs(run, "retriever/refit") == 1,
    "after the ranker's first epoch": lambda run, _: epochs(run, "ranker/search") == 1,
    "while refitting the ranker": lambda run, _: epochs(run, "ranker/final") >= 1,
    "while indexing": lambda run, _: recorded(run, "train_ranker"),
    "while exporting": lambda run, _: recorded(run, "index"),
    "while Triton starts": lambda run, pid: bool(triton_of(pid)),
}


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL; whatever it started must end by itself."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    gone, alive = psutil.wait_procs(family, timeout=30)
    zombies = [one for one in alive if one.status() == psutil.STATUS_ZOMBIE]
    assert len(gone) + len(zombies) == len(family), alive


@pytest.fixture(scope="module")
def killed(
    marquee: Any,
    sim_words: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    wait_for: Callable[..., None],
) -> tuple[Path, dict[str, Any], list[str]]:
    """A run that was killed at every point, then finished."""
    run = tmp_path_factory.mktemp("runs") / "killed"
    words: list[Any] = ["run", "--run", run, *sim_words]
    seen = []
    for name, condition in POINTS.items():
        process = marquee.start(*words, "--json")
        wait_for(lambda at=condition, pid=process.pid: at(run, pid), process)
        kill(process)
        seen.append(name)
        words = ["run", "--run", run, "--resume"]
    return run, marquee.json(*words), seen


def test_it_was_killed_everywhere_and_finishes(killed: Any, leftovers: Any) -> None:
    run, result, seen = killed
    assert seen == list(POINTS)
    assert [stage["stage"] for stage in result["stages"] if not stage["skipped"]] in (
        [], ["export"]
    )  # fmt: skip
    assert leftovers(run) == []
    assert len(result["recommendations"]["items"]) == 10


def test_the_data_is_the_same(killed: Any, sim_run: Any, contents: Any) -> None:
    run, *_ = killed
    for folder in ("source", "data"):
        assert contents(run / folder) == contents(sim_run.folder / folder)
    ours, theirs = contents(run / "features"), contents(sim_run.folder / "features")
    arrays = [name for name in theirs if name.endswith(".npy")]
    assert arrays and all(ours[name] == theirs[name] for name in arrays)


def test_what_is_served_is_as_good(killed: Any, sim_run: Any) -> None:
    """Two epochs as without the kills; the order of batches after a resume is not the same."""
    run, result, _ = killed
    for model, metric in (("retriever", "valid_recall@100"), ("ranker", "valid_auc")):
        ours, theirs = (read_json(one / "models" / model / "report.json")
                        for one in (run, sim_run.folder))  # fmt: skip
        assert len(ours["scores"]) == len(theirs["scores"]) == 2
        assert ours[metric] == pytest.approx(theirs[metric], abs=0.1)
    ours, theirs = result["recommendations"], sim_run.result["recommendations"]
    assert ours["user_id"] == theirs["user_id"] and ours["status"] == theirs["status"] == "ok"
    scores = [item["score"] for item in ours["items"]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 10


def test_without_resume_after_a_kill(
    marquee: Any,
    sim_run: Any,
    copied: Path,
    wait_for: Callable[..., None],
    leftovers: Any,
) -> None:
    """Killed in training, then run anew: trained from the beginning, with the same result."""
    run = copied
    before = (run / "models" / "ranker" / "weights.npz").read_bytes()
    process = marquee.start("train", "--run", run, "--model", "ranker", "--force", "--json")
    wait_for(lambda: epochs(run, "ranker/search") == 1, process)
    kill(process)
    assert (run / "models" / "ranker" / "weights.npz").read_bytes() == before
    again = marquee.json("train", "--run", run, "--model", "ranker", "--force")
    assert not again["stages"][0]["skipped"]
    assert again["stages"][0]["summary"]["epochs"] >= 1
    assert leftovers(run) == []
    report = read_json(run / "models" / "ranker" / "report.json")
    reference = read_json(sim_run.folder / "models" / "ranker" / "report.json")
    assert report["scores"] == pytest.approx(reference["scores"], abs=1e-3)


def test_a_temporary_folder_of_a_killed_process_is_cleared(marquee: Any, copied: Path) -> None:
    """Killed between the two renames: the old folder comes back, or is removed."""
    run = copied
    (run / "model_repository").rename(run / ".model_repository.old-99999")
    (run / ".model_repository.tmp-99999").mkdir()
    started = time.monotonic()
    [stage] = marquee.json("export", "--run", run)["stages"]
    assert not stage["skipped"] and time.monotonic() - started < 120
    assert not list(run.glob(".model_repository.*"))
    assert (run / "model_repository" / "bundle.json").exists()


# --- Ctrl-C --------------------------------------------------------------------------------------
def _listen_to_ctrl_c() -> None:
    """Shells start what runs in the background, such as these tests, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("moment", ["start", "features", "training"])
def test_ctrl_c(
    marquee: Any, copied: Path, contents: Any, wait_for: Callable[..., None], moment: str
) -> None:
    before = contents(copied)
    verb = {"start": "index", "features": "features", "training": "train"}[moment]
    process = marquee.start(
        verb, "--run", copied, "--force", "--json", preexec_fn=_listen_to_ctrl_c
    )
    conditions = {
        "start": lambda: (copied / ".lock").read_text() == str(process.pid),
        "features": lambda: any(copied.glob(".features.tmp-*/*")),
        "training": (copied / "checkpoints" / "retriever" / "key.json").exists,
    }
    wait_for(conditions[moment], process)
    time.sleep(1.0 if moment == "training" else 0)
    process.send_signal(signal.SIGINT)
    result = marquee.finish(process, 60)
    assert result.status == 130
    assert result.error.startswith("Stopped.")
    assert contents(copied) == before
