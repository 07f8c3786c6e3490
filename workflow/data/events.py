"""Events: cleaned chunk by chunk into a spool of codes; see VALIDATION.md for the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow.config import ValidationConfig
from workflow.data.entities import convert_chunk, no_value
from workflow.data.findings import Findings
from workflow.data.ids import IdTable
from workflow.data.reading import Chunk
from workflow.errors import DataError
from workflow.schema import Column, Table

Array = np.ndarray[Any, Any]


class Spool:
    """Cleaned events on disk: user and video codes, int64 microseconds, and the other columns.

    Args:
        path: an Arrow IPC file to write.
        rules: what happens to events with an unknown user or video.
    """

    def __init__(
        self,
        path: Path,
        table: Table,
        users: IdTable,
        videos: IdTable,
        rules: ValidationConfig,
        findings: Findings,
    ) -> None:
        self.path = path
        self.num_read = 0
        self.num_events = 0
        self.label_sum = 0.0
        self._table = table
        self._ids = {"user_id": users, "video_id": videos}
        self._rules = {"user_id": rules.unknown_user, "video_id": rules.unknown_video}
        self._findings = findings
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, chunk: Chunk) -> None:
        """Convert, check and write one chunk; what fails is in `findings`."""
        self.num_read += chunk.num_rows
        raw = convert_chunk(chunk, "events", self._table, self._findings)
        if raw is None:
            return
        columns = by_role(raw, self._table)
        try:
            columns = _with_label(columns, self._table, chunk)
        except DataError as error:
            self._findings.fail("events", self._name("label"), error)
            return
        keep = self._drop_bad(columns, chunk)
        codes = self._encode(columns, keep, chunk)
        if codes is None:
            return
        self._write(columns, codes)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _drop_bad(self, columns: dict[str, pa.Array], chunk: Chunk) -> Array:
        """int64 positions of the good rows; the others are counted under their first reason."""
        good = np.ones(chunk.num_rows, bool)
        for role, reason, bad in bad_rows(columns):
            self._drop(role, reason, np.flatnonzero(bad & good), chunk)
            good &= ~bad
        return np.flatnonzero(good)

    def _encode(
        self, columns: dict[str, pa.Array], keep: Array, chunk: Chunk
    ) -> tuple[Array, Array, Array] | None:
        """(kept positions, user codes, video codes); None when an unknown id is an error."""
        # Tables that drop go first, so that a dropped event adds nothing to the other table.
        for role in sorted(self._ids, key=self._adds):
            ids = columns[role].take(pa.array(keep))
            if self._adds(role):
                self._ids[role].find_or_add(ids)
                continue
            unknown = keep[self._ids[role].find(ids) < 0]
            if len(unknown) and self._rules[role] == "error":
                error = self._unknown(columns[role], role, unknown, chunk)
                self._findings.fail("events", role, error)
                return None
            self._drop(role, f"unknown {role}", unknown, chunk)
            keep = np.setdiff1d(keep, unknown, assume_unique=True)
        users, videos = (
            self._ids[role].find(columns[role].take(pa.array(keep)))
            for role in ("user_id", "video_id")
        )
        return keep, users, videos

    def _adds(self, role: str) -> bool:
        """Unknown ids become new rows: by the rule, or because there is no table at all."""
        return self._rules[role] == "keep" or self._ids[role].num_known == 0

    def _drop(self, role: str, reason: str, rows: Array, chunk: Chunk) -> None:
        if len(rows):
            shown = [f"{chunk.file} row {chunk.place.row(int(row))}" for row in rows[:3]]
            self._findings.drop("events", self._name(role), reason, shown, len(rows))

    def _name(self, role: str) -> str:
        column = self._table.one(role)
        assert column is not None
        return column.name

    def _unknown(self, ids: pa.Array, role: str, rows: Array, chunk: Chunk) -> DataError:
        what = role.removesuffix("_id")
        row = int(rows[0])
        return DataError(
            f"{chunk.file} row {chunk.place.row(row)}: {role} {ids[row].as_py()} is not in the"
            f" {what}s table",
            expected=f'known {what}s only (unknown_{what} = "error")',
            found=f"{len(rows):,} such events in the first {chunk.first_row + chunk.num_rows:,}",
            next_step=f"complete the {what}s table, or use"
            f" --set validation.unknown_{what}=drop (or keep)",
        )

    def _write(self, columns: dict[str, pa.Array], codes: tuple[Array, Array, Array]) -> None:
        keep, users, videos = codes
        self._ids["user_id"].count(users)
        self._ids["video_id"].count(videos)
        self.num_events += len(keep)
        rows = pa.array(keep)
        arrays = {"user": pa.array(users), "video": pa.array(videos)}
        for name, values in columns.items():
            if name not in self._ids:
                arrays[name] = values.take(rows)
        if "label" in arrays:
            self.label_sum += pc.sum(arrays["label"]).as_py() or 0.0
        part = pa.table(arrays)
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_file(str(self.path), part.schema, options=options)
        self._writer.write_table(part)


def by_role(raw: pa.Table, table: Table) -> dict[str, pa.Array]:
    """Columns under their canonical names: the role, or a context column's own name."""
    return {
        column.name if column.is_feature else column.role: raw[column.name].combine_chunks()
        for column in table.columns
        if column.role != "ignore"
    }


def bad_rows(columns: dict[str, pa.Array]) -> list[tuple[str, str, Array]]:
    """(role, reason, bool mask) of every way in which an event can be unusable."""
    found = [(role, f"no {role}", no_value(columns[role])) for role in ("user_id", "video_id")]
    for role in ("timestamp", "label"):
        if role in columns:
            found.append((role, f"no {role}", _mask(pc.is_null(columns[role]))))
    if "watch_s" in columns:
        found.append(("watch_s", "negative watch_s", _mask(pc.less(columns["watch_s"], 0))))
    if "propensity" in columns:
        value = columns["propensity"]
        outside = pc.or_(pc.less_equal(value, 0), pc.greater(value, 1))
        found.append(("propensity", "propensity outside (0, 1]", _mask(outside)))
    return found


def _with_label(columns: dict[str, pa.Array], table: Table, chunk: Chunk) -> dict[str, pa.Array]:
    """Labels as 0/1 and other numbers as float32."""
    declared = table.one("label")
    if declared is not None:
        columns["label"] = _binary(columns["label"], declared, chunk)
    for role in ("label", "watch_s", "propensity"):
        if role in columns:
            columns[role] = columns[role].cast(pa.float32(), safe=False)
    return columns


def _binary(values: pa.Array, column: Column, chunk: Chunk) -> pa.Array:
    if column.positive_at_least is not None:
        return pc.greater_equal(values, column.positive_at_least).cast(pa.float32())
    bad = _mask(pc.invert(pc.or_(pc.equal(values, 0), pc.equal(values, 1))))
    if bad.any():
        index = int(np.argmax(bad))
        raise DataError(
            f"{chunk.place.of(column, index)}: the label is {values[index].as_py():g}",
            expected="0 or 1",
            next_step=f"set positive_at_least for {column.name} in the contract",
        )
    return values


def _mask(values: pa.Array) -> Array:
    mask: Array = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask
