"""Files of raw user or video ids, for verbs that are told which ones are meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workflow.errors import DataError
from workflow.schema import Contract

IdRole = Literal["user_id", "video_id"]


def ids_of_file(path: Path, role: IdRole, contract: Contract) -> npt.NDArray[Any]:
    """Raw ids of a file, distinct, in the order of the file; int64 or bytes (object) [n].

    Args:
        path: Parquet (its column of the role's name, or the only one), else text with one id a
            line, or a CSV file whose header names the column.
    Raises:
        DataError: no such file, no ids in it, or ids that the run's data cannot have.
    """
    what = role.removesuffix("_id")
    if not path.is_file():
        raise DataError(f"no file of {what}s {path}")
    ids = _parquet(path, role) if path.suffix == ".parquet" else _lines(path, role)
    if not ids:
        raise DataError(f"{path} names no {what}", expected=f"one raw {what} id per line")
    distinct = list(dict.fromkeys(ids))
    if contract.id_column(role).dtype == "string":
        return np.array([str(one).encode() for one in distinct], object)
    return np.array([_number(one, path, what) for one in distinct], np.int64)


def _lines(path: Path, role: IdRole) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text", found=str(error)) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = lines[0].split(",") if lines else []
    if path.suffix == ".csv" and len(header) > 1 and role in header:
        return _csv(path, role)
    return lines[1:] if lines[:1] == [role] else lines  # the header of a table of one column


def _csv(path: Path, role: IdRole) -> list[Any]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[role].strip() for row in csv.DictReader(file) if (row[role] or "").strip()]


def _parquet(path: Path, role: IdRole) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except pa.ArrowException as error:
        raise DataError(f"{path} is not Parquet", found=str(error)) from None
    if role not in names and len(names) != 1:
        raise DataError(
            f"{path} has no column {role}", expected=f"{role}, or one column",
            found=", ".join(names),
        )  # fmt: skip
    name = role if role in names else names[0]
    values = pq.read_table(path, columns=[name]).column(0).to_pylist()
    return [value for value in values if value is not None]


def _number(value: Any, path: Path, what: str) -> int:
    limits = np.iinfo(np.int64)
    try:
        number = int(value)
    except (ValueError, TypeError):
        number = limits.max + 1
    if not limits.min <= number <= limits.max:
        raise DataError(
            f"{path}: {what} id {value!r} is not a number", expected="int64 ids, as in the data"
        )
    return number
