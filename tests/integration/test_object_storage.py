"""Raw logs are read from object storage, and bundles go through it, over real S3 requests."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from upath import UPath

from tests.s3_server import BUCKET, put, s3_server
from tests.unit.test_bundle import SCHEMA, make
from triton_repo.bucket import POINTER, fetch, publish
from triton_repo.bundle import MANIFEST, READY, verified_bundle
from triton_repo.client import Client
from workflow.data.reading import TableFiles
from workflow.errors import BundleError, ConfigError, StorageError
from workflow.remote import as_bucket, as_folder
from workflow.schema import load_contract

ML_CONTRACT = Path(__file__).parents[2] / "workflow" / "configs" / "examples" / "ml-100k.toml"
Contents = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A prefix of its own for each test."""
    return f"{BUCKET}/{tmp_path.name}"


# --- raw logs ------------------------------------------------------------------------------------
def test_parquet_in_a_bucket_makes_the_same_tables(
    marquee: Any, clip_source: Path, url: str, tmp_path: Path, contents: Contents
) -> None:
    put(clip_source, url)
    contract = clip_source / "contract.toml"
    for run, source in (("disk", clip_source), ("bucket", url)):
        words = ("--run", tmp_path / run, "--source", source, "--contract", contract)
        assert marquee.json("validate", *words)["num_events"] == 9_000
    assert contents(tmp_path / "disk" / "data") == contents(tmp_path / "bucket" / "data")
    # The run remembers the URL. A file of the same size with other content is seen.
    again = ("validate", "--run", tmp_path / "bucket")
    assert marquee.json(*again)["skipped"]
    first, second = (f"{url}/log/{part}.parquet" for part in range(2))
    s3fs.S3FileSystem().copy(first, second)
    assert not marquee.json(*again)["skipped"]


def test_compressed_text_in_a_bucket_makes_the_same_tables(
    marquee: Any, ml_source: Path, url: str, tmp_path: Path, contents: Contents
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("user", "item", "inter"):
        content = (ml_source / f"ml-100k.{name}").read_bytes()
        (source / f"ml-100k.{name}.gz").write_bytes(gzip.compress(content))
    contract = tmp_path / "contract.toml"
    contract.write_text(
        ML_CONTRACT.read_text().replace('.inter"', '.inter.gz"').replace('.user"', '.user.gz"')
        .replace('.item"', '.item.gz"')
    )  # fmt: skip
    put(source, url)
    for run, place in (("disk", source), ("bucket", url)):
        words = ("--run", tmp_path / run, "--source", place, "--contract", contract)
        assert marquee.json("validate", *words)["num_events"] >= 20_000
    assert contents(tmp_path / "disk" / "data") == contents(tmp_path / "bucket" / "data")


def test_a_large_file_is_read_as_it_is_used(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows of 107 MB need some blocks that are read ahead, not all."""
    table = load_contract(ML_CONTRACT).events
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    rows = "12345678\t87654321\t4.0000000\t881250949\n" * 2_500_000
    (tmp_path / "ml-100k.inter").write_text(header + rows)
    put(tmp_path, url)
    fetched = []
    original = s3fs.core.S3File._fetch_range

    def counted(self: Any, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return original(self, start, end)

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", counted)
    chunks = TableFiles(as_folder(url), table, "events").chunks(10_000)
    assert next(chunks).num_rows == 10_000
    assert 0 < sum(fetched) < 75_000_000
    assert 10_000 + sum(chunk.num_rows for chunk in chunks) == 2_500_000
    assert sum(fetched) > 107_000_000 and max(fetched) < 10_000_000


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("s3://no-such-bucket/logs", {}, "bucket does not exist"),
        (f"{BUCKET}/no-such-prefix", {}, "no-such-prefix"),
        (f"{BUCKET}/logs", {"AWS_ACCESS_KEY_ID": None}, "credentials"),
        (f"{BUCKET}/logs", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect"),
        ("gs://bucket/logs", {}, "gcsfs"),
        ("nothing://bucket/logs", {}, "nothing"),
    ],
)
def test_what_cannot_be_read_is_said(
    marquee: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str,
    changes: dict[str, str | None], words: str,
) -> None:  # fmt: skip
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        else:
            monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    failed = marquee("validate", "--run", run, "--source", source, "--contract", ML_CONTRACT)
    assert words in failed.error and ("Next:" in failed.error or "Expected:" in failed.error)


def test_published_datasets_are_read_from_a_disk(marquee: Any, url: str, tmp_path: Path) -> None:
    failed = marquee("validate", "--run", tmp_path, "--dataset", "movielens-1m", "--source", url)
    assert "--source FOLDER" in failed.error and url in failed.error


# --- bundles -------------------------------------------------------------------------------------
class Puts:
    """Counts what is written to the storage; fails from a given request on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.fails_at: int | None = None
        for method in ("_put_file", "_pipe_file"):
            self._wrap(monkeypatch, method)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        original = getattr(s3fs.S3FileSystem, method)

        async def counted(fs: Any, one: Any, other: Any, **options: Any) -> Any:
            if len(self.names) == self.fails_at:
                raise ConnectionResetError("the connection was lost")
            self.names.append((other if method == "_put_file" else one).rsplit("/", 1)[1])
            return await original(fs, one, other, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, method, counted)


@pytest.fixture
def changed_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What is patched holds: a driver keeps the methods that it had when it was made."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def puts(changed_driver: pytest.MonkeyPatch) -> Puts:
    return Puts(changed_driver)


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_bundle_comes_back_whole(url: str, tmp_path: Path, puts: Puts) -> None:
    source = make(tmp_path / "source")
    sent = publish(source, as_bucket(url))
    assert sent["version"] == 7 and sent["num_sent"] == len(files(source))
    assert puts.names[-3:] == [MANIFEST, READY, POINTER]
    bundle = fetch(as_bucket(url), tmp_path / "target")
    assert files(tmp_path / "target") == files(source)
    assert bundle.seal == verified_bundle(tmp_path / "target").seal == sent["seal"]


def test_published_again_nothing_is_written(url: str, tmp_path: Path, puts: Puts) -> None:
    source = make(tmp_path / "source")
    publish(source, as_bucket(url))
    before = list(puts.names)
    assert publish(source, as_bucket(url))["num_sent"] == 0
    assert puts.names == before


def test_the_older_one_published_again_is_current(url: str, tmp_path: Path, puts: Puts) -> None:
    old, new = make(tmp_path / "old", 7), make(tmp_path / "new", 8)
    for source in (old, new):
        publish(source, as_bucket(url))
    assert fetch(as_bucket(url), tmp_path / "target").version == 8
    assert fetch(as_bucket(url), tmp_path / "other", version=7).version == 7
    before = len(puts.names)
    publish(old, as_bucket(url))
    assert puts.names[before:] == [POINTER]
    assert fetch(as_bucket(url), tmp_path / "target").version == 7
    assert files(tmp_path / "target") == files(old)


def test_a_partial_upload_never_looks_complete(url: str, tmp_path: Path, puts: Puts) -> None:
    """Whichever request is the first to fail; the next call sends what is missing."""
    old, new = make(tmp_path / "old", 7), make(tmp_path / "new", 8)
    publish(old, as_bucket(url))
    total = len(files(new)) + 1
    for number in range(total):
        puts.names.clear()
        puts.fails_at = 1 if number else 0  # one more file each time
        with pytest.raises(StorageError, match="connection was lost"):
            publish(new, as_bucket(url))
        assert fetch(as_bucket(url), tmp_path / "target").version == 7
        if number < total - 1:
            with pytest.raises(BundleError, match="no complete bundle"):
                fetch(as_bucket(url), tmp_path / "other", version=8)
    puts.fails_at = None
    publish(new, as_bucket(url))
    assert fetch(as_bucket(url), tmp_path / "target").version == 8
    assert files(tmp_path / "target") == files(new)


@pytest.mark.parametrize("name", ["ranker/7/ranker.onnx", MANIFEST])
def test_what_was_changed_is_not_fetched(url: str, tmp_path: Path, name: str) -> None:
    publish(make(tmp_path / "source"), as_bucket(url))
    kept = make(tmp_path / "target", 6)
    before = files(kept)
    (UPath(url) / "bundles" / "7" / name).write_bytes(b"{}weight")
    with pytest.raises(BundleError, match=r"changed|damaged"):
        fetch(as_bucket(url), kept)
    assert files(kept) == before and [p.name for p in tmp_path.glob(".*")] == []


def test_what_arrives_changed_is_not_sealed(
    url: str, tmp_path: Path, changed_driver: pytest.MonkeyPatch
) -> None:
    original = s3fs.S3FileSystem._put_file

    async def damaged(fs: Any, source: str, target: str, **options: Any) -> None:
        await original(fs, source, target, **options)
        await fs._pipe_file(target, b"other")

    changed_driver.setattr(s3fs.S3FileSystem, "_put_file", damaged)
    with pytest.raises(BundleError, match="not what was sent"):
        publish(make(tmp_path / "source"), as_bucket(url))
    with pytest.raises(StorageError, match=POINTER):
        fetch(as_bucket(url), tmp_path / "target")


def test_another_bundle_of_the_same_version_is_refused(url: str, tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    other = make(tmp_path / "other", schema={**SCHEMA, "max_batch_size": 9})
    publish(one, as_bucket(url))
    with pytest.raises(BundleError, match="another bundle of the same version"):
        publish(other, as_bucket(url))
    fetch(as_bucket(url), tmp_path / "target")
    assert files(tmp_path / "target") == files(one)


def test_a_folder_of_something_else_is_not_replaced(url: str, tmp_path: Path) -> None:
    publish(make(tmp_path / "source"), as_bucket(url))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(ConfigError, match="not a bundle"):
        fetch(as_bucket(url), tmp_path / "home")
    assert files(tmp_path / "home") == {"letter": b"dear"}


def test_published_deployed_elsewhere_and_served(
    marquee: Any, sim_run: Any, serve_deployment: Any, url: str, tmp_path: Path
) -> None:
    """An empty machine needs the URL only; its pages are those of the run."""
    sent = marquee.json("publish", sim_run.folder, url)
    assert marquee.json("publish", sim_run.folder, url)["num_sent"] == 0
    place = tmp_path / "deployment"
    assert marquee.json("deploy", url, "--deployment", place)["live"] == sent["version"]
    assert not list(place.glob(".fetched-*"))
    wanted = sim_run.result["recommendations"]
    with serve_deployment(place) as endpoint, Client(endpoint["grpc_url"]) as client:
        answer = client.recommend(wanted["user_id"], top_k=10, time=wanted["at"])
    assert answer.video_ids.tolist() == [item["video_id"] for item in wanted["items"]]


def test_a_container_bundle_is_fetched_into_a_folder(
    marquee: Any, copied: Path, url: str, tmp_path: Path
) -> None:
    shutil.rmtree(copied / "container_repository", ignore_errors=True)  # of other tests
    failed = marquee("publish", copied, url, "--target", "container")
    assert "export --target container" in failed.error
    marquee.json("export", "--run", copied, "--target", "container")
    marquee.json("publish", copied, url, "--target", "container")
    made = marquee.json("fetch", url, tmp_path / "repository")
    assert made["version"] == verified_bundle(copied / "container_repository").version
    assert files(tmp_path / "repository") == files(copied / "container_repository")
