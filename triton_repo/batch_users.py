"""Who is answered in a batch: all users of the exported repository, or those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_repo.local import stage_folder
from workflow.errors import DataError
from workflow.run import Run
from workflow.schema import Contract


def all_users(run: Run) -> npt.NDArray[Any]:
    """Raw ids of every user that the exported repository knows; int64 or bytes (object) [n]."""
    path = stage_folder(run, "query_tower") / "user_id.npy"
    return _for_stages(np.load(path, allow_pickle=False))


def users_of_file(path: Path, contract: Contract) -> npt.NDArray[Any]:
    """Raw ids of a file, distinct, in the order of the file; int64 or bytes (object) [n].

    Args:
        path: Parquet (its column user_id, or the only one), else text with one id per line.
    Raises:
        DataError: no such file, no ids in it, or ids that the run's data cannot have.
    """
    if not path.is_file():
        raise DataError(f"no file of users {path}")
    ids = _parquet(path) if path.suffix == ".parquet" else _lines(path)
    if not ids:
        raise DataError(f"{path} names no user", expected="one raw user id per line")
    distinct = list(dict.fromkeys(ids))
    if contract.id_column("user_id").dtype == "string":
        return np.array([str(one).encode() for one in distinct], object)
    return np.array([_number(one, path) for one in distinct], np.int64)


def _lines(path: Path) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text", found=str(error)) from None
    ids = [line.strip() for line in lines if line.strip()]
    return ids[1:] if ids[:1] == ["user_id"] else ids  # the header of a table of one column


def _parquet(path: Path) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except pa.ArrowException as error:
        raise DataError(f"{path} is not Parquet", found=str(error)) from None
    if "user_id" not in names and len(names) != 1:
        raise DataError(
            f"{path} has no column user_id", expected="user_id, or one column",
            found=", ".join(names),
        )  # fmt: skip
    name = "user_id" if "user_id" in names else names[0]
    values = pq.read_table(path, columns=[name]).column(0).to_pylist()
    return [value for value in values if value is not None]


def _number(value: Any, path: Path) -> int:
    limits = np.iinfo(np.int64)
    try:
        number = int(value)
    except (ValueError, TypeError):
        number = limits.max + 1
    if not limits.min <= number <= limits.max:
        raise DataError(
            f"{path}: user id {value!r} is not a number", expected="int64 ids, as in the data"
        )
    return number


def _for_stages(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Fixed-width bytes as objects, which is how requests carry text."""
    return ids.astype(object) if ids.dtype.kind == "S" else ids.astype(np.int64)
