"""Arrow columns through compiled columns: what NVTabular's transform gives, with numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workflow.features.fitted import CompiledColumn
from workflow.features.spec import NULL, Kind


def encode(values: pa.Array, column: CompiledColumn, kind: Kind, length: int) -> npt.NDArray[Any]:
    """One feature by its kind: `numbers`, `indices`, or `padded_lists` of `length`."""
    if kind == "continuous":
        return numbers(values, column)
    if kind == "categorical":
        return indices(values, column)
    return padded_lists(values, column, length)


def indices(values: pa.Array, column: CompiledColumn) -> npt.NDArray[np.int32]:
    """Vocabulary indices of scalars; int32 [n]. Each distinct value is looked up once."""
    if pa.types.is_null(values.type):
        return np.full(len(values), NULL, np.int32)
    distinct = values.dictionary_encode()
    raw = _plain(distinct.dictionary)
    found = column.encode(raw, np.zeros(len(raw), bool))
    at = distinct.indices.fill_null(len(raw)).to_numpy()
    result: npt.NDArray[np.int32] = np.append(found, np.int32(NULL))[at]
    return result


def numbers(values: pa.Array, column: CompiledColumn) -> npt.NDArray[np.float32]:
    """Normalised scalars; float32 [n]. With nulls, whole numbers reach NVTabular as float64."""
    raw = values.to_numpy(zero_copy_only=False)
    whole = pa.types.is_integer(values.type)
    if whole and values.null_count:
        raw = raw.astype(np.float64)
    return column.normalise(raw if whole else raw.astype(np.float32, copy=False))


def padded_lists(values: pa.Array, column: CompiledColumn, length: int) -> npt.NDArray[np.int32]:
    """Vocabulary indices of lists, cut to `length` and padded with 0; int32 [n, length]."""
    result = np.zeros((len(values), length), np.int32)
    kept = np.minimum(values.value_lengths().to_numpy(), length)
    first = values.offsets.to_numpy()[:-1] - values.offsets[0].as_py()
    row = np.repeat(np.arange(len(values)), kept)
    place = np.arange(len(row)) - np.repeat(np.cumsum(kept) - kept, kept)
    result[row, place] = indices(values.flatten(), column)[first[row] + place]
    return result


def _plain(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_string(values.type):
        return np.array(values.to_pylist(), str).reshape(len(values))
    plain: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return plain
