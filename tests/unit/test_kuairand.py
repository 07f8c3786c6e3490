"""KuaiRand: the published format, its propensities, and archives good and bad."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.kuai_files import APRIL_9_MS, play, user, video, write_kuairand
from tests.loopback import Server, md5
from workflow.config import CONFIG_FOLDER, KuaiRandConfig, load_config, parse_config
from workflow.data import published
from workflow.data.kuairand import archive, load_kuairand
from workflow.data.reading import read_chunks
from workflow.data.tables import read_users, read_videos
from workflow.data.validate import validate
from workflow.errors import DataError
from workflow.run import Run
from workflow.schema import load_contract

PURE = KuaiRandConfig()
EARLY, LATE, RANDOM = (
    "log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08", "log_random_4_22_to_5_08",
)  # fmt: skip
LOGS = {
    EARLY: [
        play(0, 10, APRIL_9_MS, is_click=1, long_view=1, play_time_ms=151_024),
        play(0, 11, APRIL_9_MS + 1, is_like=1, play_time_ms=1_385, tab=0),
    ],
    LATE: [play(7, 12, APRIL_9_MS + 14 * 86_400_000, is_click=1, play_time_ms=7_001, tab=14)],
    RANDOM: [
        play(0, 12, APRIL_9_MS + 14 * 86_400_000 + 999, is_rand=1, is_hate=1),
        play(7, 10, APRIL_9_MS + 15 * 86_400_000, is_rand=1, is_click=1, play_time_ms=20_000),
    ],
}
USERS = [
    user(0, onehot_feat4=4.0, onehot_feat12=1.0),
    user(7, onehot_feat4=np.nan, onehot_feat12=np.nan, is_live_streamer=-124),
]
VIDEOS = [
    video(10, tag="12,65", upload_dt="2022-04-09"),
    video(11, tag=np.nan, music_type=np.nan, video_duration=np.nan, author_id=8_839_734),
    video(12, video_type="AD", video_duration=0.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_kuairand(tmp_path / "KuaiRand-Pure", LOGS, USERS, VIDEOS)


def validated(tmp_path: Path, target: Path) -> Run:
    run = Run(tmp_path / "run")
    contract = load_contract(CONFIG_FOLDER / "kuairand.contract.toml")
    summary = validate(run, load_config("kuairand"), contract, target)
    assert summary["dropped"] == {} and summary["num_repeated"] == 0
    return run


def packed(folder: Path, *extra: tarfile.TarInfo, without: str = "") -> bytes:
    """The folder as its authors packed it, after some members that must not be followed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for info in extra:
            opened.addfile(info)
        for path in sorted(folder.rglob("*")):
            if path.name != without:
                opened.add(path, path.relative_to(folder.parent), recursive=False)
    return buffer.getvalue()


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


def at(server: Server, **changes: Any) -> published.Archive:
    """KuaiRand-Pure as if it were published on `server`."""
    return replace(archive(PURE), **{"url": server.url, "md5": md5(server.content)} | changes)


def load_from(server: Server, target: Path, **changes: Any) -> None:
    load_kuairand(PURE, target, published=at(server, **changes))


# --- what is read -----------------------------------------------------------------------------
def test_planted_events(folder: Path, target: Path, tmp_path: Path) -> None:
    load_kuairand(PURE, target, folder)
    run = validated(tmp_path, target)
    events = pd.read_parquet(run.data / "events")
    second = APRIL_9_MS // 1000
    late = second + 14 * 86_400
    assert events["timestamp"].tolist() == [second, second, late, late, second + 15 * 86_400]
    users, videos = read_users(run)["user_id"], read_videos(run)["video_id"]
    assert users[events["user_row"] - 1].tolist() == [0, 0, 0, 7, 7]
    assert videos[events["video_row"] - 1].tolist() == [10, 11, 12, 12, 10]
    assert events["label"].tolist() == [1, 0, 0, 1, 1]
    assert events["watched"].tolist() == [True, False, False, True, True]
    np.testing.assert_allclose(events["watch_s"], [151.024, 1.385, 0, 7.001, 20])
    assert events["tab"].tolist() == [1, 0, 1, 14, 1]
    chance = 1 / 7583
    np.testing.assert_allclose(events["propensity"], [np.nan, np.nan, chance, np.nan, chance])


def test_planted_videos_and_users(folder: Path, target: Path, tmp_path: Path) -> None:
    load_kuairand(PURE, target, folder / "data")
    run = validated(tmp_path, target)
    videos = read_videos(run)
    np.testing.assert_allclose(videos["duration_s"], [17.2, np.nan, np.nan])  # 0 is no length
    assert videos["publish_time"][0] == APRIL_9_MS // 1000
    assert [list(tags) for tags in videos["tag"]] == [[12, 65], [], [39]]
    assert videos["author_id"].tolist() == [441, 8_839_734, 441]
    assert videos["music_type"].isna().tolist() == [False, True, False]
    assert videos["video_type"].tolist() == ["NORMAL", "NORMAL", "AD"]
    assert not {"visible_status", "counts"} & set(videos.columns)
    users = read_users(run)
    assert users["follow_user_num_range"].tolist() == ["(0,10]"] * 2
    assert users["onehot_feat4"].isna().tolist() == [False, True]
    assert users["onehot_feat4"][0] == 4 and users["onehot_feat3"].tolist() == [1153, 1153]
    assert users["is_live_streamer"].tolist() == [0, -124]


def test_another_label_by_a_copy_of_the_contract(
    folder: Path, target: Path, tmp_path: Path
) -> None:
    load_kuairand(PURE, target, folder)
    events = pd.read_parquet(target / "events.parquet")
    assert events["is_hate"].tolist() == [0, 0, 0, 1, 0]
    assert events["is_rand"].tolist() == [0, 0, 0, 1, 1]
    own = tmp_path / "own.toml"
    text = (CONFIG_FOLDER / "kuairand.contract.toml").read_text(encoding="utf-8")
    for name, role in (("is_click", "ignore"), ("is_like", "label")):
        text = re.sub(rf'(name = "{name}", role = )"\w+"', rf'\1"{role}"', text)
    own.write_text(text, encoding="utf-8")
    run = Run(tmp_path / "run")
    validate(run, parse_config({"dataset": "custom"}), load_contract(own), target)
    assert pd.read_parquet(run.data / "events")["label"].tolist() == [0, 1, 0, 0, 0]


def test_the_parts_of_27k_are_read_chunk_by_chunk(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [play(0, 10, APRIL_9_MS + number, is_click=1) for number in range(12)]
    logs = {
        f"{EARLY}_part1": rows[:5], f"{EARLY}_part2": rows[5:8], f"{LATE}_part1": rows[8:9],
        f"{LATE}_part2": rows[9:11], RANDOM: rows[11:],
    }  # fmt: skip
    source = write_kuairand(tmp_path / "27k", logs, USERS, VIDEOS, "27k")
    monkeypatch.setattr(published, "read_chunks", partial(read_chunks, rows_per_chunk=2))
    load_kuairand(KuaiRandConfig(variant="27k"), target, source)
    file = pq.ParquetFile(target / "events.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [2, 2, 1, 2, 1, 1, 2, 1]
    micros = file.read()["timestamp"].to_pylist()
    assert micros == [(APRIL_9_MS + number) * 1000 for number in range(12)]


@pytest.mark.parametrize(
    ("variant", "name", "members"), [("pure", "Pure", 5), ("1k", "1K", 5), ("27k", "27K", 7)]
)
def test_variants(variant: str, name: str, members: int) -> None:
    config = load_config("kuairand", overrides=[f"kuairand.variant={variant}"])
    found = archive(config.kuairand)
    assert found.url == f"https://zenodo.org/records/10439422/files/KuaiRand-{name}.tar.gz"
    assert len(found.md5) == 32 and len(set(found.members)) == members
    assert f"user_features_{variant}.csv" in found.members
    assert not any("statistic" in member for member in found.members)


# --- download ---------------------------------------------------------------------------------
def test_download(serve: Callable[..., Server], folder: Path, target: Path, tmp_path: Path) -> None:
    first = archive(PURE).members[0]
    content = packed(
        folder,
        tarfile.TarInfo("../outside.txt"),
        link(f"KuaiRand-Pure/{first}", "/etc/hostname"),
        tarfile.TarInfo(f"KuaiRand-Pure/data/._{first}"),
    )
    load_from(serve(content, "KuaiRand-Pure.tar.gz"), target)
    made = sorted(path.name for path in target.iterdir())
    assert made == ["events.parquet", "users.parquet", "videos.parquet"]
    assert not list(tmp_path.rglob("outside.txt"))
    other = tmp_path / "other"
    other.mkdir()
    load_kuairand(PURE, other, folder)
    for name in made:
        assert pq.read_table(target / name).equals(pq.read_table(other / name))


def test_wrong_checksum(serve: Callable[..., Server], folder: Path, target: Path) -> None:
    server = serve(packed(folder), "KuaiRand-Pure.tar.gz")
    with pytest.raises(DataError, match=rf"corrupt.*{archive(PURE).md5}") as caught:
        load_from(server, target, md5=archive(PURE).md5)
    assert "--source FOLDER" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(target.iterdir())


def test_damaged_archives(serve: Callable[..., Server], folder: Path, target: Path) -> None:
    whole = packed(folder)
    for content in (b"no tar", whole[: len(whole) // 2]):
        server = serve(content, "KuaiRand-Pure.tar.gz")
        with pytest.raises(DataError, match="the KuaiRand archive is damaged") as caught:
            load_from(server, target)
        assert "\n" not in str(caught.value)
        assert not list(target.iterdir())


def test_missing_and_oversized_members(
    serve: Callable[..., Server], folder: Path, target: Path
) -> None:
    name = "user_features_pure.csv"
    server = serve(packed(folder, without=name), "KuaiRand-Pure.tar.gz")
    with pytest.raises(DataError, match=rf"the KuaiRand archive has no usable {name}"):
        load_from(server, target)
    server = serve(packed(folder), "KuaiRand-Pure.tar.gz")
    with pytest.raises(DataError, match="no usable"):
        load_from(server, target, max_member_bytes=10)
    assert not list(target.iterdir())


# --- a folder that is not right ---------------------------------------------------------------
def test_missing_file(folder: Path, target: Path) -> None:
    (folder / "data" / f"{RANDOM}_pure.csv").unlink()
    with pytest.raises(DataError, match=rf"has no {RANDOM}_pure\.csv.*--source"):
        load_kuairand(PURE, target, folder)
    with pytest.raises(DataError, match="has no log_standard_4_08_to_4_21_1k"):
        load_kuairand(KuaiRandConfig(variant="1k"), target, folder)


def test_missing_column(folder: Path, target: Path) -> None:
    file = folder / "data" / f"{LATE}_pure.csv"
    pd.read_csv(file).drop(columns="is_rand").to_csv(file, index=False)
    with pytest.raises(DataError, match=rf"{file.name} has no column 'is_rand'") as caught:
        load_kuairand(PURE, target, folder)
    assert "use the published files" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_file(folder: Path, target: Path) -> None:
    file = folder / "data" / f"{EARLY}_pure.csv"
    file.write_text(file.read_text() + "1,2,3\n")
    with pytest.raises(DataError, match=rf"{file.name}.*Expected 19 columns, got 3"):
        load_kuairand(PURE, target, folder)
    file.write_text(file.read_text().replace("1,2,3\n", "").replace("151024", "long"))
    with pytest.raises(DataError, match=r"row 1, column play_time_ms: 'long' is not a number"):
        load_kuairand(PURE, target, folder)
