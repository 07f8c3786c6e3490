"""A run of a planted log, and the same after `marquee update`, made once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.updates import CONFIG, CONTRACT, NEW_USER, NEW_VIDEO, QUIET, RARE_VIDEO, Day, events
from workflow import update as verb
from workflow.job import Job
from workflow.pipeline import run_all
from workflow.run import Run


@pytest.fixture(scope="session")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    folder = tmp_path_factory.mktemp("day")
    frame = events(np.random.default_rng(2), 80, 10, 1)
    frame.loc[:9, "video_id"] = NEW_VIDEO
    frame.loc[:9, "clicked"] = 1
    frame.loc[5:12, "user_id"] = NEW_USER
    frame.loc[20:21, "device"] = "watch"
    frame.to_parquet(folder / "events.parquet", index=False)
    users = pd.DataFrame({"user_id": [NEW_USER], "country": ["JP"]})
    users.to_parquet(folder / "users.parquet", index=False)
    videos = pd.DataFrame({"video_id": [RARE_VIDEO, NEW_VIDEO, "v001"]})
    videos["title"] = ["Rare", "New", "Renamed"]
    videos["genres"] = [["noir"], ["drama", "noir"], ["drama"]]
    videos["length"] = np.array([60, 90, 30], np.float32)
    videos.to_parquet(folder / "videos.parquet", index=False)
    return Day(folder)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "contract.toml").write_text(CONTRACT)
    (folder / "events").mkdir()
    frame = events(np.random.default_rng(1), 1500, 0, 10)
    frame.to_parquet(folder / "events" / "all.parquet", index=False)
    users = pd.DataFrame({"user_id": 100 + 10 * np.arange(40)})
    users["country"] = np.where(users.index % 2, "DE", "US")
    users.to_parquet(folder / "users.parquet", index=False)
    videos = pd.DataFrame({"video_id": [f"v{n:03d}" for n in range(30)]})
    videos["title"] = [f"Video {n}" for n in range(30)]
    videos["genres"] = [["drama"] if n % 2 else ["comedy", "drama"] for n in range(30)]
    videos["length"] = np.linspace(60, 3600, 30, dtype=np.float32)
    videos.to_parquet(folder / "videos.parquet", index=False)
    return folder


@pytest.fixture(scope="session")
def base(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "base")
    job = Job(run, CONFIG, source, source / "contract.toml")
    run_all(job, QUIET)
    return job


@pytest.fixture(scope="session")
def updated(base: Job, day: Day, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("runs") / "updated"
    shutil.copytree(base.run.root, folder)
    job = Job(Run(folder), CONFIG, base.source, base.contract_file)
    verb.update(job, QUIET, **day.files)
    return job
