"""One part of a batch: raw user ids in, one Parquet file out. Runs in a worker process."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from triton_repo.client import Status
from triton_repo.local import LocalPipeline, bundle_key
from workflow.errors import ServingError
from workflow.run import Run, write_bytes

STAGE_BATCH = 64  # users per call of the fused step, which takes them in pieces itself

Answers = tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Answering:
    """What every user is asked alike.

    Attributes:
        bundle: `bundle_key` of the repository that must answer.
        at: unix seconds of the request.
        top_k: length of the lists.
        state: where users' events since the export are; "" for nowhere.
    """

    bundle: str
    at: int
    top_k: int
    state: str = ""


@dataclass(frozen=True)
class PartDone:
    """One written part; `cpu_s` is what answering and writing took."""

    users: int
    rows: int
    status: dict[str, int]
    cpu_s: float


class Worker:
    """The exported stages, loaded once per process.

    Raises:
        ServingError: the repository is not the one that the batch began with.
    """

    def __init__(self, run: Run, answering: Answering) -> None:
        self.answering = answering
        self.pipeline = LocalPipeline(run, answering.state)
        if bundle_key(run) != answering.bundle:
            raise ServingError(
                f"the model repository of {run} was replaced during the batch",
                next_step="start over without --resume",
            )

    def answer_part(self, path: Path, user_ids: npt.NDArray[Any]) -> PartDone:
        """Answer users and write their rows to `path`, atomically."""
        started = time.process_time()
        order = self._by_history(user_ids)
        tables, codes, owners = [], [], []
        for start in range(0, len(user_ids), STAGE_BATCH):
            asked = order[start : start + STAGE_BATCH]
            video_ids, scores, status = self._answer(user_ids[asked])
            table, owner = as_rows(user_ids[asked], video_ids, scores, status)
            tables.append(table)
            codes.append(status)
            owners.append(asked[owner])
        table = pa.concat_tables(tables).take(np.argsort(np.concatenate(owners), kind="stable"))
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        write_bytes(path, buffer.getvalue())
        names = Counter(Status(code).name for code in np.concatenate(codes).tolist())
        cpu_s = time.process_time() - started
        return PartDone(len(user_ids), len(table), dict(sorted(names.items())), round(cpu_s, 4))

    def _by_history(self, user_ids: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """Positions of users by how much they have watched.

        What a call of the stages costs is up to the longest history in it. (Where an unknown user
        comes does not matter.)
        """
        known = self.pipeline.fused.query_tower.user_id
        at = np.minimum(np.searchsorted(known, user_ids.astype(known.dtype)), len(known) - 1)
        watches = np.diff(self.pipeline.fused.retrieval.watched_start)[at + 1]
        return np.argsort(watches, kind="stable")

    def _answer(self, user_ids: npt.NDArray[Any]) -> Answers:
        """video ids [n, k], scores [n, k], status codes [n]."""
        count = len(user_ids)
        answer = self.pipeline.infer(
            {
                "user_id": user_ids[:, None],
                "time": np.full((count, 1), self.answering.at, np.int64),
                "top_k": np.full((count, 1), self.answering.top_k, np.int32),
            }
        )
        return answer["video_id"], answer["score"], answer["status"][:, 0]


def as_rows(
    user_ids: npt.NDArray[Any],
    video_ids: npt.NDArray[Any],
    scores: npt.NDArray[np.float32],
    status: npt.NDArray[np.int32],
) -> tuple[pa.Table, npt.NDArray[np.intp]]:
    """One row per user and rank; a user without any video has one row, with nulls.

    Args:
        user_ids: int64 or bytes [n].
        video_ids, scores: [n, k]; a score of -inf fills up.
        status: codes [n].
    Returns:
        Columns user_id, rank (int32, from 1), video_id, score (float32), status (its name); and
        the position in `user_ids` of each row's user.
    """
    counts = (scores > -np.inf).sum(axis=1)
    rows = np.maximum(counts, 1)
    owner = np.repeat(np.arange(len(user_ids)), rows)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(rows) - rows, rows)
    empty = counts[owner] == 0
    if scores.shape[1] == 0:  # nobody has any video
        video_ids = np.full((len(user_ids), 1), b"" if video_ids.dtype == object else 0)
        scores = np.zeros((len(user_ids), 1), np.float32)
    table = pa.table(
        {
            "user_id": _ids(user_ids[owner]),
            "rank": pa.array((place + 1).astype(np.int32), mask=empty),
            "video_id": _ids(video_ids[owner, place], empty),
            "score": pa.array(scores[owner, place], pa.float32(), mask=empty),
            "status": pa.array([Status(code).name for code in status.tolist()]).take(owner),
        }
    )
    return table, owner


def _ids(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    if values.dtype.kind == "i":
        return pa.array(values, pa.int64(), mask=mask)
    return pa.array(values.astype(object), pa.binary(), mask=mask).cast(pa.string())


# --- worker processes ----------------------------------------------------------------------------
class _Process:
    """What a worker process works with; made when it is asked first, so that errors are told."""

    folder: Path
    answering: Answering
    worker: Worker | None = None


def begin_worker(folder: Path, answering: Answering, parent: int) -> None:
    """Prepare a new process, which leaves Ctrl-C to its parent and dies with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit("the parent process died")
    _Process.folder, _Process.answering = folder, answering


def answer_part(path: Path, user_ids: npt.NDArray[Any]) -> PartDone:
    """`Worker.answer_part` of this process."""
    if _Process.worker is None:
        _Process.worker = Worker(Run(_Process.folder), _Process.answering)
    return _Process.worker.answer_part(path, user_ids)
