"""MovieLens-1M as Parquet files: downloaded with its published checksum, or from a folder.

F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS
5(4), 2015. For research use; the licence is in the archive's README and forbids redistribution.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflow.console import Report, no_report
from workflow.data.download import download
from workflow.data.reading import read_chunks
from workflow.errors import DataError
from workflow.schema import Column, Table

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MD5 = "c4d9eecfca2ab87c1945afe126590906"
_MAX_MEMBER_BYTES = 200_000_000
_USE_FOLDER = "use a local copy with --source FOLDER"


def _column(name: str, number: int, dtype: str, role: str, **more: str) -> Column:
    values = {"name": name, "source": f"c{number}", "dtype": dtype, "role": role, **more}
    return Column.model_validate(values)


def _table(path: str, *columns: Column) -> Table:
    return Table(
        path=path, format="csv", separator="::", encoding="iso-8859-1", header=False, quote="",
        columns=columns,
    )  # fmt: skip


_TABLES = {
    "events": _table(
        "ratings.dat",
        _column("user_id", 1, "int64", "user_id"),
        _column("video_id", 2, "int64", "video_id"),
        _column("rating", 3, "float32", "label"),
        _column("timestamp", 4, "int64", "timestamp", unit="s"),
    ),
    "users": _table(
        "users.dat",
        _column("user_id", 1, "int64", "user_id"),
        _column("gender", 2, "string", "user_feature", kind="categorical"),
        _column("age", 3, "int64", "user_feature", kind="categorical"),
        _column("occupation", 4, "int64", "user_feature", kind="categorical"),
        _column("zip", 5, "string", "ignore"),
    ),
    "videos": _table(
        "movies.dat",
        _column("video_id", 1, "int64", "video_id"),
        _column("title", 2, "string", "title"),
        _column("genres", 3, "string", "video_feature", kind="multi_hot", separator="|"),
    ),
}


def load_movielens(
    target: Path,
    source: Path | None = None,
    report: Report = no_report,
    *,
    url: str = URL,
    md5: str = MD5,
) -> None:
    """Write events.parquet, users.parquet and videos.parquet into `target` (an existing folder).

    Args:
        source: a folder with ratings.dat, users.dat and movies.dat; None downloads the archive.
    Raises:
        DataError: the download failed or is corrupt, or a file is missing or damaged.
    """
    if source is not None:
        _convert(source, target)
        return
    archive, unpacked = target / "ml-1m.zip", target / ".unpacked"
    download(url, archive, md5, report, next_step=_USE_FOLDER)
    unpacked.mkdir()
    try:
        _unpack(archive, unpacked)
        _convert(unpacked, target)
    finally:
        for path in [archive, *unpacked.iterdir()]:
            path.unlink(missing_ok=True)
        unpacked.rmdir()


def _unpack(archive: Path, folder: Path) -> None:
    """Copy the three members by name, wherever they lie; nothing else leaves the archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for table in _TABLES.values():
                members = [i for i in opened.infolist() if i.filename.endswith("/" + table.path)]
                if len(members) != 1 or members[0].file_size > _MAX_MEMBER_BYTES:
                    raise DataError(
                        f"the MovieLens archive has no usable {table.path}", next_step=_USE_FOLDER
                    )
                (folder / table.path).write_bytes(opened.read(members[0]))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataError(
            "the MovieLens archive is damaged", found=str(error), next_step=_USE_FOLDER
        ) from error


def _convert(source: Path, target: Path) -> None:
    for name, declared in _TABLES.items():
        table = pa.concat_tables(read_chunks(source, declared, name))
        if name == "events":
            table = _events(table)
        if name == "videos":
            table = _with_year(table)
        pq.write_table(table, target / f"{name}.parquet")


def _events(table: pa.Table) -> pa.Table:
    seconds = pc.divide(table["timestamp"], 10**6)
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", seconds)
    rating = table["rating"].cast(pa.float32())
    return table.set_column(table.column_names.index("rating"), "rating", rating)


def _with_year(videos: pa.Table) -> pa.Table:
    """Split "Toy Story (1995)" into the title and the year (float32, null if there is none)."""
    pattern = r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*$"
    found = pc.extract_regex(videos["title"], pattern)
    title = pc.coalesce(pc.struct_field(found, "title"), videos["title"])
    year = pc.struct_field(found, "year").cast(pa.float32())
    videos = videos.set_column(videos.column_names.index("title"), "title", title)
    return videos.append_column("year", year)
