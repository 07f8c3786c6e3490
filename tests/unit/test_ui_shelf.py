"""What a bundle's files say of its videos and viewers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import NOW, VERSION, Catalogue
from triton_repo.ui.shelf import Shelf
from workflow.errors import BundleError

TOWER = {"vocabulary": {"app": {"values": ["web", "tv"], "index": [3, 4]},
                        "hour": {"values": [0, 1], "index": [3, 4]}}}  # fmt: skip


def bundle(folder: Path, **arrays: Any) -> Path:
    """Two users, five videos; ids are 1001 to 1005, user ids 70 and 80."""
    made = Catalogue(num_videos=5, num_users=2)
    made.group[1] = [2, 1]
    made.rating[2], made.allowed[2], made.until[2] = 1, False, NOW
    made.allowed[2, 1] = True
    made.watches[2] = [(1, 0), (3, 0)]
    made.country[2], made.limit[1] = 3, 2
    made.stage(folder / "page_stage")
    for model in ("query_tower", "ranker", "fused_page"):
        (folder / model / str(VERSION)).mkdir(parents=True)
    (folder / "fused_page" / str(VERSION) / "meter.py").touch()
    tower = folder / "query_tower" / str(VERSION)
    (tower / "stage.json").write_text(json.dumps(TOWER))
    values = {
        "user_id": np.array([70, 80]), "watched_time": np.array([NOW - 9, NOW - 5]),
        "video_id": 1001 + np.arange(5), "video_row": np.arange(6),
    } | arrays  # fmt: skip
    for name, array in values.items():
        np.save(tower / f"{name}.npy", array)
    durations = np.array([np.nan, 90.5, np.nan, 30, 30, 30], np.float32)
    np.save(folder / "ranker" / str(VERSION) / "duration_s.npy", durations)
    return folder


def test_videos(tmp_path: Path) -> None:
    shelf = Shelf(bundle(tmp_path), VERSION)
    assert shelf.num_videos == 5 and shelf.id_of(3) == "1003"
    assert shelf.video(1) == {
        "id": "1001", "title": "Video 1", "groups": ["Genre 1", "Genre 0"], "duration_s": 90.5,
        "published": None, "maturity": "all",
    }  # fmt: skip
    found = shelf.details(2)
    assert found["duration_s"] is None and found["maturity"] == "13+"
    assert (found["everywhere"], found["countries"]) == (False, ["JP"])
    assert found["available_until"] == NOW and shelf.details(1)["available_until"] is None


def test_rows_of_ids(tmp_path: Path) -> None:
    """After a refresh the ids are sorted, and the rows are not."""
    ids, rows = np.array([5, 1001, 1002, 1003, 1004]), np.array([0, 5, 1, 2, 3, 4])
    shelf = Shelf(bundle(tmp_path, video_id=ids, video_row=rows), VERSION)
    assert [shelf.row_of(text) for text in ("5", "1001", "1004")] == [5, 1, 4]
    for text in ("6", "2000", "", "x", "1e3", "9" * 30, "-5", "٣"):
        assert shelf.row_of(text) is None
    texts = np.array([b"a", b"b/\xc3\xa9", b"c", b"d", b"e"])
    shelf = Shelf(bundle(tmp_path / "texts", video_id=texts), VERSION)
    assert shelf.row_of("b/é") == 2 and shelf.row_of("zz") is None


def test_viewers(tmp_path: Path) -> None:
    shelf = Shelf(bundle(tmp_path), VERSION)
    busy, quiet = {"watches": 2, "country": "US"}, {"watches": 0, "country": None}
    assert shelf.users() == [
        {"id": "80", **busy, "maturity": "18+"},
        {"id": "70", **quiet, "maturity": "13+"},
    ]
    assert shelf.last_watch() == NOW - 5


def test_controls(tmp_path: Path) -> None:
    found = Shelf(bundle(tmp_path), VERSION).controls()
    names = {one["name"]: one["values"] for one in found["context"]}
    assert list(names) == ["device", "country", "maturity", "app"]  # the hour is in the time
    assert names["device"] == ["tv", "web"] and names["app"] == ["web", "tv"]
    assert found["default_device"] == "web"


def test_a_bundle_from_before(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    (folder / "fused_page" / str(VERSION) / "meter.py").unlink()
    with pytest.raises(BundleError, match="cannot explain its pages"):
        Shelf(folder, VERSION)
