"""Drafted contracts load and validate as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomllib

from workflow.config import SimConfig, parse_config
from workflow.data.init import draft_contract
from workflow.data.simulator import simulate
from workflow.data.validate import validate
from workflow.errors import DataError
from workflow.run import Run
from workflow.schema import Column, Contract

NOON = 1_600_000_000


def roles(contract: Contract, table: str) -> dict[str, tuple[str, str | None, str]]:
    columns = contract.tables()[table].columns  # type: ignore[index]
    return {c.source_name: (c.role, c.kind, c.dtype) for c in columns}


def column(contract: Contract, source: str) -> Column:
    every = [c for table in contract.tables().values() for c in table.columns]
    return next(c for c in every if c.source_name == source)


@pytest.fixture
def draft(tmp_path: Path) -> Callable[[Path], tuple[str, Contract, dict[str, Any]]]:
    def make(folder: Path) -> tuple[str, Contract, dict[str, Any]]:
        text = draft_contract(folder)
        contract = Contract.model_validate(tomllib.loads(text))
        config = parse_config({"dataset": "custom"})
        return text, contract, validate(Run(tmp_path / "run"), config, contract, folder)

    return make


Make = Callable[[Path], tuple[str, Contract, dict[str, Any]]]


def write_recbole(folder: Path, users: int = 300) -> None:
    folder.mkdir()
    random = np.random.default_rng(3)
    events = [
        f"{user}\t{random.integers(1, 40)}\t{random.integers(1, 6)}\t{NOON + user}.0"
        for user in range(1, users + 1)
    ]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "x.inter").write_text("\n".join([header, *events]) + "\n")
    rows = [f"{u}\t{u % 60}\t{'MF'[u % 2]}\t{10_000 + u}" for u in range(1, users + 1)]
    header = "user_id:token\tage:token\tgender:token\tzip_code:token"
    (folder / "x.user").write_text("\n".join([header, *rows]) + "\n")
    year = {7: "V"}
    items = [
        f'{i}\t"A" title {i}\t{year.get(i, 1990 + i % 9)}\tDrama War{" Noir" * (i % 2)}'
        for i in range(1, 41)
    ]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    (folder / "x.item").write_text("\n".join([header, *items]) + "\n")


def test_recbole(tmp_path: Path, draft: Make) -> None:
    write_recbole(tmp_path / "Films (1M)")
    text, contract, summary = draft(tmp_path / "Films (1M)")
    assert contract.name == "Films-1M" and contract.watched == "all"
    assert summary["num_events"] == 300 and summary["dropped"] == {}
    assert column(contract, "rating:float").positive_at_least == 4
    assert column(contract, "timestamp:float").unit == "s"
    assert roles(contract, "users") == {
        "user_id:token": ("user_id", None, "int64"),
        "age:token": ("user_feature", "continuous", "float32"),
        "gender:token": ("user_feature", "categorical", "string"),
        "zip_code:token": ("user_feature", "continuous", "float32"),
    }
    assert roles(contract, "videos") == {
        "item_id:token": ("video_id", None, "int64"),
        "movie_title:token_seq": ("title", None, "string"),
        "release_year:token": ("video_feature", "categorical", "string"),
        "class:token_seq": ("video_feature", "multi_hot", "string"),
    }
    assert "# TODO numbers, but for 'V'" in text


def test_movielens_dat_files_without_header(tmp_path: Path, draft: Make) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    ratings = "".join(f"{u}::{u % 30 + 1}::{u % 5 + 1}::{NOON + u}\n" for u in range(1, 200))
    (folder / "ratings.dat").write_text(ratings)
    users = "".join(f"{u}::{'FM'[u % 2]}::{u % 7}\n" for u in range(1, 200))
    (folder / "users.dat").write_text(users)
    movies = "".join(f"{i}::Café {i}::Drama|War\n" for i in range(1, 31))
    (folder / "movies.dat").write_text(movies, encoding="iso-8859-1")
    (folder / "README").write_text("no table")
    _, contract, summary = draft(folder)
    assert summary["num_events"] == 199 and summary["num_videos"] == 30
    assert contract.videos is not None and contract.videos.encoding == "iso-8859-1"
    assert contract.events.separator == "::" and not contract.events.header
    assert column(contract, "c4").role == "timestamp"
    assert roles(contract, "videos")["c2"][0] == "title"


def test_csv_logs_with_clicks(tmp_path: Path, draft: Make) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    lines = ["userId,videoId,time_ms,is_click,play_time,device,likes_shown,hour"]
    lines += [
        f"u{n % 50:03},{n % 20},{(NOON + n) * 1000},{n % 3 % 2},{n / 7},tv,{n},{n % 24}"
        for n in range(500)
    ]
    (folder / "watch.csv").write_text("\n".join(lines) + "\n")
    (folder / "watch_old.csv").write_text("\n".join(lines[:40]) + "\n")
    text, contract, summary = draft(folder)
    assert contract.watched == "label" and summary["num_users"] == 50
    assert "# Files that no table uses: watch_old.csv" in text
    assert roles(contract, "events") == {
        "userId": ("user_id", None, "string"),
        "videoId": ("video_id", None, "int64"),
        "time_ms": ("timestamp", None, "int64"),
        "is_click": ("label", None, "int64"),
        "play_time": ("watch_s", None, "float32"),
        "device": ("context", "categorical", "string"),
        "likes_shown": ("ignore", None, "int64"),
        "hour": ("ignore", None, "int64"),
    }
    assert column(contract, "time_ms").unit == "ms"


def test_parquet_folders_lists_and_timestamps(tmp_path: Path, draft: Make) -> None:
    folder = tmp_path / "lake"
    (folder / "events").mkdir(parents=True)
    for part in range(2):
        rows = pa.table(
            {
                "user": pa.array(range(100), pa.int64()),
                "video": pa.array([n % 9 for n in range(100)], pa.int64()),
                "event_time": pa.array([NOON + n for n in range(100)], pa.timestamp("s")),
            }
        )
        pq.write_table(rows, folder / "events" / f"part-{part}.parquet")
    videos = {
        "video": range(9),
        "title": [f"t{n}" for n in range(9)],
        "published_at": [NOON * 10**6] * 9,
        "tags": [[n, 3] for n in range(9)],
        "views": [1, 2, 3, 4, 5, 6, 7, 8, 90_000],
        "hour": [4] * 9,
    }
    pq.write_table(pa.table(videos), folder / "videos.parquet")
    _, contract, summary = draft(folder)
    assert summary["num_events"] == 200 and contract.events.path == "events"
    assert column(contract, "published_at").unit == "us"
    assert column(contract, "views").log
    assert column(contract, "hour").name == "video_hour"  # Marquee derives an `hour` itself
    assert roles(contract, "videos")["tags"] == ("video_feature", "multi_hot", "int64")


def test_simulated_files(tmp_path: Path, draft: Make) -> None:
    folder = tmp_path / "sim"
    folder.mkdir()
    simulate(SimConfig(num_users=2_000, num_videos=500, num_events=10_000), folder)
    _, contract, summary = draft(folder)
    assert summary["num_videos"] > 0 and summary["dropped"] == {}
    assert roles(contract, "videos")["duration_s"] == ("duration_s", "continuous", "float32")


@pytest.mark.parametrize(
    ("name", "values", "role", "is_sure"),
    [
        ("durationSeconds", (0, 90, 7_200), "duration_s", True),
        ("runtime", (5, 90, 200), "duration_s", False),
        ("duration_ms", (5_000, 90_000, 200), "video_feature", True),
        ("duration", (-1, 90, 200), "video_feature", True),
        ("duration", ("short", "long", "long"), "video_feature", True),
    ],
)
def test_durations(
    tmp_path: Path, draft: Make, name: str, values: tuple[Any, ...], role: str, is_sure: bool
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "events.csv").write_text(f"user_id,video_id,ts\n1,1,{NOON}\n2,2,{NOON}\n")
    rows = "".join(f"{i},{value}\n" for i, value in enumerate(values))
    (folder / "videos.csv").write_text(f"video_id,{name}\n{rows}")
    text, contract, _ = draft(folder)
    assert column(contract, name).role == role
    assert column(contract, name).log == (role == "duration_s")
    assert ("are these seconds?" in text) != is_sure


def test_ids_of_two_kinds_become_strings(tmp_path: Path, draft: Make) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "events.csv").write_text(f"user_id,video_id,ts\n1,1,{NOON}\n2,2,{NOON}\n")
    (folder / "users.csv").write_text("user_id,plan\n1,a\n2,b\nguest,c\n")
    _, contract, summary = draft(folder)
    assert contract.id_column("user_id").dtype == "string" and summary["num_users"] == 3


def test_a_draft_that_cannot_load_yet_says_why(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,video_id,x\n1,1,a\n")
    assert draft_contract(tmp_path).startswith("# TODO this draft does not load yet: table ")


def test_nothing_to_draft_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        draft_contract(tmp_path / "absent")
    with pytest.raises(DataError, match="no readable file"):
        draft_contract(tmp_path)
    (tmp_path / "users.csv").write_text("user_id,age\n1,2\n")
    with pytest.raises(DataError, match=r"Found: users\.csv"):
        draft_contract(tmp_path)


def test_shared_movielens_100k(draft: Make) -> None:
    """The draft for the real files, where they are; the same format is tested above."""
    shared = Path(__file__).parents[2].parent / "shared" / "data" / "ml-100k"
    if shared.is_dir():
        _, _, summary = draft(shared)
        assert (summary["num_events"], summary["num_users"], summary["num_videos"]) == (
            100_000, 943, 1_682,
        )  # fmt: skip
