"""Recommendations for many users at once, to Parquet, by the exported stages on all cores.

Users are answered in parts, one Parquet file each, in `<output>.unfinished`; the folder takes its
name only when it is whole. `_manifest.json` in it names the bundle, the settings and the finished
parts, so that a killed batch goes on where it was, and never with another bundle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_repo.batch_part import Answering, PartDone, Worker, answer_part, begin_worker
from workflow.console import Report, no_report
from workflow.errors import ConfigError, ServingError
from workflow.job import locked_folder
from workflow.run import Run, read_json, storage_errors, swap_folder, write_json

MANIFEST = "_manifest.json"  # Parquet readers leave out what begins with an underscore
FORMAT = 1
_MIN_PART, _MAX_PART, _PARTS = 512, 65_536, 64  # users per part; parts where those allow

Work = tuple[Path, npt.NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """What a batch does: everything that its output depends on.

    Attributes:
        user_ids: raw ids, distinct; int64 or bytes (dtype object) [users].
        answering: time, length and bundle of the answers.
    """

    user_ids: npt.NDArray[Any]
    answering: Answering

    @property
    def users_per_part(self) -> int:
        """Depends on the users only, so that another number of workers makes the same files."""
        return int(np.clip(-(-len(self.user_ids) // _PARTS), _MIN_PART, _MAX_PART))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """As the manifest keeps them, to recognise the same batch."""
        numbers = self.user_ids.dtype.kind == "i"
        ids = self.user_ids.tobytes() if numbers else b"\0".join(self.user_ids.tolist())
        return {
            "bundle": self.answering.bundle,
            "at": self.answering.at,
            "top_k": self.answering.top_k,
            "num_users": len(self.user_ids),
            "users": hashlib.sha256(ids).hexdigest(),
            "users_per_part": self.users_per_part,
        }

    def parts(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """(file name, raw ids) of every part."""
        size = self.users_per_part
        for number, start in enumerate(range(0, len(self.user_ids), size)):
            yield f"part-{number:05d}.parquet", self.user_ids[start : start + size]


def batch(
    run: Run,
    plan: Plan,
    output: Path,
    *,
    workers: int,
    resume: bool = False,
    report: Report = no_report,
) -> dict[str, Any]:
    """Answer the plan's users and put the whole result at `output`.

    Args:
        output: a folder; a finished batch that stands there is replaced at the end, anything else
            is refused.
        workers: processes.
        resume: keep the finished parts of an interrupted batch, or all of a finished one.
    Returns:
        {"output", "num_users", "num_rows", "num_parts", "parts_kept", "status": users by status,
        "seconds": of this call, "cpu_s": of answering and writing all parts, "users_per_cpu_s"}.
    Raises:
        ConfigError: `output` holds something else, or the unfinished batch is another one.
        ServingError: the exported repository changed meanwhile, or a process was killed.
    """
    _check_output(output)
    if resume and _is_finished(output, plan):
        return _result(output, plan, kept=len(read_json(output / MANIFEST)["parts"]), seconds=0)
    work = output.with_name(f"{output.name}.unfinished")
    with locked_folder(work, "--output"):
        manifest = _begin(work, plan, resume)
        kept, started = len(manifest["parts"]), time.monotonic()
        missing = [part for part in plan.parts() if part[0] not in manifest["parts"]]
        todo = [(work / name, user_ids) for name, user_ids in missing]
        answered = plan.settings["num_users"] - sum(len(ids) for _, ids in todo)
        for name, done in _answer(run, plan.answering, todo, workers):
            manifest["parts"][name] = vars(done)
            write_json(work / MANIFEST, manifest)
            answered += done.users
            report(answered, len(plan.user_ids), f"{answered:,} of {len(plan.user_ids):,} users")
        seconds = time.monotonic() - started
        (work / ".lock").unlink()
        with storage_errors(output):
            swap_folder(work, output)
    return _result(output, plan, kept, seconds)


def _answer(
    run: Run, answering: Answering, todo: list[Work], workers: int
) -> Iterator[tuple[str, PartDone]]:
    """Make the parts; (file name, what was done) as they come."""
    if not todo:
        return
    if min(workers, len(todo)) == 1:
        worker = Worker(run, answering)
        yield from ((path.name, worker.answer_part(path, ids)) for path, ids in todo)
        return
    with ProcessPoolExecutor(
        min(workers, len(todo)),
        mp_context=get_context("spawn"),  # a fork of a process with threads may hang
        initializer=begin_worker,
        initargs=(run.root.resolve(), answering, os.getpid()),
    ) as pool:
        names = {pool.submit(answer_part, path, ids): path.name for path, ids in todo}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        except BrokenProcessPool:
            raise ServingError(
                "a process of the batch was killed, perhaps for want of memory",
                next_step="the same command with --resume and fewer --workers",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# --- the folder ----------------------------------------------------------------------------------
def _check_output(output: Path) -> None:
    """Refuse to replace a folder that no batch has made."""
    if output.exists() and not (output / MANIFEST).is_file():
        raise ConfigError(
            f"{output} is there and is not the result of a batch",
            next_step="choose another folder with --output",
        )


def _is_finished(output: Path, plan: Plan) -> bool:
    return output.exists() and read_json(output / MANIFEST)["settings"] == plan.settings


def _begin(work: Path, plan: Plan, resume: bool) -> dict[str, Any]:
    """The manifest to go on from; without `resume` the folder is emptied."""
    file = work / MANIFEST
    if resume and file.exists():
        manifest: dict[str, Any] = read_json(file)
        _check_same(manifest, plan, work)
        there = {name: part for name, part in manifest["parts"].items() if (work / name).exists()}
        return {**manifest, "parts": there}
    for path in work.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = {"format": FORMAT, "settings": plan.settings, "parts": {}}
    write_json(file, manifest)
    return manifest


_MEANING = {"bundle": "exported bundle", "users": "list of users", "num_users": "number of users"}


def _check_same(manifest: dict[str, Any], plan: Plan, work: Path) -> None:
    begun, now = manifest.get("settings", {}), plan.settings
    if manifest.get("format") == FORMAT and begun == now:
        return
    other = [name for name in now if begun.get(name) != now[name]] or ["format"]
    name = other[0]
    raise ConfigError(
        f"the unfinished batch in {work} has another {_MEANING.get(name, name)}",
        expected=f"{name} {begun.get(name)}",
        found=f"{now.get(name)}",
        next_step="leave out --resume to start over, or choose another --output",
    )


def _result(output: Path, plan: Plan, kept: int, seconds: float) -> dict[str, Any]:
    parts = read_json(output / MANIFEST)["parts"].values()
    cpu_s = sum(part["cpu_s"] for part in parts)
    status: Counter[str] = Counter()
    for part in parts:
        status.update(part["status"])
    return {
        "output": str(output),
        "num_users": len(plan.user_ids),
        "num_rows": sum(part["rows"] for part in parts),
        "num_parts": len(parts),
        "parts_kept": kept,
        "status": dict(status),
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu_s, 3),
        "users_per_cpu_s": round(len(plan.user_ids) / cpu_s, 1),
    }
