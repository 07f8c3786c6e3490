"""Values of one column: where they stand in a file, numbers, and errors that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workflow.errors import ContractError, DataError
from workflow.schema import Column

# Text that means "no value" in a numeric column of a text file, next to the empty field.
NULL_WORDS = ["", "nan", "na", "n/a", "null", "none", "\\n"]

_MAX_INT64 = pa.scalar(2**63 - 1, pa.uint64())


@dataclass(frozen=True)
class Place:
    """Where a column's values come from, for messages."""

    file: str
    first_row: int = 0
    is_text: bool = False
    rows: np.ndarray[Any, Any] | None = None  # each value's row, where a row holds several

    def row(self, index: int) -> int:
        """The row (from 1) of the value at `index`."""
        return self.first_row + int(index if self.rows is None else self.rows[index]) + 1

    def of(self, column: Column, index: int) -> str:
        return f"{self.file} row {self.row(index)}, column {column.source_name}"


def numbers(array: pa.Array, column: Column, place: Place, target: pa.DataType) -> pa.Array:
    """Numbers, booleans (0/1) or, in text files, their text as `target`; NaN becomes null."""
    if pa.types.is_string(array.type):
        if not place.is_text:
            raise wrong_type(column, "string", place)
        array = parse(array, column, place)
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), target)
    if pa.types.is_boolean(kind):
        return array.cast(pa.int8()).cast(target)
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise wrong_type(column, str(kind), place)
    if pa.types.is_integer(array.type):
        return _from_integers(array, column, place, target)
    return _from_floats(array.cast(pa.float64()), column, place, target)


def parse(array: pa.Array, column: Column, place: Place) -> pa.Array:
    """Text to int64, or to float64 when not every value is a whole number."""
    text = pc.utf8_trim_whitespace(array)
    empty = pc.is_in(pc.utf8_lower(text), value_set=pa.array(NULL_WORDS))
    text = pc.if_else(empty, pa.scalar(None, pa.string()), text)
    for target in (pa.int64(), pa.float64()):
        try:
            return text.cast(target)
        except pa.ArrowInvalid:
            continue
    as_numbers = pd.to_numeric(text.to_pandas(), errors="coerce")
    bad = np.flatnonzero(as_numbers.isna().to_numpy() & ~pc.is_null(text).to_numpy(False))
    raise bad_value(column, place, int(bad[0]) if len(bad) else 0, array, "a number")


def bad_value(
    column: Column, place: Place, index: int, array: pa.Array, expected: str
) -> DataError:
    """The error for one value that does not fit."""
    return DataError(
        f"{place.of(column, index)}: {array[index].as_py()!r} is not {expected}",
        next_step=f"correct the file, or the declaration of {column.name} in the contract",
    )


def wrong_type(column: Column, found: str, place: Place) -> ContractError:
    """The error for a whole column of another type than declared."""
    wanted = f"list of {column.dtype}" if column.kind == "multi_hot" else column.dtype
    return ContractError(
        f"{place.file}, column {column.source_name} has the wrong dtype",
        expected=wanted,
        found=found,
        next_step=f"correct dtype and kind of {column.name} in the contract, or cast the file",
    )


def _from_integers(array: pa.Array, column: Column, place: Place, target: pa.DataType) -> pa.Array:
    if pa.types.is_uint64(array.type):
        big = np.flatnonzero(pc.fill_null(pc.greater(array, _MAX_INT64), False).to_numpy(False))
        if len(big):
            raise bad_value(column, place, int(big[0]), array, "an int64")
    return array.cast(pa.int64()).cast(target, safe=False)


def _from_floats(array: pa.Array, column: Column, place: Place, target: pa.DataType) -> pa.Array:
    array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
    values = array.to_numpy(zero_copy_only=False)  # null is NaN
    if pa.types.is_integer(target):
        whole = np.isnan(values) | ((values == np.floor(values)) & (np.abs(values) < 2**53))
        _first_bad(~whole, column, place, array, "a whole number (dtype int64)")
        return array.cast(target)
    limit = np.finfo(np.float32).max
    _first_bad(np.abs(values) > limit, column, place, array, "a finite number")
    return array.cast(target, safe=False)


def _first_bad(
    bad: np.ndarray[Any, Any], column: Column, place: Place, array: pa.Array, expected: str
) -> None:
    if bad.any():
        raise bad_value(column, place, int(np.argmax(bad)), array, expected)
