"""KuaiRec as Parquet files: Kuaishou logs with a fully observed part; see KUAI.md.

Chongming Gao et al., "KuaiRec: A Fully-observed Dataset and Insights for Evaluating Recommender
Systems", CIKM 2022. CC BY-SA 4.0, https://kuairec.com.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workflow.config import KuaiRecConfig
from workflow.console import Report, no_report
from workflow.data.kuaishou import (
    beijing_midnight,
    category,
    column,
    duration_s,
    seconds,
    write_users,
)
from workflow.data.published import Archive, published_files, read_csv, write_table
from workflow.schema import Column

_URL = "https://zenodo.org/records/18164998/files/KuaiRec.zip"
_MD5 = "261550d472c48eff4990fb13c0e5bcf7"  # as the Zenodo record lists it
_USERS, _CATEGORIES, _DAILY = "user_features.csv", "item_categories.csv", "item_daily_features.csv"

_MATRIX = (
    column("user_id", "user_id", "int64"),
    column("video_id", "video_id", "int64"),
    column("timestamp", "timestamp", "int64", unit="s"),
    column("watch_ratio", "label", "float32"),
    column("watch_s", "watch_s", "float32", source="play_duration"),
    column("duration_ms", "context", "int64", kind="categorical", source="video_duration"),
)
_TAGS = (
    column("video_id", "video_id", "int64"),
    category("feat", "video_feature", "string"),
)
# Of the daily table only what does not change from day to day: its counts tell the future.
_STATIC_CODES = ("author_id", "music_id", "video_tag_id")
_STATIC = (
    column("video_id", "video_id", "int64"),
    column("publish_time", "publish_time", "string", source="upload_dt", unit="iso"),
    *(category(name, "video_feature", "string") for name in ("video_type", "upload_type")),
    *(category(name, "video_feature") for name in _STATIC_CODES),
    column("duration_ms", "video_feature", "float32", kind="continuous", source="video_duration"),
)


def archive(settings: KuaiRecConfig) -> Archive:
    """The archive and those of its files that are read."""
    members = (_matrix(settings), _USERS, _CATEGORIES, _DAILY)
    return Archive("KuaiRec", _URL, _MD5, members, max_member_bytes=3 * 10**9)


def load_kuairec(
    settings: KuaiRecConfig,
    target: Path,
    source: Path | None = None,
    report: Report = no_report,
    published: Archive | None = None,
) -> None:
    """Write events.parquet, users.parquet and videos.parquet into `target` (an existing folder).

    Copies of an event (same user, video, time and seconds watched) are left out.

    Args:
        source: a folder with the unpacked files; None downloads them.
        published: where from, in place of `archive(settings)`.
    Raises:
        DataError: the download failed or is corrupt, or a file is missing or damaged.
    """
    with published_files(published or archive(settings), source, target, report) as folder:
        log = _Log()
        chunks = read_csv(folder, _matrix(settings), _MATRIX, "events", report)
        write_table(map(log.events, chunks), target / "events.parquet")
        write_users(folder, _USERS, target / "users.parquet", report)
        videos = _videos(folder, log.lengths(), report)
        write_table([videos], target / "videos.parquet")


def _matrix(settings: KuaiRecConfig) -> str:
    return f"{settings.matrix}_matrix.csv"


class _Log:
    """What one pass over a matrix remembers: a hash of every event, the length of every video."""

    def __init__(self) -> None:
        self._seen: np.ndarray[Any, Any] = np.empty(0, np.uint64)
        self._lengths: list[pa.Table] = []

    def events(self, chunk: pa.Table) -> pa.Table:
        """A chunk without the events that it or an earlier one holds already."""
        self._lengths.append(_first_known(chunk.select(["video_id", "duration_ms"])))
        chunk = chunk.drop_columns(["duration_ms"]).filter(pa.array(self._is_new(chunk)))
        place = chunk.column_names.index("watch_s")
        return chunk.set_column(place, "watch_s", seconds(chunk["watch_s"]))

    def _is_new(self, chunk: pa.Table) -> np.ndarray[Any, Any]:
        rows = chunk.select(["user_id", "video_id", "timestamp", "watch_s"]).to_pandas()
        hashes = pd.util.hash_pandas_object(rows, index=False)
        known = hashes.duplicated().to_numpy() | np.isin(hashes.to_numpy(), self._seen)
        self._seen = np.concatenate([self._seen, hashes.to_numpy()[~known]])
        new: np.ndarray[Any, Any] = ~known
        return new

    def lengths(self) -> pa.Table:
        """video_id and duration_ms, one row per video of the matrix."""
        return _first_known(pa.concat_tables(self._lengths))


def _first_known(table: pa.Table) -> pa.Table:
    """One row per video_id, each column with its first value that is not null."""
    names = [name for name in table.column_names if name != "video_id"]
    grouped = table.group_by("video_id", use_threads=False)
    firsts = grouped.aggregate([(name, "first") for name in names])
    return firsts.select(["video_id", *(f"{name}_first" for name in names)]).rename_columns(
        ["video_id", *names]
    )


def _videos(folder: Path, lengths: pa.Table, report: Report) -> pa.Table:
    """Tags, static columns and lengths of every video that has tags."""
    tags = pa.concat_tables(map(_with_tags, _read(folder, _CATEGORIES, _TAGS, report)))
    daily = pa.concat_tables(map(_first_known, _read(folder, _DAILY, _STATIC, report)))
    videos = tags.join(_first_known(daily), "video_id").join(
        lengths, "video_id", right_suffix="_of_matrix"
    )
    # The daily table lacks the length of some videos; the log knows that of every one it holds.
    duration_ms = pc.coalesce(videos["duration_ms"], videos["duration_ms_of_matrix"])
    videos = videos.drop_columns(["duration_ms", "duration_ms_of_matrix"])
    place = videos.column_names.index("publish_time")
    videos = videos.set_column(place, "publish_time", beijing_midnight(videos["publish_time"]))
    return videos.append_column("duration_s", duration_s(duration_ms)).sort_by("video_id")


def _read(
    folder: Path, file: str, columns: tuple[Column, ...], report: Report
) -> Iterator[pa.Table]:
    return read_csv(folder, file, columns, "videos", report)


def _with_tags(table: pa.Table) -> pa.Table:
    """ "[27, 9]" as "27, 9", which the contract splits."""
    place = table.column_names.index("feat")
    return table.set_column(place, "feat", pc.utf8_trim(table["feat"], characters=" []"))
