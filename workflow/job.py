"""A run's settings, and how one stage is carried out: skip, lock, record."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.config import Config, parse_config
from workflow.console import Output, Report
from workflow.errors import ConfigError, MissingArtifactError
from workflow.remote import Folder, as_folder, is_url
from workflow.run import Run, content_key, read_json, write_bytes, write_json
from workflow.schema import Contract
from workflow.staging import check_redo, finish, forget_later, is_pending
from workflow.workers import Workers

STAGE_FORMAT = 3  # raise it when a stage's output changes without its settings changing


@dataclass(frozen=True)
class Job:
    """What to run: a folder, its settings, and where the raw data comes from."""

    run: Run
    config: Config
    source: Folder | None = None
    contract_file: Path | None = None
    dask_scheduler: str | None = None  # makes the features; not remembered with the run
    workers: Workers | None = None  # train together; not remembered either
    loaded: dict[str, Contract] = field(default_factory=dict)

    @property
    def contract(self) -> Contract:
        """The contract that the run's data was validated against."""
        if "contract" not in self.loaded:
            path = self.run.require(self.run.contract_file, "contract", "marquee validate")
            self.loaded["contract"] = Contract.model_validate(read_json(path))
        return self.loaded["contract"]

    def save(self) -> None:
        """Remember the settings, so that later verbs need only --run."""
        root = self.run.root
        write_json(
            self.run.config_file,
            {
                "config": self.config.model_dump(mode="json"),
                "source": _saved(self.source, root),
                "contract_file": _saved(self.contract_file, root),
            },
        )

    @classmethod
    def load(cls, run: Run) -> Job:
        """The settings that a run was made with.

        Raises:
            MissingArtifactError: there is no such run.
            ConfigError: its settings cannot be read.
        """
        if is_pending(run):
            with locked(run):
                pass  # which finishes it
        saved = _read_saved(run)
        source, contract = (_found(saved[name], run.root) for name in ("source", "contract_file"))
        assert contract is None or isinstance(contract, Path)
        return cls(run, parse_config(saved["config"]), source, contract)


def _read_saved(run: Run) -> dict[str, Any]:
    path = run.require(run.config_file, "settings", "marquee run")
    try:
        saved: dict[str, Any] = read_json(path)
        return {name: saved[name] for name in ("config", "source", "contract_file")}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is damaged", next_step=f"marquee run --run {run} --dataset NAME"
        ) from None


def _saved(path: Folder | None, root: Path) -> str | None:
    """Relative to the run, so that both can move together; a URL stays as it is."""
    if path is None:
        return None
    return os.path.relpath(path, root) if isinstance(path, Path) else str(path)


def _found(path: str | None, root: Path) -> Folder | None:
    if path is None:
        return None
    return as_folder(path) if is_url(path) else Path(os.path.normpath(root / path))


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        after: stages whose results this one reads.
        settings: what, besides those results, its output depends on.
        work: does it and returns a summary.
        made: the artefact that exists once it is done.
    """

    name: str
    title: str
    after: tuple[str, ...]
    settings: Callable[[Job], Any]
    work: Callable[[Job, Report], dict[str, Any]]
    made: Callable[[Run], Path]

    def key(self, job: Job) -> str:
        """Changes exactly when the stage has to be done again."""
        upstream = []
        for name in self.after:
            recorded = job.run.recorded(name)
            if recorded is None:
                verb = "train" if name.startswith("train_") else name
                raise MissingArtifactError(
                    f"{self.name} needs the result of {name} in run {job.run}",
                    next_step=f"marquee {verb} --run {job.run}",
                )
            upstream.append(recorded["key"])
        return content_key(STAGE_FORMAT, self.name, upstream, self.settings(job))

    def is_current(self, job: Job) -> bool:
        recorded = job.run.recorded(self.name)
        return bool(recorded and recorded["key"] == self.key(job) and self.made(job.run).exists())


def carry_out(
    stage: Stage, job: Job, output: Output, *, force: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Do one stage unless its result is current.

    Args:
        force: do it in any case.
        resume: continue from checkpoints that an interrupted try left.
    Returns:
        {"stage", "skipped", "seconds", "summary"}.
    """
    if not force and stage.is_current(job):
        recorded = job.run.recorded(stage.name) or {}
        output.say(f"[dim]= {stage.title}: up to date[/]")
        return {"stage": stage.name, "skipped": True, **_entry(recorded)}
    check_redo(job.run, stage.name, force=force)
    key = stage.key(job)
    _prepare_checkpoints(job.run, stage.name, key, keep=resume)
    started = time.monotonic()
    with output.stage(stage.title) as report:
        summary = stage.work(job, report)
    forget_later(job.run, stage.name)
    job.run.record(stage.name, stage.key(job), time.monotonic() - started, summary)
    return {"stage": stage.name, "skipped": False, **_entry(job.run.recorded(stage.name) or {})}


def _entry(recorded: dict[str, Any]) -> dict[str, Any]:
    return {name: recorded.get(name) for name in ("seconds", "summary")}


def _prepare_checkpoints(run: Run, stage: str, key: str, *, keep: bool) -> None:
    """Keep checkpoints only to resume the very same stage with the same inputs."""
    folder = run.checkpoints / stage.removeprefix("train_")
    note = folder / "key.json"
    if keep and note.exists() and read_json(note) == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    if stage.startswith("train_"):
        write_json(note, key)


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """One process at a time changes a run folder; an update that was killed is finished first.

    Raises:
        ConfigError: another process is at work on it.
    """
    with locked_folder(run.root, "--run", f"run {run}"):
        finish(run)
        yield


@contextmanager
def locked_folder(folder: Path, option: str, name: str = "") -> Iterator[None]:
    """One process at a time changes `folder`, which is made if need be.

    Args:
        option: the command's option that chooses another folder.
        name: what the folder is called in the error.
    Raises:
        ConfigError: another process is at work on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(
                f"{name or folder} is being changed by process {file.read().strip() or 'unknown'}",
                next_step=f"wait for it, or choose another folder with {option}",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def saved_settings(job: Job) -> Iterator[None]:
    """Remember the settings; those that led to an error at once give way to the earlier ones."""
    files = (job.run.config_file, job.run.manifest_file)
    before, done = (_bytes(file) for file in files)
    job.save()
    try:
        yield
    except Exception:
        if before is not None and _bytes(job.run.manifest_file) == done:
            write_bytes(job.run.config_file, before)
        raise


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def save_contract(run: Run, contract: Contract) -> None:
    """Keep the contract with the run, for the stages after validation."""
    write_json(run.contract_file, contract.model_dump(mode="json"))
