"""KuaiRec: the published format, copies, missing times, and its archive."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.kuai_files import JULY_5_S, day, user, view, write_kuairec
from tests.loopback import Server, md5
from workflow.config import CONFIG_FOLDER, KuaiRecConfig, load_config
from workflow.data import published
from workflow.data.kuairec import archive, load_kuairec
from workflow.data.reading import read_chunks
from workflow.data.tables import read_users, read_videos
from workflow.data.validate import validate
from workflow.errors import DataError
from workflow.run import Run
from workflow.schema import load_contract

BIG, SMALL = KuaiRecConfig(), KuaiRecConfig(matrix="small")
FIRST = JULY_5_S + 503.438
COPY = view(0, 3650, FIRST)
VIEWS = [
    COPY,
    view(0, 3650, FIRST, play_duration=13_839),  # another play within the same millisecond
    view(0, 148, FIRST + 60.5, play_duration=20_000, video_duration=10_000),
    COPY | {"date": 20200707},  # the same event, filed under another day
    view(0, 3650, FIRST + 86_400),  # watched again
    view(14, 1, FIRST, play_duration=0, video_duration=5_000),
    view(14, 148, FIRST + 1, play_duration=19_999, video_duration=10_000),
    COPY,
]
USERS = [user(0, onehot_feat4=np.nan), user(14, onehot_feat4=3.0, user_active_degree="UNKNOWN")]
TAGS = {1: "[]", 148: "[8]", 3650: "[27, 9]"}
DAYS = [
    day(148, 20200705, video_duration=10_000.0, upload_dt="2020-07-05", author_id=7),
    day(148, 20200706, video_duration=10_000.0, upload_dt="2020-07-05", author_id=7),
    day(3650, 20200705, video_duration=np.nan, video_tag_name=np.nan),
    day(3650, 20200706, video_duration=np.nan, video_type="NORMAL"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_kuairec(tmp_path / "KuaiRec 2.0", VIEWS, USERS, TAGS, DAYS)


def validated(tmp_path: Path, target: Path, **rules: Any) -> tuple[Run, dict[str, Any]]:
    run = Run(tmp_path / "run")
    contract = load_contract(CONFIG_FOLDER / "kuairec.contract.toml")
    config = load_config(
        "kuairec", overrides=[f"validation.{name}={value}" for name, value in rules.items()]
    )
    return run, validate(run, config, contract, target)


def packed(folder: Path, without: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("../outside.txt", "must not be written")
        opened.writestr("__MACOSX/KuaiRec 2.0/data/._big_matrix.csv", "nor this")
        for path in sorted(folder.rglob("*")):
            if path.name != without:
                opened.write(path, path.relative_to(folder.parent))
    return buffer.getvalue()


def load_from(server: Server, target: Path) -> None:
    where = replace(archive(BIG), url=server.url, md5=md5(server.content))
    load_kuairec(BIG, target, published=where)


# --- what is read -----------------------------------------------------------------------------
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 1_000_000])
def test_planted_events_without_copies(
    folder: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int
) -> None:
    chunks = partial(read_chunks, rows_per_chunk=rows_per_chunk)
    monkeypatch.setattr(published, "read_chunks", chunks)
    load_kuairec(BIG, target, folder)
    run, summary = validated(tmp_path, target)
    assert summary["num_events"] == 6 and summary["dropped"] == {}
    events = pd.read_parquet(run.data / "events")
    users, videos = read_users(run)["user_id"], read_videos(run)["video_id"]
    assert users[events["user_row"] - 1].tolist() == [0, 0, 0, 0, 14, 14]
    assert videos[events["video_row"] - 1].tolist() == [3650, 3650, 148, 3650, 1, 148]
    start = JULY_5_S + 503
    assert events["timestamp"].tolist() == [
        start, start, start + 60, start + 86_400, start, start + 1
    ]  # fmt: skip
    np.testing.assert_allclose(events["watch_s"], [13.838, 13.839, 20, 13.838, 0, 19.999])
    assert events["label"].tolist() == [0, 0, 1, 0, 0, 0]  # 1.9999 times is not 2 times


def test_planted_videos_and_users(folder: Path, target: Path, tmp_path: Path) -> None:
    load_kuairec(BIG, target, folder / "data")
    run, _ = validated(tmp_path, target)
    videos = read_videos(run)
    assert videos["video_id"].tolist() == [1, 148, 3650]
    assert [list(tags) for tags in videos["categories"]] == [[], ["8"], ["27", "9"]]
    # Video 1 is in no daily row; video 3650 has no length there. The matrix has both lengths.
    np.testing.assert_allclose(videos["duration_s"], [5, 10, 10.867])
    assert videos["author_id"].isna().tolist() == [True, False, False]
    assert videos["author_id"].tolist()[1:] == [7, 441]
    assert videos["publish_time"].isna().tolist() == [True, False, False]
    assert videos["publish_time"][1] == JULY_5_S
    assert not {"show_cnt", "play_progress", "video_tag_name"} & set(videos.columns)
    users = read_users(run)
    assert users["onehot_feat4"].isna().tolist() == [True, False]
    assert users["user_active_degree"].tolist() == ["full_active", "UNKNOWN"]


def test_views_without_a_time_are_dropped_and_counted(tmp_path: Path, target: Path) -> None:
    views = [view(0, 148, FIRST + number, play_duration=30_000) for number in range(40)]
    views.append(view(14, 1, np.nan, time=np.nan, date=np.nan))
    source = write_kuairec(tmp_path / "small", views, USERS, TAGS, DAYS, "small")
    load_kuairec(SMALL, target, source)
    run, summary = validated(tmp_path, target)
    assert summary["dropped"] == {"no timestamp": 1} and summary["num_events"] == 40
    assert read_videos(run)["duration_s"][0] == np.float32(10.867)
    _, summary = validated(tmp_path, target, max_bad_fraction=0.03)
    assert summary["num_events"] == 40
    with pytest.raises(DataError, match=r"2\.4% of the events rows"):
        validated(tmp_path, target, max_bad_fraction=0.02)


def test_archive_of_each_matrix() -> None:
    for matrix in ("big", "small"):
        found = archive(load_config("kuairec", overrides=[f"kuairec.matrix={matrix}"]).kuairec)
        assert found.url == "https://zenodo.org/records/18164998/files/KuaiRec.zip"
        assert found.md5 == "261550d472c48eff4990fb13c0e5bcf7"
        assert found.members[0] == f"{matrix}_matrix.csv" and len(found.members) == 4


# --- download and damage ----------------------------------------------------------------------
def test_download(serve: Callable[..., Server], folder: Path, target: Path, tmp_path: Path) -> None:
    load_from(serve(packed(folder), "KuaiRec.zip"), target)
    made = sorted(path.name for path in target.iterdir())
    assert made == ["events.parquet", "users.parquet", "videos.parquet"]
    assert pq.read_metadata(target / "events.parquet").num_rows == 6
    assert not list(tmp_path.rglob("outside.txt"))


def test_unusable_archives(serve: Callable[..., Server], folder: Path, target: Path) -> None:
    whole = packed(folder)
    name = "item_daily_features.csv"
    for content, message in (
        (whole[: len(whole) // 2], "the KuaiRec archive is damaged"),
        (packed(folder, without=name), f"the KuaiRec archive has no usable {name}"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load_from(serve(content, "KuaiRec.zip"), target)
        assert "--source FOLDER" in str(caught.value) and "\n" not in str(caught.value)
        assert not list(target.iterdir())


def test_missing_file_and_column(folder: Path, target: Path) -> None:
    with pytest.raises(DataError, match=r"has no small_matrix\.csv"):
        load_kuairec(SMALL, target, folder)
    file = folder / "data" / "item_categories.csv"
    file.write_text(file.read_text().replace("feat", "tags"))
    with pytest.raises(DataError, match=r"item_categories\.csv has no column 'feat'"):
        load_kuairec(BIG, target, folder)
