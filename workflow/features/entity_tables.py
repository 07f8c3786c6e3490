"""The static features of all users or all videos, encoded: one array per feature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow.parquet as pq

from workflow.features import compiled, tables
from workflow.features.encoded import encode_column, list_length, with_row_0
from workflow.features.fitted import CompiledTable
from workflow.features.spec import Kind
from workflow.schema import Column

Arrays = Iterator[tuple[str, npt.NDArray[Any]]]


def encode_entities(
    path: Path, columns: tuple[Column, ...], workflow: Any, fitted: CompiledTable
) -> Arrays:
    """(name, values with the row 0 in front) of each feature of a table.

    Args:
        path: the validated table.
        workflow: the fitted workflow, which encodes on a GPU.
        fitted: the same, compiled, which encodes on a CPU.
    """
    if tables.on_gpu():
        yield from by_nvtabular(path, columns, workflow)
    else:
        yield from by_compiled(path, columns, fitted)


def by_nvtabular(path: Path, columns: tuple[Column, ...], workflow: Any) -> Arrays:
    """What NVTabular's transform gives."""
    import pandas as pd

    frame = pd.concat(tables.transform(workflow, [path]), ignore_index=True)
    for column in columns:
        kind = _kind(column)
        yield column.name, with_row_0(encode_column(frame[column.name], kind), kind)


def by_compiled(path: Path, columns: tuple[Column, ...], fitted: CompiledTable) -> Arrays:
    """The same, bit for bit, by the compiled workflow."""
    table = pq.read_table(path, columns=[column.name for column in columns])
    for column in columns:
        kind = _kind(column)
        values = table[column.name].combine_chunks()
        length = list_length(values.value_lengths().to_numpy()) if kind == "multi_hot" else 1
        found = compiled.encode(values, fitted[column.name], kind, length)
        yield column.name, with_row_0(found, kind)


def _kind(column: Column) -> Kind:
    assert column.kind is not None  # features have one
    return column.kind
