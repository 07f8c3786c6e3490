"""Parquet files as pandas frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def read_frame(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """One Parquet file.

    Not pandas.read_parquet: it reads through a Python file object, and a process that ends soon
    after may abort in pyarrow's threads (apache/arrow issue 34314).
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=columns, use_pandas_metadata=True)
    frame: pd.DataFrame = table.to_pandas()
    return frame
