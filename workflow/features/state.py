"""The changing numbers of videos at any moment, encoded as the models read them.

Serving reads them as of the log's end (videos/*.npy); training and evaluation must not see counts
of what came later, so they look them up here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workflow.features.daily import DailyCounts
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.samples import video_age_days
from workflow.features.spec import FeatureSpec

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class VideoState:
    """Looks up every feature of the groups video_state and cross.

    Args:
        store: the run's encoded arrays.
        spec: the fitted schema.
    """

    def __init__(self, store: FeatureStore, spec: FeatureSpec) -> None:
        self._daily: DailyCounts = store.daily()
        self._events = CompiledTable.load(store.root / "workflows" / "events")
        self._prior = spec.label_prior if spec.has_label else None
        has_age = bool(spec.of_group("cross"))
        self._publish_time = np.asarray(store.video("publish_time")) if has_age else None

    def at(self, video_row: npt.NDArray[Any], timestamp: Int64) -> dict[str, Float32]:
        """Encoded numbers of videos as known at the end of the day before, and their age.

        Args:
            video_row: int [...]; row 0 is a video that nobody has seen.
            timestamp: int64, unix seconds; broadcasts against video_row.
        Returns:
            feature name -> float32 [...], the broadcast shape.
        """
        rows, moments = np.broadcast_arrays(np.asarray(video_row, np.int64), timestamp)
        numbers = self._daily.numbers(rows, moments, label_prior=self._prior)
        if self._publish_time is not None:
            numbers["video_age_days"] = video_age_days(self._publish_time[rows], moments)
        return {name: self._events[name].normalise(raw) for name, raw in numbers.items()}
