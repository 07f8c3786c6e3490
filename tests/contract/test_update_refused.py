"""`marquee update` on planted logs: what is refused, and what is kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.fixtures import DAY, START
from tests.updates import CONFIG, NEW_VIDEO, QUIET, Day, indices
from workflow import staging
from workflow import update as verb
from workflow.data.append import append_events
from workflow.errors import ConfigError, ContractError, DataError
from workflow.job import Job
from workflow.pipeline import STAGES, evaluate, run_all, run_stages
from workflow.run import Run
from workflow.staging import STAGES as NAMES
from workflow.staging import is_pending


@pytest.fixture
def copied(base: Job, tmp_path: Path) -> Job:
    shutil.copytree(base.run.root, tmp_path / "run")
    job = Job(Run(tmp_path / "run"), CONFIG, base.source, base.contract_file)
    job.save()  # its place is another one
    return job


@pytest.fixture
def no_training(updated: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of the same day take the models that the first one trained."""

    def copy_models(parent: Run, target: Run, *_: Any) -> dict[str, Any]:
        shutil.copytree(updated.run.root / "models", target.root / "models")
        return {"samples": 1, "retriever_loss": 0.0, "ranker_loss": 0.0}

    monkeypatch.setattr("models.update.update_models", copy_models)


def state(run: Run) -> dict[str, bytes]:
    left_out = (".lock", "logs")
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for path in run.root.rglob("*")
        if path.is_file() and path.name not in left_out
    }


def test_the_same_day_is_refused_the_second_time(updated: Job, day: Day) -> None:
    before = state(updated.run)
    with pytest.raises(DataError, match=r"80 of 80 events are not later.*appended before"):
        verb.update(updated, QUIET, **day.files)
    assert state(updated.run) == before


def test_one_event_of_the_past_is_refused(copied: Job, day: Day, tmp_path: Path) -> None:
    frame = pd.read_parquet(day.files["events"])
    frame.loc[3, "at"] = START + 5 * DAY
    frame.to_parquet(tmp_path / "late.parquet")
    files = day.files | {"events": tmp_path / "late.parquet"}
    with pytest.raises(DataError, match="1 of 80 events are not later"):
        verb.update(copied, QUIET, **files)


def test_bad_rows_are_dropped_as_in_validation(copied: Job, day: Day, tmp_path: Path) -> None:
    frame = pd.read_parquet(day.files["events"])
    frame.loc[3, "seconds"] = -1.0
    frame.loc[4, "video_id"] = "nobody knows it"
    frame.to_parquet(tmp_path / "bad.parquet")
    target = Run(tmp_path / "target")
    files = day.files | {"events": tmp_path / "bad.parquet"}
    found = append_events(copied.run, target, CONFIG, copied.contract, files)
    assert found["dropped"] == {"negative watch_s": 1, "unknown video_id": 1}
    assert found["events"] == 78
    frame.assign(extra=1).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ContractError, match="does not declare"):
        append_events(copied.run, target, CONFIG, copied.contract, files)


@pytest.mark.parametrize("moment", ["before it counts", "after it counts"])
def test_a_crash_midway_leaves_a_whole_run(
    copied: Job, day: Day, moment: str, no_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    before = state(copied.run)
    if moment == "before it counts":
        monkeypatch.setattr(verb, "commit", killed)
    else:
        swap, swapped = staging.swap_folder, []

        def two_swaps(new: Path, target: Path) -> None:
            if len(swapped) == 2:
                raise Killed
            swapped.append(target)
            swap(new, target)

        monkeypatch.setattr(staging, "swap_folder", two_swaps)
    with pytest.raises(Killed):
        verb.update(copied, QUIET, **day.files)
    monkeypatch.undo()
    assert is_pending(copied.run) == (moment == "after it counts")
    found = Job.load(copied.run)
    entries = run_all(found, QUIET)
    assert not is_pending(copied.run) and not copied.run.staged.exists()
    done = [entry["stage"] for entry in entries if not entry["skipped"]]
    if moment == "before it counts":
        assert done == [] and state(copied.run) == before
    else:
        assert done == ["index", "export"] and len(copied.run.updates()) == 1
        assert NEW_VIDEO.encode() in indices(copied, "video")


def test_run_afterwards_has_nothing_to_do(updated: Job) -> None:
    entries = run_all(Job.load(updated.run), QUIET)
    assert all(entry["skipped"] for entry in entries)
    assert [entry["stage"] for entry in entries] == [stage.name for stage in STAGES] == list(NAMES)


def test_nothing_throws_updates_away_unasked(updated: Job, source: Path) -> None:
    rules = CONFIG.validation.model_copy(update={"max_bad_fraction": 0.01})
    settings = CONFIG.model_copy(update={"validation": rules})
    before = state(updated.run)
    with pytest.raises(ConfigError, match="would leave out what marquee update appended"):
        run_all(Job(updated.run, settings, source, source / "contract.toml"), QUIET)
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        evaluate(updated, QUIET)
    with pytest.raises(ConfigError, match="ranker cannot be trained alone"):
        run_stages(updated, QUIET, ("train_ranker",), force=True)
    assert state(updated.run) == before


def test_a_full_training_goes_on_from_what_was_appended(
    updated: Job, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(updated.run.root, tmp_path / "run")
    job = Job(Run(tmp_path / "run"), CONFIG, source, source / "contract.toml")
    run_stages(job, QUIET, ("features",), force=True)
    assert NEW_VIDEO.encode() in indices(job, "video") and len(job.run.updates()) == 1
    assert sorted(job.run.manifest()["stages"]) == ["features", "validate"]  # the rest is undone
    run_stages(job, QUIET, ("validate",), force=True)
    assert job.run.updates() == [] and sorted(job.run.manifest()["stages"]) == ["validate"]


def test_an_unfinished_run_is_refused(copied: Job, day: Day) -> None:
    settings = CONFIG.ranker.model_copy(update={"learning_rate": 0.5})
    changed = Job(copied.run, CONFIG.model_copy(update={"ranker": settings}))
    with pytest.raises(ConfigError, match="train_ranker is out of date"):
        verb.update(changed, QUIET, **day.files)
