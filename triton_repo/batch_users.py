"""Who is answered in a batch: all users of the exported repository, or those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_repo.local import stage_folder
from workflow.data.id_files import ids_of_file
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
    return ids_of_file(path, "user_id", contract)


def _for_stages(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Fixed-width bytes as objects, which is how requests carry text."""
    return ids.astype(object) if ids.dtype.kind == "S" else ids.astype(np.int64)
