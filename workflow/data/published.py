"""A published dataset: its files from a folder or by download, and their way to Parquet."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workflow.console import Report
from workflow.data.archives import copy_members
from workflow.data.download import download
from workflow.data.reading import read_chunks, reading
from workflow.data.text import text_names
from workflow.errors import ContractError, DataError
from workflow.schema import Column, Table

_USE_FOLDER = "use a local copy with --source FOLDER"


@dataclass(frozen=True)
class Archive:
    """What is downloaded and read of a published dataset.

    Attributes:
        title: what people call it; for messages.
        url: a .zip or .tar.gz file.
        md5: its published checksum.
        members: names of the files that are read.
        max_member_bytes: more than the largest of them has.
    """

    title: str
    url: str
    md5: str
    members: tuple[str, ...]
    max_member_bytes: int


@contextmanager
def published_files(
    archive: Archive, source: Path | None, work: Path, report: Report
) -> Iterator[Path]:
    """A folder that holds all members of `archive`.

    Args:
        source: a folder with an unpacked copy; None downloads the archive into `work`, where
            nothing of it stays.
    Raises:
        DataError: a file is missing, the download failed or its checksum differs, or the archive
            is damaged.
    """
    if source is not None:
        yield _complete(archive, source)
        return
    file, unpacked = work / archive.url.rsplit("/", 1)[-1], work / ".unpacked"
    unpacked.mkdir()
    try:
        download(archive.url, file, archive.md5, report, next_step=_USE_FOLDER)
        copy_members(
            file, archive.members, unpacked, max_bytes=archive.max_member_bytes,
            title=archive.title, next_step=_USE_FOLDER, report=report,
        )  # fmt: skip
        file.unlink()
        yield unpacked
    finally:
        file.unlink(missing_ok=True)
        shutil.rmtree(unpacked)


def local_files(archive: Archive, source: Path) -> list[Path]:
    """Where the members lie in `source`, or in its folder `data`; a file may not exist."""

    def present(folder: Path) -> int:
        return sum((folder / name).is_file() for name in archive.members)

    folder = max(source, source / "data", key=present)
    return [folder / name for name in archive.members]


def _complete(archive: Archive, source: Path) -> Path:
    files = local_files(archive, source)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        found = sorted(entry.name for entry in source.iterdir())
        raise DataError(
            f"{source} has no {missing[0]}",
            expected="the unpacked files of " + archive.title,
            found=", ".join(found[:12]) or "an empty folder",
            next_step="correct --source, or leave it out to download them",
        )
    return files[0].parent


def read(folder: Path, table: Table, name: str, report: Report) -> Iterator[pa.Table]:
    """A published table chunk by chunk, as `reading.read_chunks`.

    Raises:
        DataError: a column is missing, or the file is damaged.
    """
    try:
        yield from read_chunks(folder, table, name, report=report)
    except ContractError as error:
        raise DataError(
            error.what,
            expected=error.expected or "the columns as published",
            found=error.found,
            next_step="use the published files; marquee init drafts a contract for others",
        ) from error


def read_csv(
    folder: Path, file: str, columns: tuple[Column, ...], name: str, report: Report
) -> Iterator[pa.Table]:
    """`read` for a comma-separated file with a header, of which only `columns` are read."""
    table = Table(path=file, format="csv", columns=columns)
    with reading(file):
        names = text_names(folder / file, table)
    used = {column.source_name for column in columns}
    others = (Column(name=n, role="ignore", dtype="string") for n in names if n and n not in used)
    table = table.model_copy(update={"columns": (*columns, *others)})
    yield from read(folder, table, name, report)


def write_table(chunks: Iterable[pa.Table], file: Path) -> None:
    """Write tables of one schema into a Parquet file, holding one at a time in memory."""
    writer = None
    try:
        for chunk in chunks:
            writer = writer or pq.ParquetWriter(file, chunk.schema)
            writer.write_table(chunk)
    finally:
        if writer is not None:
            writer.close()
