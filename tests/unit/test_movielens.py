"""MovieLens-1M: from a folder, and over HTTP with a checksum."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from workflow.config import CONFIG_FOLDER, parse_config
from workflow.data import movielens
from workflow.data.download import download
from workflow.data.movielens import load_movielens
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


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    made.mkdir()
    return made


def archive(files: dict[str, str] = FILES, prefix: str = "ml-1m/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("../outside.txt", "must not be written")
        for name, text in files.items():
            opened.writestr(prefix + name, text.encode("iso-8859-1"))
    return buffer.getvalue()


class Server:
    """A loopback HTTP server that answers with `content`, the first `failures` times badly."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.failures = 0
        self.status = 200
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                cut = outer.requests <= outer.failures
                self.wfile.write(outer.content[: len(outer.content) // (2 if cut else 1)])

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/ml-1m.zip"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Server]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("workflow.data.download.time.sleep", lambda _: None)
    servers: list[Server] = []

    def start(content: bytes) -> Server:
        servers.append(Server(content))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


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
        target, None, lambda done, total, _: seen.append((done, total)),
        url=server.url, md5=md5(content),
    )  # fmt: skip
    assert sorted(path.name for path in target.iterdir()) == [
        "events.parquet", "users.parquet", "videos.parquet"
    ]  # fmt: skip
    assert not list(tmp_path.rglob("outside.txt"))
    assert seen[-1] == (len(content), len(content))


def test_corrupt_download_leaves_nothing(serve: Callable[[bytes], Server], target: Path) -> None:
    server = serve(archive()[:-20] + b"x" * 20)
    with pytest.raises(DataError) as caught:
        load_movielens(target, None, url=server.url, md5=md5(archive()))
    assert "is corrupt" in str(caught.value) and "--source FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(target.iterdir()) and server.requests == 1


def test_broken_connection_is_tried_again(serve: Callable[[bytes], Server], target: Path) -> None:
    content = archive()
    server = serve(content)
    server.failures = 2
    load_movielens(target, None, url=server.url, md5=md5(content))
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


def test_unusable_archives(
    serve: Callable[[bytes], Server], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, message in (
        (b"no zip", "is damaged"),
        (archive({"users.dat": USERS}), r"no usable ratings\.dat"),
        (archive(prefix=""), r"no usable ratings\.dat"),
    ):
        with pytest.raises(DataError, match=message):
            load_movielens(target, None, url=serve(content).url, md5=md5(content))
        assert not list(target.iterdir())
    monkeypatch.setattr(movielens, "_MAX_MEMBER_BYTES", 10)  # a zip bomb
    with pytest.raises(DataError, match="no usable"):
        load_movielens(target, None, url=serve(archive()).url, md5=md5(archive()))
