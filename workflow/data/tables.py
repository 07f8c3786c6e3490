"""Read the validated tables of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workflow.run import Run

_NEXT = "marquee validate"


def read_users(run: Run) -> pd.DataFrame:
    """users.parquet: user_id (ascending) and the user features; row i of the frame is user_row i+1.

    An int64 column with nulls becomes pandas' Int64, so that whole numbers stay whole.

    Raises:
        MissingArtifactError: the run has no validated data.
    """
    return _read(run.require(run.data / "users.parquet", "validated users", _NEXT))


def read_videos(run: Run) -> pd.DataFrame:
    """videos.parquet: video_id (ascending), title, publish_time (s), features; lists as arrays.

    Row i of the frame is video_row i+1.

    Raises:
        MissingArtifactError: the run has no validated data.
    """
    return _read(run.require(run.data / "videos.parquet", "validated videos", _NEXT))


def event_files(run: Run) -> list[Path]:
    """The event parts in user order; within a part events are sorted by (user_row, timestamp).

    Raises:
        MissingArtifactError: the run has no validated data.
    """
    folder = run.require(run.data / "events", "validated events", _NEXT)
    return sorted(folder.glob("part-*.parquet"))


def _read(path: Path) -> pd.DataFrame:
    table = pq.read_table(path)
    frame: pd.DataFrame = table.to_pandas()
    for name in table.column_names:
        column = table[name]
        if pa.types.is_int64(column.type) and column.null_count:
            frame[name] = column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame
