"""The page's files after videos came and went: as if they had been exported with the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.fixtures import make_config
from triton_repo import page_tables
from triton_repo.catalogue import Catalogue
from triton_repo.page_refresh import changed_page
from triton_repo.page_tables import Tables
from workflow.config import CONFIG_FOLDER
from workflow.features.encoded import save_array
from workflow.run import Run, write_json
from workflow.schema import load_contract

CONTRACT = load_contract(CONFIG_FOLDER / "sim.contract.toml")
CONFIG = make_config()
COUNTRIES, RATINGS, GROUPS = ["DE", "US"], ["all", "13+", "18+"], ["Drama", "News"]
KNOWN, ALL = 5, 8
VIDEOS = pa.table(
    {
        "video_id": [11, 12, 13, 14, 15, 3, 99, 20],
        "title": ["One", "Zwei", None, "Quatre", "Fünf", "Six", "", "Acht"],
        "publish_time": [10, 90, None, 40, 50, 70, 95, None],
        "available_until": [None, 500, None, None, None, 600, None, None],
        "withdrawn": [0, 0, 1, 0, 0, 0, 1, 0],
        "genres": [
            ["drama"],
            [],
            ["news", "drama"],
            ["anime"],
            ["news"],
            ["news"],
            ["x"],
            ["drama"],
        ],
        "duration_s": [60.0, None, 61, 62, 0, 63, None, 64],
        "maturity": ["all", "18+", None, "13+", "all", "13+", "new!", None],
        "language": ["de"] * 8,
        "countries": [["DE", "US"], [], ["US"], ["DE"], ["US"], ["DE", "XX"], ["US", "DE"], []],
    }
)
VECTORS = np.random.default_rng(0).normal(size=(ALL + 1, 13)).astype(np.float32)
AXES = page_tables.diversity_axes(VECTORS[: KNOWN + 1, :8])


def exported(count: int) -> dict[str, Any]:
    """What the export writes for the first `count` videos."""
    tables = Tables(CONTRACT, pd.DataFrame(), VIDEOS.slice(0, count).to_pandas(), ())
    text, start = page_tables.titles(tables)
    vectors = VECTORS[: count + 1]
    return {
        "maturity": page_tables.video_ratings(tables, RATINGS),
        "countries": page_tables.country_bits(tables, COUNTRIES),
        "window": page_tables.windows(tables),
        "group": page_tables.places_of(tables, GROUPS, 2),
        "title_text": text, "title_start": start,
        "candidate_vector": vectors,
        "diversity_vector": page_tables.short_vectors(vectors[:, :8], AXES),
        "neighbour": np.ones((count + 1, 3), np.int32),
        "duration_s": np.r_[np.float32(np.nan), page_tables.durations(tables)],
        "video_id": np.r_[0, VIDEOS["video_id"].to_numpy()[:count]],
        **page_tables.newest(tables),
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.data.mkdir(parents=True)
    users = pd.DataFrame({"user_id": [1]})
    users.to_parquet(run.data / "users.parquet")
    pa.parquet.write_table(VIDEOS.slice(0, KNOWN), run.data / "videos.parquet")
    return run


def folder_of(path: Path, arrays: dict[str, Any]) -> Path:
    for name, values in {**arrays, "diversity_axis": AXES}.items():
        save_array(path / f"{name}.npy", values)
    write_json(path / "stage.json", {"countries": COUNTRIES, "ratings": RATINGS, "groups": GROUPS})
    return path


UNTOUCHED = Catalogue(
    VIDEOS["video_id"].to_numpy()[:KNOWN], None, np.zeros((0, 0), np.float32),
    np.zeros(0, np.int64),
)  # fmt: skip


def with_added(count: int) -> Catalogue:
    added = VIDEOS.slice(KNOWN, count - KNOWN)
    return replace(UNTOUCHED, added=added, vectors=VECTORS[KNOWN + 1 : count + 1])


def test_added_videos_are_as_if_exported(tmp_path: Path, run: Run) -> None:
    assert CONFIG.retriever.embedding_dim == 8  # the learned part of VECTORS
    arrays, before = exported(KNOWN), UNTOUCHED
    for count in (7, 8):  # twice, one after the other
        folder = folder_of(tmp_path / str(count), arrays)
        after = with_added(count)
        changed = changed_page(run, folder, CONTRACT, CONFIG, before, after)
        arrays, before = arrays | changed, after
        want = exported(count)
        want["neighbour"][KNOWN + 1 :] = 0
        assert arrays.keys() == want.keys()
        for name, values in want.items():
            np.testing.assert_array_equal(arrays[name], values, err_msg=name)


def test_withdrawn_videos_go_and_come_back(tmp_path: Path, run: Run) -> None:
    folder = folder_of(tmp_path / "page", exported(KNOWN))
    gone = UNTOUCHED.without(np.array([12, 14]))
    changed = changed_page(run, folder, CONTRACT, CONFIG, UNTOUCHED, gone)
    want = exported(KNOWN)["window"]
    want[1, [2, 4]] = 0
    assert list(changed) == ["window"]
    np.testing.assert_array_equal(changed["window"], want)
    again = changed_page(run, folder, CONTRACT, CONFIG, gone, UNTOUCHED)
    # Video 12 has the window that it had, video 13 is withdrawn in the data.
    np.testing.assert_array_equal(again["window"], exported(KNOWN)["window"])
    assert again["window"][1, 1:4].tolist() == [page_tables.ALWAYS, 500, 0]
