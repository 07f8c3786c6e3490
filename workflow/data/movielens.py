"""MovieLens-1M as Parquet files: downloaded with its published checksum, or from a folder.

F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS
5(4), 2015. For research use; the licence is in the archive's README and forbids redistribution.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from workflow.console import Report, no_report
from workflow.data.published import Archive, published_files, read, write_table
from workflow.schema import Column, Table

ARCHIVE = Archive(
    title="MovieLens",
    url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    md5="c4d9eecfca2ab87c1945afe126590906",
    members=("ratings.dat", "users.dat", "movies.dat"),
    max_member_bytes=200_000_000,
)


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
    archive: Archive = ARCHIVE,
) -> None:
    """Write events.parquet, users.parquet and videos.parquet into `target` (an existing folder).

    Args:
        source: a folder with ratings.dat, users.dat and movies.dat; None downloads the archive.
    Raises:
        DataError: the download failed or is corrupt, or a file is missing or damaged.
    """
    with published_files(archive, source, target, report) as folder:
        events, users, videos = (
            read(folder, table, name, report) for name, table in _TABLES.items()
        )
        write_table(map(_events, events), target / "events.parquet")
        write_table(users, target / "users.parquet")
        write_table(map(_with_year, videos), target / "videos.parquet")


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
