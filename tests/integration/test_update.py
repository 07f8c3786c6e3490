"""`marquee update` by the real command, and what Triton then answers by raw ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triton_repo.bundle import read_bundle
from triton_repo.client import Client
from workflow.data.simulator_world import LOG_END
from workflow.run import Run

NEW_USER, NEW_VIDEO = 1, 2  # before all ids of the simulator
WATCHERS, TOP_K = 300, 100
HOUR = 3_600


@pytest.fixture
def day(copied: Path, tmp_path: Path) -> dict[str, Path]:
    """A day on which a new video is watched by many users, a new one among them."""
    source = Run(copied).source
    users = pq.read_table(source / "users.parquet")
    videos = pq.read_table(source / "videos.parquet")
    old = videos["video_id"].to_numpy()
    user = np.r_[np.full(3, NEW_USER), users["user_id"].to_numpy()[:WATCHERS].repeat(2)]
    video = np.r_[NEW_VIDEO, old[:2], np.c_[np.full(WATCHERS, NEW_VIDEO), old[:WATCHERS]].ravel()]
    count = len(user)
    events = {
        "user_id": user, "video_id": video, "timestamp": LOG_END + HOUR + np.arange(count),
        "clicked": np.ones(count, np.int64), "watch_s": np.full(count, 60, np.float32),
        "propensity": np.full(count, 0.1, np.float32), "device": ["tv"] * count,
        "position": np.zeros(count, np.int64), "session_id": np.arange(count),
    }  # fmt: skip
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    for name, table, new in (("users", users, NEW_USER), ("videos", videos, NEW_VIDEO)):
        place = table.column_names.index(f"{name[:-1]}_id")
        one = table.slice(0, 1).set_column(place, f"{name[:-1]}_id", pa.array([new]))
        if name == "videos":
            place = one.column_names.index("withdrawn")
            one = one.set_column(place, "withdrawn", pa.array([0]))
        pq.write_table(one, tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in ("events", "users", "videos")}


def test_new_users_and_videos_are_served(
    marquee: Any, copied: Path, day: dict[str, Path], serve: Callable[[Path], Any]
) -> None:
    before = read_bundle(Run(copied).repository).version
    words = [word for name, path in day.items() for word in (f"--{name}", path)]
    made = marquee.json("update", "--run", copied, *words)
    assert (made["users"], made["videos"], made["events"]) == (1, 1, 3 + 2 * WATCHERS)
    assert made["version"] > before and made["update"] == 1 and made["cpu_s"] > 0
    others = pq.read_table(Run(copied).source / "users.parquet")["user_id"].to_pylist()[WATCHERS:]
    with serve(copied) as endpoint, Client(endpoint["grpc_url"]) as client:
        moment = LOG_END + 2 * HOUR
        answer = client.recommend(NEW_USER, top_k=TOP_K, time=moment)
        assert answer.status.name == "ok" and len(answer.video_ids) == TOP_K
        assert NEW_VIDEO not in answer.video_ids  # watched
        shown = [
            NEW_VIDEO in client.recommend(user, top_k=TOP_K, time=moment).video_ids
            for user in others[:50]
        ]
        assert sum(shown) > 25
    again = marquee("update", "--run", copied, *words)
    assert "are not later than those of the run" in again.error
    skipped = marquee.json("run", "--run", copied)["stages"]
    assert all(stage["skipped"] for stage in skipped)
