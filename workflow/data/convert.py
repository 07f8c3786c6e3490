"""One raw column to the contract's dtype, strictly: a value that does not fit is an error.

Numbers become int64 or float32 (labels, watch times and propensities stay float64 here), times
int64 microseconds since 1970, multi-hot columns lists without nulls. NaN becomes null.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow.data.times import to_microseconds
from workflow.data.values import Place, numbers, wrong_type
from workflow.errors import ContractError
from workflow.roles import TIME_ROLES
from workflow.schema import Column


def convert(raw: pa.Array, column: Column, place: Place) -> pa.Array:
    """`raw` in the dtype that the contract declares.

    Raises:
        ContractError: the file's type is not the contract's.
        DataError: a value cannot be converted, is infinite or is an implausible time.
    """
    array = _simple(raw)
    if column.role in TIME_ROLES:
        return to_microseconds(array, column, place)
    if column.kind == "multi_hot":
        return _lists(array, column, place)
    if column.role == "title" and not pa.types.is_string(array.type):
        return _cast(array, pa.string(), column)
    if column.dtype == "string":
        return _strings(array, column, place)
    return numbers(array, column, place, _number_type(column))


def _simple(array: pa.Array) -> pa.Array:
    """Decode dictionaries and large or view types."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # no chunk at all
            array = pa.array([], array.type)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _simple(array.dictionary_decode())
    if pa.types.is_large_string(kind) or str(kind) == "string_view":  # no such name in 14
        array = array.cast(pa.string())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.list_(kind.value_type))
    if pa.types.is_string(array.type):
        array.validate(full=True)  # a damaged file can hold text that is not UTF-8
    return array


def _number_type(column: Column) -> pa.DataType:
    if column.role in ("label", "watch_s", "propensity"):
        return pa.float64()
    return pa.int64() if column.dtype == "int64" else pa.float32()


def _cast(array: pa.Array, target: pa.DataType, column: Column) -> pa.Array:
    try:
        return array.cast(target)
    except pa.ArrowException as error:
        raise ContractError(
            f"column {column.source_name} cannot become {target}", found=str(array.type)
        ) from error


def _strings(array: pa.Array, column: Column, place: Place) -> pa.Array:
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.string())
    if not pa.types.is_string(array.type):
        raise wrong_type(column, str(array.type), place)
    # A request cannot tell empty text from no value, so the log may not either.
    return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)


def _lists(array: pa.Array, column: Column, place: Place) -> pa.Array:
    """Lists without null or empty elements; "no value" is the empty list."""
    if pa.types.is_string(array.type):
        if column.separator is None:
            raise ContractError(
                f"column {column.source_name} holds text, not lists",
                next_step=f'say at which separator to split {column.name}: separator = "|"',
            )
        array = pc.split_pattern(array, column.separator)
    elif pa.types.is_null(array.type):
        array = pa.nulls(len(array), pa.list_(pa.string()))
    if not pa.types.is_list(array.type):
        raise wrong_type(column, str(array.type), place)
    rows = pc.list_parent_indices(array).to_numpy(zero_copy_only=False)
    values = _simple(pc.list_flatten(array))
    if pa.types.is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
    if column.dtype == "string":
        values = _strings(values, column, replace(place, is_text=True))
    else:
        inner = replace(place, rows=rows)
        values = numbers(values, column, inner, pa.int64())
    keep = pc.is_valid(values).to_numpy(zero_copy_only=False)
    lengths = np.bincount(rows[keep], minlength=len(array))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values.filter(pa.array(keep)))
