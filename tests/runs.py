"""A pytest plugin: three small runs made by the real command once per session, for all folders.

`sim_run`: the simulator. `ml_run`: files of MovieLens-100K through a contract. `clip_run`: string
ids in Parquet files, with neither users, labels nor watch times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ML_CONTRACT = REPOSITORY / "workflow" / "configs" / "examples" / "ml-100k.toml"
ML_FOLDER = REPOSITORY.parent / "shared" / "data" / "ml-100k"
ONE_EPOCH = {
    "retriever.max_epochs": 1,
    "ranker.max_epochs": 1,
    "retriever.refit": "false",
    "ranker.refit": "false",
}
SIM = {
    "sim.num_users": 2000,
    "sim.num_videos": 500,
    "sim.num_events": 40_000,
    "retriever.max_epochs": 2,
    "ranker.max_epochs": 2,
    "retriever.patience": 2,
    "ranker.patience": 2,
    "ranker.batch_size": 1024,  # enough steps for scores that differ
}
CLIP_CONTRACT = """
name = "clips"
watched = "all"
[events]
path = "log"
columns = [
  { name = "user_id", source = "viewer", role = "user_id", dtype = "string" },
  { name = "video_id", source = "clip", role = "video_id", dtype = "string" },
  { name = "timestamp", source = "at", role = "timestamp", dtype = "int64", unit = "ms" },
  { name = "app", role = "context", kind = "categorical", dtype = "string" },
  { name = "slot", role = "context", kind = "categorical", dtype = "int64" },
]
[videos]
path = "clips.parquet"
columns = [
  { name = "video_id", source = "clip", role = "video_id", dtype = "string" },
  { name = "title", role = "title", dtype = "string" },
  { name = "since", role = "publish_time", dtype = "string", unit = "iso" },
  { name = "tags", role = "video_feature", kind = "multi_hot", dtype = "string" },
  { name = "length_s", role = "video_feature", kind = "continuous", dtype = "float32", log = true },
]
"""


@dataclass(frozen=True)
class Result:
    """How one call of the command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output of a verb that did its whole job."""
        assert self.status == 0, self.err
        value = json.loads(self.out)
        assert isinstance(value, dict) and self.out.count("\n") == 1
        return value

    @property
    def error(self) -> str:
        """The one line that a failed verb ends with; progress may stand above it."""
        assert self.status not in (0, None), self.out
        assert "Traceback" not in self.err and self.out == "", self.out + self.err
        lines = [
            line for line in self.err.splitlines() if not line.startswith(("•", "✓", "=", "  "))
        ]
        assert len(lines) == 1, self.err
        return lines[0]


class Marquee:
    """The installed command."""

    program = Path(sys.executable).with_name("marquee")

    def start(self, *words: Any, **options: Any) -> subprocess.Popen[str]:
        """Begin a call; the test ends it."""
        options.setdefault("env", {**os.environ, "PYTHONFAULTHANDLER": "1"})
        return subprocess.Popen(
            [str(self.program), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, *words: Any, **options: Any) -> Result:
        process = self.start(*words, **options)
        return self.finish(process)

    @staticmethod
    def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> Result:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # it says where each thread is
            raise AssertionError(process.communicate(timeout=30)[1]) from None
        finally:
            process.kill()
        return Result(process.returncode, out, err)

    def json(self, *words: Any, **options: Any) -> dict[str, Any]:
        return self(*words, "--json", **options).json


@dataclass(frozen=True)
class Made:
    """A run folder and what `marquee run --json` printed."""

    folder: Path
    result: dict[str, Any]


def settings(values: dict[str, Any]) -> list[str]:
    """--set options."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="session")
def marquee() -> Marquee:
    return Marquee()


@pytest.fixture(scope="session")
def sim_words() -> list[str]:
    """What the simulated run is made with, without --run."""
    return ["--dataset", "sim", *settings(SIM)]


@pytest.fixture(scope="session")
def sim_run(
    marquee: Marquee, sim_words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    folder = tmp_path_factory.mktemp("runs") / "sim"
    return Made(folder, marquee.json("run", "--run", folder, *sim_words))


# --- own data ------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def ml_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens-100K in RecBole's format where it is at hand, else made-up files like it."""
    if ML_FOLDER.is_dir():
        return ML_FOLDER
    folder = tmp_path_factory.mktemp("data") / "ml-100k"
    write_ratings(folder)
    return folder


def write_ratings(folder: Path, users: int = 300, films: int = 400, ratings: int = 20_000) -> None:
    random = np.random.default_rng(3)
    folder.mkdir()
    genres = ["Action", "Comedy", "Drama", "Horror", "Sci-Fi"]
    lines = {
        "item": ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"],
        "user": ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"],
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float"],
    }
    for film in range(1, films + 1):
        kinds = " ".join(random.choice(genres, random.integers(1, 4), replace=False))
        lines["item"].append(f'{film}\tThe "{film}" of Film\t{1960 + film % 40}\t{kinds}')
    for user in range(1, users + 1):
        lines["user"].append(f"{user}\t{18 + user % 50}\t{'MF'[user % 2]}\twriter\t{user:05d}")
    pairs = random.choice(users * films, ratings, replace=False)
    for pair, time_s in zip(pairs, random.integers(874_724_710, 893_286_638, ratings), strict=True):
        user, film = pair // films + 1, pair % films + 1
        rating = 1 + (user * film + int(random.integers(0, 3))) % 5
        lines["inter"].append(f"{user}\t{film}\t{rating}\t{time_s}")
    for name, rows in lines.items():
        (folder / f"ml-100k.{name}").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def ml_run(marquee: Marquee, ml_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Made through the contract file only."""
    folder = tmp_path_factory.mktemp("runs") / "ml-100k"
    words = ["--source", ml_source, "--contract", ML_CONTRACT, *settings(ONE_EPOCH)]
    return Made(folder, marquee.json("run", "--run", folder, "--dataset", "custom", *words))


@pytest.fixture(scope="session")
def clip_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    write_clips(folder)
    (folder / "contract.toml").write_text(CLIP_CONTRACT)
    return folder


def write_clips(folder: Path, viewers: int = 300, clips: int = 250, events: int = 9_000) -> None:
    """Ids like "vü-17" and "clip 3/é"; null contexts, null titles, empty lists of tags."""
    random = np.random.default_rng(5)
    (folder / "log").mkdir(parents=True)
    names = np.array([f"clip {n}/é" for n in range(clips)])
    viewer = random.integers(0, viewers, events)
    taste = (viewer * 37 + random.integers(0, 60, events)) % clips
    at = np.sort(random.integers(1_700_000_000_000, 1_705_000_000_000, events))
    apps = np.array(["web", "télé", "phone", None], dtype=object)[random.integers(0, 4, events)]
    slots = pa.array(random.integers(0, 5, events), mask=random.random(events) < 0.1)
    table = pa.table(
        {
            "viewer": [f"vü-{n}" for n in viewer],
            "clip": names[taste],
            "at": at,
            "app": pa.array(apps.tolist(), pa.string()),
            "slot": slots,
        }
    )
    for part in range(2):
        half = table.slice(part * events // 2, events // 2)
        pq.write_table(half, folder / "log" / f"{part}.parquet")
    tags = [["a", "b", "ç"][: n % 4] for n in range(clips)]
    since = [None if n % 10 == 0 else f"2023-{1 + n % 12:02d}-03T04:05:06" for n in range(clips)]
    titles = [None if n % 7 == 0 else f"Clip número {n}" for n in range(clips)]
    lengths = pa.array(random.integers(5, 600, clips).astype(np.float32))
    columns = {"clip": names, "title": titles, "since": since, "tags": tags, "length_s": lengths}
    pq.write_table(pa.table(columns), folder / "clips.parquet")


@pytest.fixture(scope="session")
def clip_run(marquee: Marquee, clip_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("runs") / "clips"
    words = ["--source", clip_source, "--contract", clip_source / "contract.toml"]
    words += settings(ONE_EPOCH | {"ranker.batch_size": 1024, "retriever.batch_size": 1024})
    return Made(folder, marquee.json("run", "--run", folder, *words))
