"""What a refresh is asked for: files, ids, the catalogue that comes out; links of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures import make_config, make_contract
from triton_repo.bundle import read_bundle, seal, verify
from triton_repo.catalogue import Catalogue, added_titles, prune
from triton_repo.refresh import link_bundle, planned
from workflow.data.id_files import ids_of_file
from workflow.data.new_videos import read_new_videos
from workflow.errors import ContractError, DataError
from workflow.run import Run

CONTRACT, CONFIG = make_contract(), make_config()
KNOWN = np.array([b"v1", b"v2", b"v3", b"v4"])
UNTOUCHED = Catalogue(KNOWN, None, np.zeros((0, 0), np.float32), KNOWN[:0])


def raw(path: Path, ids: list[Any], **changes: Any) -> Path:
    """A raw table of videos as the contract declares it."""
    columns = {
        "video_id": pa.array(ids, pa.string()),
        "language": pa.array(["de"] * len(ids)),
        "duration": pa.array([60.0] * len(ids), pa.float32()),
        "genres": pa.array([["drama"]] * len(ids)),
        "published": pa.array([1_700_000_000] * len(ids)),
    }
    pq.write_table(pa.table(columns | changes), path)
    return path


def listed(path: Path, *ids: str) -> Path:
    path.write_text("\n".join(ids) + "\n")
    return path


def plan(before: Catalogue = UNTOUCHED, **files: Any) -> tuple[Catalogue, dict[str, int]]:
    return planned(before, CONFIG, CONTRACT, **({"videos": None, "withdrawn": None} | files))


# --- what is to be done ---------------------------------------------------------------------------
def test_added_known_withdrawn_and_returned(tmp_path: Path) -> None:
    videos = raw(tmp_path / "new.parquet", ["v9", "v2", "v0"])
    after, numbers = plan(videos=videos, withdrawn=listed(tmp_path / "gone.txt", "v3", "v1"))
    assert numbers == {
        "added": 2, "returned": 0, "known": 1, "withdrawn": 2, "withdrawn_before": 0,
    }  # fmt: skip
    assert after.ids.tolist() == [b"v1", b"v2", b"v3", b"v4", b"v0", b"v9"]
    assert after.is_withdrawn.tolist() == [True, False, True, False, False, False]
    videos = raw(tmp_path / "more.parquet", ["v1", "v9", "v7"])
    later, numbers = plan(after, videos=videos, withdrawn=listed(tmp_path / "x", "v0", "v3"))
    assert numbers == {
        "added": 1, "returned": 1, "known": 1, "withdrawn": 1, "withdrawn_before": 1,
    }  # fmt: skip
    assert later.ids.tolist()[-3:] == [b"v0", b"v9", b"v7"]  # rows never change
    assert sorted(later.withdrawn.tolist()) == [b"v0", b"v3"]


def test_nothing_to_do(tmp_path: Path) -> None:
    _, numbers = plan(videos=raw(tmp_path / "a.parquet", ["v2"]))
    assert numbers["known"] == 1 and sum(numbers.values()) == 1


def test_unknown_withdrawn_ids_are_named(tmp_path: Path) -> None:
    file = listed(tmp_path / "gone", "v1", "x8", *(f"y{i}" for i in range(9)))
    with pytest.raises(DataError, match=r"videos x8, y0, y1, y2, y3 and 5 more that the run"):
        plan(withdrawn=file)


def test_an_id_in_both_files(tmp_path: Path) -> None:
    videos = raw(tmp_path / "new.parquet", ["v8", "v2"])
    with pytest.raises(DataError, match=r"video v2 in both files"):
        plan(videos=videos, withdrawn=listed(tmp_path / "gone", "v2"))


def test_withdrawn_as_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video_id": ["v2", "v2"], "why": ["", ""]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('why,video_id\n"a, b",v2\n,v4\n')
    (tmp_path / "b.csv").write_text("video_id\nv2\nv4\n")
    found = [
        ids_of_file(tmp_path / name, "video_id", CONTRACT).tolist()
        for name in ("a.parquet", "a.csv", "b.csv")
    ]
    assert found == [[b"v2"], [b"v2", b"v4"], [b"v2", b"v4"]]
    with pytest.raises(DataError, match="no file of videos"):
        ids_of_file(tmp_path / "none", "video_id", CONTRACT)
    with pytest.raises(DataError, match="names no video"):
        ids_of_file(listed(tmp_path / "empty"), "video_id", CONTRACT)


# --- the same errors as validation ----------------------------------------------------------------
def columns(**changes: Any) -> dict[str, Any]:
    return {name: pa.array(values) for name, values in changes.items()}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (columns(colour=["red"]), ContractError, "has a column 'colour'"),
        (columns(language=[3]), ContractError, "language"),
        (columns(duration=[-1.0]), DataError, "no duration"),
        (columns(published=[10**18]), DataError, "published"),
        (columns(video_id=[None]), ContractError, "video_id"),
    ],
)
def test_a_bad_table(
    changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    path = raw(tmp_path / "new.parquet", ["v8"], **changes)
    with pytest.raises((kind, DataError), match=message):
        read_new_videos(path, CONTRACT, CONFIG.validation)


def test_a_missing_column_and_a_missing_file(tmp_path: Path) -> None:
    path = raw(tmp_path / "new.parquet", ["v8"])
    pq.write_table(pq.read_table(path).drop_columns(["genres"]), path)
    with pytest.raises(ContractError, match="has no column 'genres'"):
        read_new_videos(path, CONTRACT, CONFIG.validation)
    with pytest.raises(DataError, match="no file of videos"):
        read_new_videos(tmp_path / "none.parquet", CONTRACT, CONFIG.validation)


def test_an_id_twice(tmp_path: Path) -> None:
    path = raw(tmp_path / "new.parquet", ["v8", "v7", "v8"])
    with pytest.raises(DataError, match="1 duplicate video_id"):
        read_new_videos(path, CONTRACT, CONFIG.validation)


def test_text_files_and_a_contract_without_videos(tmp_path: Path) -> None:
    contract = make_contract(lists=False)
    path = tmp_path / "new.csv"
    path.write_text("video_id,language,duration,published\nb,de,5,1700000000\na,,,\n")
    table = read_new_videos(path, contract, CONFIG.validation)
    assert table["video_id"].to_pylist() == ["a", "b"]
    assert table["language"].to_pylist() == [None, "de"]
    assert table["publish_time"].to_pylist() == [None, 1_700_000_000]
    bare = contract.model_copy(update={"videos": None})
    (tmp_path / "ids.csv").write_text("video_id\nb\na\n")
    table = read_new_videos(tmp_path / "ids.csv", bare, CONFIG.validation)
    assert table.column_names == ["video_id", "title"]
    assert table["video_id"].to_pylist() == ["a", "b"]


# --- on disk --------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a sealed bundle of version 17 and the ids of its features."""
    made = Run(tmp_path / "run")
    (made.features / "videos").mkdir(parents=True)
    np.save(made.features / "videos" / "video_id.npy", KNOWN)
    for model in ("retrieval", "marquee"):
        (made.repository / model / "17").mkdir(parents=True)
        (made.repository / model / "17" / "file").write_text(f"17 of {model}")
        text = f'name: "{model}"\nversions: [ 17 ]\nmodel_version: 17\nsize: 1700\n'
        (made.repository / model / "config.pbtxt").write_text(text)
    seal(made.repository, 17, {"inputs": {}, "outputs": {}, "max_batch_size": 1})
    return made


def test_a_catalogue_is_that_of_its_bundle(run: Run, tmp_path: Path) -> None:
    assert Catalogue.of(run).is_untouched
    after, _ = plan(videos=raw(tmp_path / "new.parquet", ["v9"]))
    after = after.without(np.array([b"v1"]))
    after.save(run, 17, {})
    Catalogue.of(run).without(np.array([b"v2"])).save(run, 18, {})  # and then it was killed
    again = Catalogue.of(run)
    assert again.ids.tolist() == [*KNOWN.tolist(), b"v9"] and again.withdrawn.tolist() == [b"v1"]
    assert added_titles(run, ["v9", "v1"]) == {"v9": ""}
    prune(run)
    assert [path.name for path in run.catalogue.iterdir()] == ["17"]


def test_a_catalogue_that_only_lacks_videos(run: Run, tmp_path: Path) -> None:
    UNTOUCHED.without(np.array([b"v1"])).save(run, 17, {})
    again = Catalogue.of(run)
    assert again.added is None and again.ids.dtype == KNOWN.dtype
    assert again.is_withdrawn.tolist() == [True, False, False, False]
    after, _ = plan(again, videos=raw(tmp_path / "new.parquet", ["a longer id"]))
    assert after.ids.tolist() == [*KNOWN.tolist(), b"a longer id"]


def test_a_catalogue_goes_on_after_a_new_training(tmp_path: Path) -> None:
    """v9 is in the data now; v8 is not; v1 stays withdrawn, v3 is gone."""
    before, _ = plan(videos=raw(tmp_path / "new.parquet", ["v8", "v9"]))
    before = before.without(np.array([b"v1", b"v3"]))
    trained = Catalogue(np.array([b"v1", b"v2", b"v9"]), None, np.zeros((0, 0)), KNOWN[:0])
    after = before.on(trained)
    assert after.ids.tolist() == [b"v1", b"v2", b"v9", b"v8"]
    assert after.withdrawn.tolist() == [b"v1"] and len(after.vectors) == 0


def test_links_of_a_bundle(run: Run, tmp_path: Path) -> None:
    """Everything under the new version, unchanged files with their digests, not written twice."""
    bundle = read_bundle(run.repository)
    target = tmp_path / "next"
    target.mkdir()
    hashes = link_bundle(bundle, target, 18)
    text = (target / "marquee" / "config.pbtxt").read_text()
    assert text == 'name: "marquee"\nversions: [ 18 ]\nmodel_version: 18\nsize: 1700\n'
    assert set(hashes) == {"retrieval/18/file", "marquee/18/file"}
    one, other = run.repository / "retrieval" / "17" / "file", target / "retrieval" / "18" / "file"
    assert one.samefile(other)
    seal(target, 18, bundle.schema, hashes)
    verify(read_bundle(target))
    assert read_bundle(target).version == 18 and read_bundle(run.repository).seal == bundle.seal
