"""The spool of cleaned events to sorted part files, one contiguous range of users each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflow.console import Report

Array = np.ndarray[Any, Any]
_ROWS_PER_GROUP = 500_000


@dataclass
class PartStats:
    """What is only known once events are sorted."""

    num_watched: int = 0
    num_repeated: int = 0  # same user, video and second as another event
    num_parts: int = 0
    first_timestamp: int = 2**62
    last_timestamp: int = -(2**62)


@dataclass(frozen=True)
class Rows:
    """int32 rows (from 1) of user and video codes, and int64 events per user row."""

    of_user: Array
    of_video: Array
    events_of_user: Array

    @staticmethod
    def of_codes(order: Array, num_codes: int) -> Array:
        """Code -> row, from the codes in row order; 0 for codes without a row."""
        rows = np.zeros(num_codes, np.int32)
        rows[order] = np.arange(1, len(order) + 1, dtype=np.int32)
        return rows


def write_parts(
    spool: Path, rows: Rows, folder: Path, watch_all: bool, rows_per_part: int, report: Report
) -> PartStats:
    """Write `folder`/part-*.parquet and remove the spool.

    Memory is bounded by one part: events are first distributed over one file per part.
    """
    folder.mkdir()
    ends = part_ends(rows.events_of_user, rows_per_part)
    buckets = [spool] if len(ends) == 1 else _distribute(spool, rows, ends)
    stats = PartStats(num_parts=len(buckets))
    for number, bucket in enumerate(buckets):
        part = _sorted_part(_read(bucket), rows, watch_all, stats)
        bucket.unlink()
        target = folder / f"part-{number:05d}.parquet"
        pq.write_table(part, target, row_group_size=_ROWS_PER_GROUP)
        report(number + 1, len(buckets), "sorting events")
    return stats


def part_ends(events_of_user: Array, rows_per_part: int) -> Array:
    """The last user row (from 1) of each part, parts being about equally large."""
    total = np.cumsum(events_of_user)
    num_parts = max(1, -(-int(total[-1]) // rows_per_part))
    goals = total[-1] * np.arange(1, num_parts) / num_parts
    ends = np.unique(np.searchsorted(total, goals) + 1)
    ends = ends[total[ends - 1] < total[-1]]  # no empty part at the end
    return np.append(ends, len(total))


def _distribute(spool: Path, rows: Rows, ends: Array) -> list[Path]:
    """One file per part, events in file order."""
    buckets = [spool.with_name(f"bucket-{number:05d}.arrow") for number in range(len(ends))]
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.memory_map(str(spool)) as source, pa.ipc.open_file(source) as reader:
        writers = [pa.ipc.new_file(str(path), reader.schema, options=options) for path in buckets]
        try:
            for number in range(reader.num_record_batches):
                batch = pa.Table.from_batches([reader.get_batch(number)])
                _write_buckets(batch, writers, rows, ends)
        finally:
            for writer in writers:
                writer.close()
    spool.unlink()
    return buckets


def _write_buckets(batch: pa.Table, writers: list[Any], rows: Rows, ends: Array) -> None:
    part_of = np.searchsorted(ends, rows.of_user[batch["user"].to_numpy()])
    order = np.argsort(part_of, kind="stable")
    batch = batch.take(pa.array(order)).combine_chunks()
    starts = np.searchsorted(part_of[order], np.arange(len(writers) + 1))
    for number, writer in enumerate(writers):
        size = int(starts[number + 1] - starts[number])
        if size:
            writer.write_table(batch.slice(int(starts[number]), size))


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _sorted_part(events: pa.Table, rows: Rows, watch_all: bool, stats: PartStats) -> pa.Table:
    """Canonical columns, sorted by user and time; events of one moment stay in file order."""
    user = rows.of_user[events["user"].to_numpy()]
    micros = events["timestamp"].to_numpy()
    order = np.lexsort((micros, user))
    events = events.take(pa.array(order))
    columns: dict[str, Any] = {
        "user_row": user[order],
        "video_row": rows.of_video[events["video"].to_numpy()],
        "timestamp": micros[order] // 10**6,
    }
    columns["watched"] = _watched(events, watch_all)
    for name in events.column_names:
        if name in ("watch_s", "propensity"):
            columns[name] = pc.fill_null(events[name], float("nan"))
        elif name not in ("user", "video", "timestamp"):
            columns[name] = events[name]
    _update(stats, columns)
    return pa.table(columns)


def _watched(events: pa.Table, watch_all: bool) -> Array:
    if watch_all:
        return np.ones(events.num_rows, bool)
    watched: Array = events["label"].to_numpy() == 1
    return watched


def _update(stats: PartStats, columns: dict[str, Any]) -> None:
    user, video, seconds = columns["user_row"], columns["video_row"], columns["timestamp"]
    stats.num_watched += int(columns["watched"].sum())
    stats.first_timestamp = min(stats.first_timestamp, int(seconds.min()))
    stats.last_timestamp = max(stats.last_timestamp, int(seconds.max()))
    same = (user[1:] == user[:-1]) & (seconds[1:] == seconds[:-1])
    moment = np.cumsum(np.concatenate([[True], ~same]))
    shared = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    pairs = np.stack([moment[shared], video[shared]])
    stats.num_repeated += int(shared.sum()) - np.unique(pairs, axis=1).shape[1]
