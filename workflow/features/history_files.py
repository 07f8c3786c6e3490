"""Histories on disk, written partition by partition and read memory-mapped."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from workflow.features.encoded import save_array
from workflow.features.history import Histories, Int64, session_starts


class GrowingArray:
    """A one-dimensional .npy file that is written in pieces; the same bytes as np.save gives.

    numpy leaves room in the header for the final length (numpy.lib.format, growth axis).
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.length = 0
        self._dtype = np.dtype(dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        layout: Any = np.lib.format  # numpy does not type it
        described = layout.dtype_to_descr(self._dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self.length,)}
        layout.write_array_header_1_0(self._file, header)


class HistoryWriter:
    """Writes all histories while the events stream by; a `with` block finishes the files.

    Args:
        folder: where `video_row`, `time`, `start`, `session_start` and perhaps `label` go.
        num_users: users have rows 1 to `num_users`.
        graded: whether histories say which watches were positive.
    """

    def __init__(self, folder: Path, num_users: int, gap_s: int, *, graded: bool) -> None:
        self._folder, self._gap_s = folder, gap_s
        self._watches = np.zeros(num_users + 1, np.int64)
        dtypes = {"video_row": np.int32, "time": np.int64, "session_start": np.int64}
        dtypes |= {"label": np.int8} if graded else {}
        self._files = {
            name: GrowingArray(folder / f"{name}.npy", dtype) for name, dtype in dtypes.items()
        }

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        save_array(self._folder / "start.npy", np.r_[0, np.cumsum(self._watches)])

    def add(
        self, user_row: npt.NDArray[Any], video_row: npt.NDArray[Any], time: Int64, label: Any
    ) -> None:
        """Watches of the next users, sorted by (user_row, time); all [n]."""
        sessions = session_starts(user_row, time, self._gap_s) + self._files["time"].length
        values = {"video_row": video_row, "time": time, "session_start": sessions, "label": label}
        for name, file in self._files.items():
            file.append(values[name])
        self._watches += np.bincount(user_row, minlength=len(self._watches))


def load_histories(folder: Path) -> Histories:
    """What `HistoryWriter` wrote, memory-mapped."""

    def load(name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    names = ["video_row", "time", "start", "session_start"]
    names += ["label"] if (folder / "label.npy").exists() else []
    return Histories(**{name: load(name) for name in names})
