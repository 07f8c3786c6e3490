"""A small simulated folder read back: events, what they hide, and the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from workflow.config import SimConfig
from workflow.data.simulator import Context, Truth
from workflow.data.simulator_world import DEVICES

CONFIG = SimConfig(num_users=2_000, num_videos=1_500, num_events=200_000, num_days=60, seed=3)


class Dataset:
    """A simulated folder read back: visible events, hidden events, truth, and row numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth = Truth.load(folder)
        self.events = _columns(folder / "events")
        self.hidden = _columns(folder / "truth" / "events")
        self.user = self.truth.user_rows(self.events["user_id"])
        self.video = self.truth.video_rows(self.events["video_id"])
        self.clicked = self.events["clicked"].astype(bool)

    @property
    def context(self) -> Context:
        device = np.searchsorted(np.sort(DEVICES), self.events["device"].astype(str))
        return Context(
            device=np.argsort(DEVICES)[device],
            position=self.events["position"],
            **{name: self.hidden[name] for name in
               ("intent", "mood", "seen_in_session", "repeats", "watched_before")},
        )  # fmt: skip


def _columns(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}
