"""Raw files of one contract table, read in chunks: Parquet, CSV, TSV and other separated text.

The files lie on a disk or in object storage, where only the parts that are asked for are fetched.
Only columns that the contract uses are read. Errors name the file, the column and the row; rows
are counted from 1 within their file, a header line not counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workflow.console import Report, no_report
from workflow.data.convert import convert
from workflow.data.text import read_text_batches, text_names
from workflow.data.values import Place
from workflow.errors import ContractError, DataError, MarqueeError
from workflow.remote import Folder, as_os_errors, check_folder, open_file
from workflow.schema import Column, Table

ROWS_PER_CHUNK = 1_000_000
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a column of the contract, or (column "*") with the whole table."""

    column: str
    error: MarqueeError
    is_declared: bool = True  # False: `column` is a file's name for a column, not the contract's


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, not yet converted."""

    file: str  # relative to the source folder
    first_row: int  # from 0, within the file
    done: float  # 0..1, how much of the table is read when this chunk is used up
    raw: pa.Table
    is_text: bool

    @property
    def num_rows(self) -> int:
        rows: int = self.raw.num_rows
        return rows

    @property
    def place(self) -> Place:
        return Place(self.file, self.first_row, self.is_text)

    def column(self, column: Column) -> pa.Array:
        """A column in the contract's dtype; see `convert.convert`."""
        raw = self.raw.column(column.source_name)
        with reading(self.file):
            return convert(raw.combine_chunks(), column, self.place)


class TableFiles:
    """The files behind one table of a contract.

    Args:
        folder: the source folder.
        name: events, users or videos; for messages.
    Raises:
        DataError: no file, or one that cannot be read.
    """

    def __init__(self, folder: Folder, table: Table, name: str) -> None:
        self.folder = folder
        self.table = table
        self.name = name
        self.files = find_files(folder, table, name)

    @cached_property
    def column_names(self) -> dict[Folder, list[str]]:
        """What each file calls its columns."""
        return {file: self._names(file) for file in self.files}

    def problems(self) -> list[Problem]:
        """Columns that the contract names and a file lacks, and the other way round."""
        found: list[Problem] = []
        for file, names in self.column_names.items():
            found += self._missing(file, names) + self._unknown(file, names)
            if found:
                break  # the other files will say the same
        return found

    def chunks(self, rows_per_chunk: int = ROWS_PER_CHUNK) -> Iterator[Chunk]:
        """All rows in file order (files by name), at most about `rows_per_chunk` at a time.

        Raises:
            ContractError: a column is missing or undeclared.
            DataError: a file is damaged, or there is no row at all.
        """
        for problem in self.problems():
            raise problem.error
        total = sum(file.stat().st_size for file in self.files) or 1
        before, rows = 0.0, 0
        for file in self.files:
            size = file.stat().st_size
            first_row = 0
            for raw, done in self._read(file, rows_per_chunk):
                is_text = self.table.format == "csv"
                part = min((before + done * size) / total, 1.0)
                yield Chunk(self.short(file), first_row, part, raw, is_text)
                first_row += raw.num_rows
            before += size
            rows += first_row
        if rows == 0:
            raise DataError(
                f"the {self.name} table ({self.table.path}) is empty",
                expected="at least one row",
                next_step=f"check the path of {self.name} in the contract",
            )

    def _names(self, file: Folder) -> list[str]:
        with reading(self.short(file)), as_os_errors(file):
            if self.table.format == "parquet":
                names: list[str] = _parquet(file).schema_arrow.names
                return names
            return text_names(file, self.table)

    def _read(self, file: Folder, rows: int) -> Iterator[tuple[pa.Table, float]]:
        used = {c.source_name: None for c in self.table.columns if c.role != "ignore"}
        names = [name for name in self.column_names[file] if name in used]
        with reading(self.short(file)), as_os_errors(file):
            if self.table.format == "csv":
                yield from read_text_batches(file, self.table, names, rows)
                return
            parquet = _parquet(file)
            total, done = parquet.metadata.num_rows, 0
            for batch in parquet.iter_batches(batch_size=rows, columns=names):
                done += batch.num_rows
                yield pa.Table.from_batches([batch]), done / max(total, 1)

    def _missing(self, file: Folder, names: list[str]) -> list[Problem]:
        found = []
        for column in self.table.columns:
            source = column.source_name
            if column.role == "ignore" or source in names:
                continue
            close = self._close(source, names)
            error = ContractError(
                f"{self.short(file)} has no column {source!r} (table {self.name})",
                found=_some(names),
                next_step=f'in the contract, set source = "{close}" for {column.name}'
                if close
                else f"in the contract, set source for {column.name} or remove it",
            )
            found.append(Problem(column.name, error))
        return found

    def _close(self, source: str, names: list[str]) -> str | None:
        """The undeclared column whose name is most like `source`; RecBole types do not count."""
        declared = {column.source_name for column in self.table.columns}
        free = {name.split(":")[0]: name for name in names if name not in declared}
        close = difflib.get_close_matches(source.split(":", maxsplit=1)[0], free, n=1, cutoff=0.5)
        return free[close[0]] if close else None

    def _unknown(self, file: Folder, names: list[str]) -> list[Problem]:
        declared = {column.source_name for column in self.table.columns}
        found = []
        for name in names:
            if name not in declared:
                error = ContractError(
                    f"{self.short(file)} has a column {name!r} that the contract does not declare"
                    f" (table {self.name})",
                    expected=_some(sorted(declared)),
                    next_step=f"declare it among the columns of {self.name};"
                    ' with role = "ignore" if it is not needed',
                )
                found.append(Problem(name, error, is_declared=False))
        return found

    def short(self, file: Folder) -> str:
        """A file's path within the source folder, for messages."""
        if self.folder not in file.parents:
            return file.name
        return "/".join(file.parts[len(self.folder.parts) :])


def read_chunks(
    folder: Folder,
    table: Table,
    name: str,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    report: Report = no_report,
) -> Iterator[pa.Table]:
    """A table's rows in the contract's names and dtypes, chunk by chunk; ignored columns left out.

    Times are int64 microseconds, labels and watch times float64, multi-hot columns lists.

    Raises:
        ContractError, DataError: the first thing that is wrong.
    """
    columns = [column for column in table.columns if column.role != "ignore"]
    for chunk in TableFiles(folder, table, name).chunks(rows_per_chunk):
        report(chunk.done, 1, f"reading {chunk.file}")
        yield pa.table({column.name: chunk.column(column) for column in columns})


def find_files(folder: Folder, table: Table, name: str) -> list[Folder]:
    """A table's files in order: the file itself, or a folder's or a glob's matching files.

    In folders and globs of Parquet tables only `*.parquet` counts; hidden files and those that
    start with `_` never do.

    Raises:
        DataError: the folder or the files are missing.
    """
    check_folder(folder)
    path = folder / table.path
    if path.is_file():
        return [path]
    suffixes = (".parquet",) if table.format == "parquet" else _TEXT_SUFFIXES
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name.endswith(suffixes)]
    else:
        found = list(folder.glob(table.path))
        if table.format == "parquet":
            found = [file for file in found if file.name.endswith(suffixes)]
    files = sorted(file for file in found if file.is_file() and file.name[0] not in "._")
    if not files:
        raise DataError(
            f"no files for the {name} table: {path}",
            expected=f"{table.format} files",
            found=_some(sorted(entry.name for entry in folder.iterdir())) or "an empty folder",
            next_step=f"correct the path of {name} in the contract",
        )
    return files


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn what goes wrong while reading `file` into a DataError."""
    try:
        yield
    except pa.ArrowCancelled as error:
        raise KeyboardInterrupt from error
    except (pa.ArrowException, OSError, UnicodeError, EOFError, LookupError) as error:
        raise DataError(
            f"cannot read {file}",
            found=str(error)[:300] or type(error).__name__,
            next_step="check that the file is complete and has the contract's format and encoding",
        ) from error


def _parquet(file: Folder) -> pq.ParquetFile:
    source = file if isinstance(file, Path) else open_file(file)
    if int(pa.__version__.split(".")[0]) < 15:  # as in the Merlin container: cannot check them
        return pq.ParquetFile(source)
    return pq.ParquetFile(source, page_checksum_verification=True)


def _some(names: list[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
