"""Lets Merlin 23.8 work with cuDF 24.12; changes nothing on cuDF 23 and where there is no GPU.

Call `mend_cudf` before nvtabular or merlin.io is imported. These are all the names of cuDF and
dask-cudf that Merlin uses and 24.12 does not have; the other names were looked up in its source.
"""

from __future__ import annotations

import importlib
from typing import Any


def mend_cudf() -> None:
    """Supply what is gone, where cuDF can be imported."""
    try:
        column: Any = importlib.import_module("cudf.core.column")
    except Exception:  # not installed, or it finds no GPU, which it reports in many ways
        return
    if not hasattr(column, "build_categorical_column"):
        column.build_categorical_column = _build_categorical_column
    dask_cudf: Any = importlib.import_module("dask_cudf")
    if not hasattr(dask_cudf, "from_dask_dataframe"):
        dask_cudf.from_dask_dataframe = _from_dask_dataframe


def _build_categorical_column(
    categories: Any,
    codes: Any,
    *,
    size: int | None = None,
    offset: int = 0,
    ordered: bool = False,
) -> Any:
    """A categorical column from its categories and a column of codes."""
    import cudf

    return cudf.core.column.CategoricalColumn(
        data=None,
        size=size,
        dtype=cudf.CategoricalDtype(categories=categories, ordered=ordered),
        offset=offset,
        children=(codes,),
    )


def _from_dask_dataframe(data: Any) -> Any:
    """A Dask collection of pandas frames as one of cuDF frames."""
    return data.to_backend("cudf")
