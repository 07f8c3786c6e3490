"""Encoded tables: what every model input needs, one row per user and per video, as .npy files.

Row 0 is the unknown user and the padding video. Training, export and serving read these same
arrays, so a feature has one value everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workflow.errors import MissingArtifactError
from workflow.features.daily import DailyCounts
from workflow.features.history import Histories
from workflow.features.spec import NULL, OUT_OF_VOCABULARY
from workflow.run import Run
from workflow.schema import Column

if TYPE_CHECKING:
    import pandas as pd

MAX_LIST_LENGTH = 32


def encode_column(values: pd.Series[Any], column: Column) -> npt.NDArray[Any]:
    """One encoded feature with a row 0 in front.

    Returns:
        float32 [n + 1] for continuous (row 0 is the mean, 0), int32 [n + 1] for categorical
        (row 0 is null), int32 [n + 1, length] padded with 0 for multi-hot.
    """
    if column.kind == "continuous":
        return np.append(np.float32(0), values.to_numpy(np.float32))
    if column.kind == "categorical":
        return np.append(np.int32(NULL), values.to_numpy(np.int32))
    return pad_lists(values)


def pad_lists(values: pd.Series[Any]) -> npt.NDArray[np.int32]:
    """Lists as int32 [n + 1, longest list (at most 32)], 0-padded; row 0 and empty lists are 0."""
    lengths = np.minimum(values.map(len).to_numpy(np.int64), MAX_LIST_LENGTH)
    width = max(1, int(lengths.max(initial=1)))
    result = np.zeros((len(values) + 1, width), np.int32)
    for row, items in enumerate(values, start=1):
        result[row, : lengths[row - 1]] = items[: lengths[row - 1]]
    return result


def index_column(encoded: npt.NDArray[np.int64], padding: int) -> npt.NDArray[np.int32]:
    """Vocabulary index per row with row 0 in front: 2 for the unknown user, 0 for padding."""
    return np.append(np.int32(padding), encoded.astype(np.int32))


USER_ROW_0, VIDEO_ROW_0 = OUT_OF_VOCABULARY, 0


class FeatureStore:
    """Reads a run's encoded arrays, memory-mapped.

    Attributes:
        root: the run's features folder.
    """

    def __init__(self, run: Run) -> None:
        self.root = run.require(run.features, "features", "marquee features")

    def user(self, name: str) -> npt.NDArray[Any]:
        return self._load("users", name)

    def video(self, name: str) -> npt.NDArray[Any]:
        return self._load("videos", name)

    def duration_s(self) -> npt.NDArray[np.float32]:
        """Seconds each video lasts; float32 [num_videos + 1], NaN where not known (row 0)."""
        return self._load("videos", "raw_duration_s")

    def histories(self) -> Histories:
        names = ["video_row", "time", "start", "session_start"]
        if (self.root / "history" / "label.npy").exists():
            names.append("label")
        return Histories(**{name: self._load("history", name) for name in names})

    def daily(self) -> DailyCounts:
        """Counts of any video up to any day."""
        return DailyCounts(*(self._load("daily", name) for name in ("key", "events", "labels")))

    def samples(self, *parts: str) -> list[Path]:
        """Parquet files of "train", "valid" or "test" samples."""
        return [path for part in parts for path in sorted((self.root / part).glob("*.parquet"))]

    def _load(self, folder: str, name: str) -> npt.NDArray[Any]:
        path = self.root / folder / f"{name}.npy"
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise MissingArtifactError(
                f"{path} is damaged or missing",
                found=str(error),
                next_step=f"marquee features --run {self.root.parent} --force",
            ) from error
        return array


def save_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Write one .npy file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(values), allow_pickle=False)
