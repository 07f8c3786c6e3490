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
from workflow.features.spec import NULL, OUT_OF_VOCABULARY, Kind
from workflow.run import Run

if TYPE_CHECKING:
    import pandas as pd

MAX_LIST_LENGTH = 32


def with_row_0(values: npt.NDArray[Any], kind: Kind) -> npt.NDArray[Any]:
    """An encoded feature of all users or videos with the row 0 in front.

    Args:
        values: float32 [n] for continuous (row 0 is the mean, 0), int32 [n] for categorical
            (row 0 is null), int32 [n, length] padded with 0 for multi-hot (row 0 is padding).
    """
    first = np.full((1, *values.shape[1:]), NULL if kind == "categorical" else 0, values.dtype)
    return np.concatenate([first, values])


def encode_column(values: pd.Series[Any], kind: Kind) -> npt.NDArray[Any]:
    """What NVTabular made of one feature, as `with_row_0` takes it."""
    if kind == "multi_hot":
        return pad_lists(values)
    return values.to_numpy(np.float32 if kind == "continuous" else np.int32)


def list_length(lengths: npt.NDArray[np.int64]) -> int:
    """Width of padded lists: the longest one's, at least 1 and at most 32."""
    return int(np.clip(lengths.max(initial=1), 1, MAX_LIST_LENGTH))


def pad_lists(values: pd.Series[Any]) -> npt.NDArray[np.int32]:
    """Lists as int32 [n, list_length], padded with 0."""
    lengths = values.map(len).to_numpy(np.int64)
    width = list_length(lengths)
    result = np.zeros((len(values), width), np.int32)
    for row, items in enumerate(values):
        result[row, : lengths[row]] = items[:width]
    return result


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
