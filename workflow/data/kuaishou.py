"""What KuaiRand and KuaiRec, both logs of the app Kuaishou, share: users, times, lengths."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from workflow.console import Report
from workflow.data.published import read_csv, write_table
from workflow.schema import Column

_BEIJING_S = 8 * 3600  # ahead of UTC; China has no daylight saving time


def column(name: str, role: str, dtype: str, **more: str) -> Column:
    """A column of a published file; `source` is its name there if it has another here."""
    return Column.model_validate({"name": name, "role": role, "dtype": dtype, **more})


def category(name: str, role: str, dtype: str = "int64", **more: str) -> Column:
    """A categorical column of a published file."""
    return column(name, role, dtype, kind="categorical", **more)


# The exact numbers of follows, fans, friends and days say little more than these ranges of them.
_USER_TEXTS = (
    "user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range",
    "register_days_range",
)  # fmt: skip
_USER_CODES = (
    "is_lowactive_period", "is_live_streamer", "is_video_author",
    *(f"onehot_feat{number}" for number in range(18)),
)  # fmt: skip
USER_COLUMNS = (
    column("user_id", "user_id", "int64"),
    *(category(name, "user_feature", "string") for name in _USER_TEXTS),
    *(category(name, "user_feature") for name in _USER_CODES),
)


def write_users(folder: Path, file: str, target: Path, report: Report) -> None:
    """Convert a user features file."""
    write_table(read_csv(folder, file, USER_COLUMNS, "users", report), target)


def seconds(milliseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Milliseconds as float32 seconds."""
    return pc.divide(milliseconds.cast(pa.float64()), 1000.0).cast(pa.float32())


def duration_s(milliseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """A video's length in float32 seconds; null when it is not known (null, zero or less)."""
    known = pc.fill_null(pc.greater(milliseconds, 0), False)
    return pc.if_else(known, seconds(milliseconds), pa.scalar(None, pa.float32()))


def beijing_midnight(micros: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 unix seconds of the start of days that were read as if they were days of UTC."""
    return pc.subtract(pc.divide(micros, 10**6), _BEIJING_S)
