"""The users and the videos table: read, checked, sorted by id, completed with ids from events."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow.data.findings import Findings
from workflow.data.ids import IdTable
from workflow.data.reading import Chunk, TableFiles
from workflow.errors import DataError, MarqueeError
from workflow.schema import Column, Contract, Table

Array = np.ndarray[Any, Any]
_ARROW_TYPES = {"int64": pa.int64(), "float32": pa.float32(), "string": pa.string()}


def id_type(column: Column) -> pa.DataType:
    """The Arrow type of an id column."""
    return _ARROW_TYPES[column.dtype]


def convert_chunk(chunk: Chunk, table: str, declared: Table, findings: Findings) -> pa.Table | None:
    """All read columns of a chunk by contract name; None when one of them failed."""
    arrays, whole = {}, True
    for column in declared.columns:
        if column.role == "ignore":
            continue
        try:
            values = chunk.column(column)
            _check_sign(values, column, chunk)
        except MarqueeError as error:
            findings.fail(table, column.name, error)
            whole = False
            continue
        findings.column(table, column.name).see(values)
        arrays[column.name] = values
    return pa.table(arrays) if whole else None


def no_value(ids: pa.Array) -> Array:
    """bool: the id is null or empty."""
    missing = pc.is_null(ids)
    if pa.types.is_string(ids.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(ids, ""), True))
    mask: Array = missing.to_numpy(zero_copy_only=False)
    return mask


def load_entities(files: TableFiles, role: str, findings: Findings) -> pa.Table | None:
    """A whole users or videos table, sorted by id; None when it failed (see `findings`).

    Rows without an id are dropped and counted; an id that occurs twice is an error.
    """
    id_column = files.table.one(role)
    assert id_column is not None  # the contract guarantees it
    parts: list[pa.Table] = []
    places = _Places()
    for chunk in files.chunks():
        part = convert_chunk(chunk, files.name, files.table, findings)
        if part is None:
            return None
        bad = no_value(part[id_column.name].combine_chunks())
        if bad.any():
            rows = np.flatnonzero(bad)
            shown = [f"{chunk.file} row {chunk.first_row + int(row) + 1}" for row in rows[:3]]
            reason = f"no {id_column.name} in {files.name}"
            findings.drop(files.name, id_column.name, reason, shown, len(rows))
        places.add(chunk, np.flatnonzero(~bad))
        parts.append(part.filter(pa.array(~bad)))
    table = pa.concat_tables(parts).combine_chunks()
    ids = table[id_column.name].combine_chunks()
    if pc.count_distinct(ids).as_py() != len(ids):
        findings.fail(files.name, id_column.name, _duplicates(ids, id_column, files.name, places))
        return None
    return table.take(pc.sort_indices(ids))


def complete(table: pa.Table | None, ids: IdTable, id_name: str) -> pa.Table:
    """The kept rows in id order; ids that only events know get null features, empty lists."""
    order = ids.order()
    columns = {id_name: ids.ids.take(pa.array(order))}
    if table is not None:
        for name in table.drop_columns([id_name]).column_names:
            values = _extended(table[name].combine_chunks(), ids.num_added)
            columns[name] = values.take(pa.array(order))
    return pa.table(columns)


def canonical_videos(videos: pa.Table, contract: Contract) -> pa.Table:
    """video_id, title (always), times in seconds, withdrawn, then features and page columns."""
    table = contract.videos
    title = table.one("title") if table else None
    nothing = pa.nulls(videos.num_rows, pa.string())
    columns = {
        "video_id": videos["video_id"],
        "title": videos[title.name] if title else nothing,
    }
    for role in ("publish_time", "available_from", "available_until"):
        if column := table.one(role) if table else None:
            columns[role] = _seconds(videos[column.name].combine_chunks())
    if column := table.one("withdrawn") if table else None:
        columns["withdrawn"] = videos[column.name]
    page = table.of_role("page") if table else ()
    for column in (*contract.features("video_feature"), *page):
        columns[column.name] = videos[column.name]
    return pa.table(columns)


def _seconds(micros: pa.Array) -> pa.Array:
    missing = micros.is_null().to_numpy(zero_copy_only=False)
    seconds = micros.fill_null(0).to_numpy() // 10**6
    return pa.array(seconds.astype(np.int64), mask=missing)


def _extended(values: pa.Array, added: int) -> pa.Array:
    if not added:
        return values
    if pa.types.is_list(values.type):
        empty = pa.array([[]] * added, values.type)
        return pa.concat_arrays([values, empty])
    return pa.concat_arrays([values, pa.nulls(added, values.type)])


def _check_sign(values: pa.Array, column: Column, chunk: Chunk) -> None:
    is_duration = column.role == "duration_s"
    if not (column.log or is_duration):
        return
    bad = pc.fill_null(pc.less(values, 0), False).to_numpy(zero_copy_only=False)
    if bad.any():
        index = int(np.argmax(bad))
        wrong = "no duration" if is_duration else "negative, so it has no logarithm"
        remedy = "null where it is not known" if is_duration else "log = false in the contract"
        raise DataError(
            f"{chunk.place.of(column, index)}: {values[index].as_py():g} is {wrong}",
            next_step=f"correct the file, or give {column.name} {remedy}",
        )


class _Places:
    """File and row of each kept row of a table."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._chunks: list[tuple[str, int, Array]] = []
        self._num_rows = 0

    def add(self, chunk: Chunk, kept: Array) -> None:
        self._starts.append(self._num_rows)
        self._chunks.append((chunk.file, chunk.first_row, kept))
        self._num_rows += len(kept)

    def of(self, index: int) -> str:
        number = bisect_right(self._starts, index) - 1
        file, first_row, kept = self._chunks[number]
        return f"{file} row {first_row + int(kept[index - self._starts[number]]) + 1}"


def _duplicates(ids: pa.Array, column: Column, table: str, places: _Places) -> DataError:
    counts = pc.value_counts(ids)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    shown = []
    for value in twice[:3]:
        rows = np.flatnonzero(pc.equal(ids, value).to_numpy(zero_copy_only=False))
        shown.append(f"{value.as_py()} ({', '.join(places.of(int(row)) for row in rows[:3])})")
    more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
    plural = "" if len(twice) == 1 else "s"
    return DataError(
        f"{len(twice)} duplicate {column.name}{plural} in the {table} table",
        expected=f"one row per {column.name}",
        found="; ".join(shown) + more,
        next_step="remove the rows that are not wanted",
    )
