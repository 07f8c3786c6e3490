"""MovieLens-1M: from a folder, and over HTTP with a checksum."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.loopback import Server, md5
from workflow.config import CONFIG_FOLDER, parse_config
from workflow.data.download import download
from workflow.data.movielens import ARCHIVE, load_movielens
from workflow.data.published import Archive
from workflow.data.tables import read_users, read_videos
from workflow.data.validate import validate
from workflow.errors import DataError
from workflow.run import Run
from workflow.schema import load_contract

RATINGS = "1::10::5::978300760\n1::11::3::978302109\n2::10::4::978301968\n"
USERS = "1::F::1::10::48067\n2::M::56::16::70072-1\n"
MOVIES = (
    "10::Toy Story (1995)::Animation|Comedy\n11::Misérables, Les (1998)::Drama\n12::Odd::Drama\n"
)
FILES = {"ratings.dat": RATINGS, "users.dat": USERS, "movies.dat": MOVIES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "ml-1m"
    source.mkdir()
    for name, text in FILES.items():
        (source / name).write_text(text, encoding="iso-8859-1")
    return source


def archive(files: dict[str, str] = FILES) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("../outside.txt", "must not be written")
        for name, text in files.items():
            opened.writestr("ml-1m/" + name, text.encode("iso-8859-1"))
    return buffer.getvalue()


def published(server: Server) -> Archive:
    """MovieLens as if it were published on `server`."""
    return replace(ARCHIVE, url=server.url, md5=md5(server.content))


def test_a_folder_becomes_validated_tables(folder: Path, tmp_path: Path, target: Path) -> None:
    load_movielens(target, folder)
    run = Run(tmp_path / "run")
    contract = load_contract(CONFIG_FOLDER / "movielens-1m.contract.toml")
    summary = validate(run, parse_config({"dataset": "movielens-1m"}), contract, target)
    assert summary["num_events"] == summary["num_watched"] == 3
    videos = read_videos(run)
    assert videos["title"].tolist() == ["Toy Story", "Misérables, Les", "Odd"]
    assert videos["year"].tolist()[:2] == [1995, 1998] and videos["year"].isna()[2]
    assert [list(genres) for genres in videos["genres"]] == [
        ["Animation", "Comedy"], ["Drama"], ["Drama"]
    ]  # fmt: skip
    assert list(read_users(run).columns) == ["user_id", "gender", "age", "occupation"]
    events = pq.read_table(run.data / "events" / "part-00000.parquet")
    assert events["label"].to_pylist() == [1, 0, 1]


def test_a_missing_or_damaged_file(folder: Path, target: Path) -> None:
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56\n")
    with pytest.raises(DataError, match=r"users\.dat.*Expected 5 columns, got 3"):
        load_movielens(target, folder)
    (folder / "ratings.dat").unlink()
    with pytest.raises(DataError, match=r"ratings\.dat"):
        load_movielens(target, folder)


def test_download(serve: Callable[[bytes], Server], target: Path, tmp_path: Path) -> None:
    content = archive()
    server = serve(content)
    seen: list[tuple[float, float]] = []
    load_movielens(
        target, None, lambda done, total, _: seen.append((done, total)), published(server)
    )
    assert sorted(path.name for path in target.iterdir()) == [
        "events.parquet", "users.parquet", "videos.parquet"
    ]  # fmt: skip
    assert not list(tmp_path.rglob("outside.txt"))
    assert (len(content), len(content)) in seen


def test_corrupt_download_leaves_nothing(serve: Callable[[bytes], Server], target: Path) -> None:
    server = serve(archive()[:-20] + b"x" * 20)
    with pytest.raises(DataError) as caught:
        load_movielens(target, archive=replace(published(server), md5=md5(archive())))
    assert "is corrupt" in str(caught.value) and "--source FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(target.iterdir()) and server.requests == 1


def test_broken_connection_is_tried_again(serve: Callable[[bytes], Server], target: Path) -> None:
    content = archive()
    server = serve(content)
    server.failures = 2
    load_movielens(target, archive=published(server))
    assert server.requests == 3 and (target / "events.parquet").exists()
    server.failures, server.requests = 3, 0
    with pytest.raises(DataError, match="the connection ended after"):
        download(server.url, target / "x", md5(content), next_step="wait")
    assert not (target / "x").exists()


def test_server_errors(serve: Callable[[bytes], Server], target: Path) -> None:
    server = serve(b"")
    for status, requests in ((404, 1), (503, 3)):
        server.status, server.requests = status, 0
        with pytest.raises(DataError, match=f"HTTP status {status}"):
            download(server.url, target / "x", "", next_step="wait")
        assert server.requests == requests
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match="refused"):
        download(server.url, target / "x", "", next_step="wait")


def test_unusable_archives(serve: Callable[[bytes], Server], target: Path) -> None:
    for content, message in (
        (b"no zip", "the MovieLens archive is damaged"),
        (archive({"users.dat": USERS}), r"no usable ratings\.dat"),
    ):
        with pytest.raises(DataError, match=message):
            load_movielens(target, archive=published(serve(content)))
        assert not list(target.iterdir())
    bomb = replace(published(serve(archive())), max_member_bytes=10)
    with pytest.raises(DataError, match=r"no usable ratings\.dat"):
        load_movielens(target, archive=bomb)
