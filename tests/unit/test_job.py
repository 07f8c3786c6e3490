"""Stages: skipped while current, redone when settings or upstream change, one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import make_config, make_contract
from workflow.config import Config
from workflow.console import Output
from workflow.errors import ConfigError, MissingArtifactError
from workflow.job import Job, Stage, carry_out, locked, save_contract
from workflow.run import Run, replaced_folder

DONE: list[str] = []


def stage(name: str, *after: str, setting: str = "seed") -> Stage:
    def work(job: Job, report: Any) -> dict[str, Any]:
        DONE.append(name)
        with replaced_folder(job.run.root / name) as folder:
            (folder / "x").write_text(name)
        return {"made": name}

    return Stage(
        name, name, after, lambda job: getattr(job.config, setting), work,
        lambda run: run.root / name,
    )  # fmt: skip


FIRST, SECOND = stage("first"), stage("second", "first", setting="index")


def go(job: Job, *stages: Stage, **options: bool) -> list[str]:
    """Names of the stages that were done rather than skipped."""
    DONE.clear()
    for one in stages or (FIRST, SECOND):
        answer = carry_out(one, job, Output(as_json=True), **options)
        assert answer["skipped"] == (one.name not in DONE)
        assert answer["summary"] == {"made": one.name}
    return list(DONE)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(Run(tmp_path / "run"), make_config())


def test_done_once_then_skipped(job: Job) -> None:
    assert go(job) == ["first", "second"]
    assert go(job) == []
    assert go(job, force=True) == ["first", "second"]


def test_redone_when_its_own_settings_change(job: Job) -> None:
    go(job)
    changed = Job(job.run, make_config(index={"kind": "hnsw"}))
    assert go(changed) == ["second"]
    assert go(changed) == []
    assert go(job) == ["second"]


def test_redone_when_something_upstream_changes(job: Job) -> None:
    go(job)
    changed = Job(job.run, make_config(seed=8))
    assert go(changed) == ["first", "second"]
    unrelated = Job(job.run, make_config(seed=8, ranker={"learning_rate": 0.5}))
    assert go(unrelated) == []


def test_redone_when_the_artefact_is_gone(job: Job) -> None:
    go(job)
    (job.run.root / "second" / "x").unlink()
    (job.run.root / "second").rmdir()
    assert go(job) == ["second"]


def test_a_stage_without_its_upstream(job: Job) -> None:
    with pytest.raises(MissingArtifactError, match=r"second needs the result of first .*marquee f"):
        go(job, SECOND)
    trained = stage("index", "train_retriever")
    with pytest.raises(MissingArtifactError, match="Next: marquee train --run"):
        go(job, trained)


def test_a_failed_stage_is_not_recorded(job: Job) -> None:
    def broken(job: Job, report: Any) -> dict[str, Any]:
        raise ValueError("broken")

    go(job)
    failing = Stage("second", "second", ("first",), SECOND.settings, broken, SECOND.made)
    with pytest.raises(ValueError, match="broken"):
        go(job, failing, force=True)
    assert (job.run.root / "second" / "x").read_text() == "second"


@pytest.mark.parametrize("resume", [True, False])
def test_checkpoints_are_kept_only_to_resume_the_same_stage(job: Job, resume: bool) -> None:
    seen: list[bool] = []
    checkpoint = job.run.checkpoints / "ranker" / "weights"

    def interrupted(job: Job, report: Any) -> dict[str, Any]:
        seen.append(checkpoint.exists())
        checkpoint.write_text("after an epoch")
        raise KeyboardInterrupt

    def train(job: Job) -> None:
        one = Stage(
            "train_ranker", "", (), lambda job: job.config.seed, interrupted, lambda r: r.ranker
        )
        with pytest.raises(KeyboardInterrupt):
            carry_out(one, job, Output(as_json=True), resume=resume)

    train(job)
    train(job)
    train(Job(job.run, make_config(seed=99)))
    assert seen == [False, resume, False]


LOCK = """
import sys, time
from workflow.job import locked
from workflow.run import Run
with locked(Run(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_gets_one_line(job: Job) -> None:
    command = [sys.executable, "-c", LOCK, str(job.run)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError) as caught, locked(job.run):
            pytest.fail("two processes at once")
        line = str(caught.value)
        assert f"is being changed by process {holder.pid}" in line and "\n" not in line
        assert "another folder with --run" in line
        holder.stdin.close()
    with locked(job.run):  # free again
        assert (job.run.root / ".lock").exists()


def test_settings_are_remembered_relative_to_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "mine")
    config = make_config(seed=3, sim={"num_users": 2500})
    Job(run, config, tmp_path / "source", tmp_path / "contract.toml").save()
    assert str(tmp_path) not in run.config_file.read_text()
    (tmp_path / "runs").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "runs")
    loaded = Job.load(run)
    assert loaded.config == config
    assert (loaded.source, loaded.contract_file) == (
        tmp_path / "source", tmp_path / "contract.toml",
    )  # fmt: skip
    Job(run, config).save()
    assert Job.load(run).source is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {}}'])
def test_damaged_settings(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    run.config_file.write_text(text)
    with pytest.raises(ConfigError, match=r"is damaged\. Next: marquee run"):
        Job.load(run)


def test_contract_of_a_run(job: Job) -> None:
    with pytest.raises(MissingArtifactError):
        _ = job.contract
    save_contract(job.run, make_contract())
    assert job.contract == make_contract()


def test_every_stage_names_its_upstream_first() -> None:
    from workflow.pipeline import STAGES

    seen: set[str] = set()
    for one in STAGES:
        assert set(one.after) <= seen
        seen.add(one.name)
    assert len(seen) == len(STAGES) == 6


def changed(name: str, config: Config) -> Config:
    sections: dict[str, Any] = {
        "features": {"history_length": 9},
        "train_retriever": {"learning_rate": 0.5},
        "train_ranker": {"learning_rate": 0.5},
        "index": {"kind": "hnsw"},
        "export": {"default_top_k": 9},
    }
    section = {"train_retriever": "retriever", "train_ranker": "ranker", "export": "serving"}
    key = section.get(name, name)
    values = getattr(config, key).model_copy(update=sections[name])
    return config.model_copy(update={key: values})


@pytest.mark.parametrize(
    ("name", "redone"),
    [
        ("features", {"features", "train_retriever", "train_ranker", "index", "export"}),
        ("train_retriever", {"train_retriever", "train_ranker", "index", "export"}),
        ("train_ranker", {"train_ranker", "export"}),
        ("index", {"index", "export"}),
        ("export", {"export"}),
    ],
)
def test_what_a_setting_makes_stale(job: Job, name: str, redone: set[str]) -> None:
    """The pipeline's own keys: a changed section redoes its stage and all that follow."""
    from workflow.pipeline import STAGES

    def keys(config: Config) -> dict[str, str]:
        run = Run(job.run.root)
        made = {}
        for one in STAGES:
            made[one.name] = one.key(Job(run, config))
            run.record(one.name, made[one.name], 0, {})
        return made

    config = make_config(dataset="sim")
    before, after = keys(config), keys(changed(name, config))
    assert {stage for stage in before if before[stage] != after[stage]} == redone
