"""Separated text files as Arrow tables of strings.

Everything is read as text, so that a bad value can be shown as it stands in the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import csv

from workflow.errors import ContractError
from workflow.remote import Folder, open_file
from workflow.schema import Table

_BLOCK_BYTES = 4 << 20
_UNIT_SEPARATOR = "\x1f"  # stands for a separator of several characters


def text_names(file: Folder, table: Table) -> list[str]:
    """A text file's column names: its header, or c1, c2, ... for a file without one."""
    if file.stat().st_size == 0:
        return [column.source_name for column in table.columns]  # an empty table, no header needed
    with _TextReader(file, table, None) as (reader, _):
        names: list[str] = reader.schema.names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ContractError(f"{file.name} has the column {sorted(twice)[0]!r} more than once")
    return names if table.header else [f"c{i + 1}" for i in range(len(names))]


def read_text_batches(
    file: Folder, table: Table, names: list[str], rows: int
) -> Iterator[tuple[pa.Table, float]]:
    """Tables of the columns `names`, about `rows` rows each, with the share of the file read."""
    size = file.stat().st_size
    if size == 0:
        return
    every = text_names(file, table)
    with _TextReader(file, table, every) as (reader, stream):
        waiting: list[pa.RecordBatch] = []
        for batch in reader:
            waiting.append(batch.select(names))
            if sum(part.num_rows for part in waiting) >= rows:
                yield from _slices(waiting, rows, stream.consumed / size)
                waiting = []
        if waiting:
            yield from _slices(waiting, rows, 1.0)


def _slices(
    batches: list[pa.RecordBatch], rows: int, done: float
) -> Iterator[tuple[pa.Table, float]]:
    table = pa.Table.from_batches(batches)
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows), done


class _TextReader:
    """A streaming CSV reader over a file, and the stream, which knows how much it has read."""

    def __init__(self, file: Folder, table: Table, names: list[str] | None) -> None:
        self._stream = _Separated(file, table)
        separator = table.separator if len(table.separator) == 1 else _UNIT_SEPARATOR
        read = csv.ReadOptions(
            encoding=table.encoding,
            block_size=_BLOCK_BYTES,
            column_names=names,
            skip_rows=1 if names and table.header else 0,
            autogenerate_column_names=not table.header and names is None,
        )
        parse = csv.ParseOptions(
            delimiter=separator,
            quote_char=table.quote or False,
            newlines_in_values=bool(table.quote),
        )
        # Empty fields stay "" here; whether that means "no value" depends on the column's dtype.
        options = csv.ConvertOptions(
            column_types={name: pa.string() for name in names or []}, strings_can_be_null=False
        )
        self._reader = csv.open_csv(self._stream, read, parse, options)

    def __enter__(self) -> tuple[Any, _Separated]:
        return self._reader, self._stream

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._stream.close()


class _Separated(io.RawIOBase):
    """The bytes of a (possibly gzipped) file, long separators replaced by one character."""

    def __init__(self, file: Folder, table: Table) -> None:
        self._raw = open_file(file)
        compressed = file.suffix == ".gz"
        self._source = pa.CompressedInputStream(self._raw, "gzip") if compressed else self._raw
        long = len(table.separator) > 1
        self._separator = table.separator.encode(table.encoding) if long else b""
        self._held = b""  # the end of a block that may be the start of a separator
        self._replacement = _UNIT_SEPARATOR.encode(table.encoding)

    @property
    def consumed(self) -> int:
        """Bytes of the file read so far."""
        return self._raw.tell()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._source.read(size if size >= 0 else _BLOCK_BYTES)
        if not self._separator:
            return block
        content = (self._held + block).replace(self._separator, self._replacement)
        keep = _overlap(content, self._separator) if block else 0
        self._held = content[len(content) - keep :]
        ready = content[: len(content) - keep]
        return ready if ready or not block else self.read(size)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _overlap(content: bytes, separator: bytes) -> int:
    """How many of the last bytes could be the beginning of a separator."""
    for length in range(min(len(separator) - 1, len(content)), 0, -1):
        if content.endswith(separator[:length]):
            return length
    return 0
