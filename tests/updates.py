"""A planted log, raw files of the day after it, and indices to look up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.fixtures import DAY, START, make_config
from workflow.console import Output
from workflow.features.encoded import FeatureStore
from workflow.job import Job

QUIET = Output(as_json=True)
CONFIG = make_config(
    retriever={"max_epochs": 1, "batch_size": 64, "objectives": ["next"]},
    ranker={"max_epochs": 1, "batch_size": 256, "list_queries": 100},
    serving={"num_candidates": 10},
)
CONTRACT = """
name = "planted"
watched = "label"
[events]
path = "events"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "video_id", role = "video_id", dtype = "string" },
  { name = "at", role = "timestamp", dtype = "int64", unit = "s" },
  { name = "clicked", role = "label", dtype = "int64" },
  { name = "seconds", role = "watch_s", dtype = "float32" },
  { name = "device", role = "context", kind = "categorical", dtype = "string" },
]
[users]
path = "users.parquet"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "country", role = "user_feature", kind = "categorical", dtype = "string" },
]
[videos]
path = "videos.parquet"
columns = [
  { name = "video_id", role = "video_id", dtype = "string" },
  { name = "title", role = "title", dtype = "string" },
  { name = "genres", role = "video_feature", kind = "multi_hot", dtype = "string" },
  { name = "length", role = "duration_s", kind = "continuous", dtype = "float32", log = true },
]
"""
NEW_USER, NEW_VIDEO, RARE_VIDEO = 105, "v005x", "v900"  # between, between and after known ids


def events(random: np.random.Generator, count: int, first_day: int, days: int) -> pd.DataFrame:
    """Events of users 100, 110, … and videos v000, v001, …"""
    clicked = random.random(count) < 0.5
    return pd.DataFrame(
        {
            "user_id": 100 + 10 * random.integers(0, 40, count),
            "video_id": [f"v{n:03d}" for n in random.integers(0, 30, count)],
            "at": START + first_day * DAY + random.integers(0, days * DAY, count),
            "clicked": clicked.astype(np.int64),
            "seconds": np.where(clicked, random.lognormal(4, 1, count), 0).astype(np.float32),
            "device": random.choice(["tv", "phone"], count),
        }
    )


@dataclass(frozen=True)
class Day:
    """Raw files of the eleventh day: a new user, a new video and a new device among them."""

    folder: Path

    @property
    def files(self) -> dict[str, Path]:
        return {name: self.folder / f"{name}.parquet" for name in ("events", "users", "videos")}


def indices(job: Job, side: str) -> dict[Any, int]:
    """Vocabulary index by raw id."""
    store = FeatureStore(job.run)
    load: Callable[[str], Any] = store.user if side == "user" else store.video
    index = np.asarray(load(f"{side}_index"))[1:]
    return dict(zip(np.asarray(load(f"{side}_id")).tolist(), index.tolist(), strict=True))
