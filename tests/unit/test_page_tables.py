"""What the export looks up for the page, from small planted tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.pages import load
from triton_repo import page_tables
from triton_repo.page_tables import ALWAYS, LIKED, UNFINISHED, Tables
from workflow.features.history import Histories
from workflow.schema import Contract

DAY = 86_400


def contract_of(**columns: list[dict[str, Any]]) -> Contract:
    """A contract with these extra columns of events, users and videos."""
    given = {
        "events": [
            {"name": "user_id", "role": "user_id", "dtype": "int64"},
            {"name": "video_id", "role": "video_id", "dtype": "int64"},
            {"name": "at", "role": "timestamp", "dtype": "int64", "unit": "s"},
        ],
        "users": [{"name": "user_id", "role": "user_id", "dtype": "int64"}],
        "videos": [{"name": "video_id", "role": "video_id", "dtype": "int64"}],
    }
    tables = {
        name: {"path": name, "columns": own + columns.get(name, [])} for name, own in given.items()
    }
    ratings = (
        ["all", "13+", "18+"] if "maturity" in str(columns) and "string" in str(columns) else []
    )
    return Contract.model_validate({"name": "tiny", "watched": "all", "ratings": ratings, **tables})


def page(name: str, tag: str, dtype: str = "string", kind: str = "categorical") -> dict[str, Any]:
    return {"name": name, "role": "page", "dtype": dtype, "kind": kind, "tags": [tag]}


def made(contract: Contract, users: Any = None, videos: Any = None) -> Tables:
    return Tables(contract, pd.DataFrame(users or {}), pd.DataFrame(videos or {}), ())


# --- rules ---------------------------------------------------------------------------------------
def test_countries() -> None:
    contract = contract_of(
        users=[page("home", "country")], videos=[page("where", "country", kind="multi_hot")]
    )
    names = ["AA", "BB", "CC", "DD", "EE", "FF", "GG", "HH", "II"]
    where = [names, ["BB", "II"], [], np.array(["AA"])]
    tables = made(contract, {"home": ["II", None, "AA"]}, {"where": where})
    assert page_tables.country_names(tables) == names
    bits = page_tables.country_bits(tables, names)
    allowed = np.unpackbits(bits.T, axis=1, bitorder="little")[:, : len(names) + 1].tolist()
    assert allowed == [
        [0] * 10,
        [1] * 10,  # everywhere, so where nobody knows the country too
        [0, 0, 1, 0, 0, 0, 0, 0, 0, 1],
        [0] * 10,  # no country: nowhere
        [0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert page_tables.user_countries(tables, names).tolist() == [0, 9, 0, 1]


def test_without_countries_everything_is_everywhere() -> None:
    tables = made(contract_of(), {"user_id": [1, 2]}, {"video_id": [1, 2, 3]})
    assert page_tables.country_names(tables) == []
    assert page_tables.country_bits(tables, []).tolist() == [[0, 1, 1, 1]]
    assert page_tables.user_countries(tables, []).tolist() == [0, 0, 0]


def test_text_ratings() -> None:
    contract = contract_of(users=[page("limit", "maturity")], videos=[page("rated", "maturity")])
    tables = made(contract, {"limit": ["13+", None, "18+"]}, {"rated": ["all", None, "18+", "??"]})
    ratings = page_tables.ratings_of(tables)
    assert ratings == ["all", "13+", "18+"]
    assert page_tables.video_ratings(tables, ratings).tolist() == [0, 0, 2, 2, 2]
    assert page_tables.user_limits(tables, ratings).tolist() == [0, 2, 0, 3]


def test_ratings_that_are_numbers() -> None:
    contract = contract_of(
        users=[page("age", "maturity", "int64")], videos=[page("from_age", "maturity", "int64")]
    )
    tables = made(contract, {"age": [3.0, 11.0, 12.0, None]}, {"from_age": [6.0, 12.0, None, 16.0]})
    ratings = page_tables.ratings_of(tables)
    assert ratings == [6, 12, 16]
    assert page_tables.video_ratings(tables, ratings).tolist() == [0, 0, 1, 2, 2]
    assert page_tables.user_limits(tables, ratings).tolist() == [0, -1, 1, 2, 0]


def test_windows() -> None:
    videos = pd.DataFrame(
        {
            "publish_time": pd.array([10, 20, None, 40], "Int64"),
            "available_from": pd.array([15, None, None, 30], "Int64"),
            "available_until": pd.array([90, None, 70, None], "Int64"),
            "withdrawn": pd.array([0, 0, None, 1], "Int64"),
        }
    )
    window = page_tables.windows(Tables(contract_of(), pd.DataFrame(), videos, ()))
    assert window.tolist() == [[0, 15, 20, 0, 40], [0, 90, ALWAYS, 70, 0]]


# --- rows ----------------------------------------------------------------------------------------
def test_groups_are_the_most_common_values() -> None:
    contract = contract_of(
        videos=[page("genres", "row", kind="multi_hot"), page("year", "row", "int64")]
    )
    genres = [["drama", "news"], ["drama"], [], ["news", "drama"], ["rare"]]
    tables = made(contract, None, {"genres": genres, "year": [1999, 1999, None, 2001, 2001]})
    names = page_tables.groups(tables, 2)
    assert names == ["Drama", "News", "Year 1999", "Year 2001"]
    places = page_tables.places_of(tables, names)
    assert places.tolist() == [[0] * 3, [1, 2, 3], [1, 3, 0], [0] * 3, [2, 1, 4], [4, 0, 0]]
    assert page_tables.places_of(tables, names, 1).tolist() == [[0], [1], [1], [0], [2], [4]]


def test_without_groups() -> None:
    tables = made(contract_of(), None, {"video_id": [1, 2]})
    assert page_tables.groups(tables, 1) == []
    assert page_tables.places_of(tables, []).tolist() == [[0], [0], [0]]


def test_titles() -> None:
    text, start = page_tables.titles(made(contract_of(), None, {"title": ["Ä", None, "bc"]}))
    assert (text.tobytes(), start.tolist()) == ("Äbc".encode(), [0, 0, 2, 2, 4])


# --- popularity ----------------------------------------------------------------------------------
def histories(rows: list[int], times: list[int], start: list[int], label: Any = None) -> Histories:
    time = np.array(times, np.int64)
    return Histories(np.array(rows, np.int32), time, np.array(start), np.zeros(len(rows)), label)


def test_popular_and_trending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_tables, "MIN_WATCHES", 3)
    old, new = 0, 10 * DAY
    rows, times = [1, 1, 1, 2, 3, 3, 4], [old, old, old, new, new, old, new]
    found = page_tables.popularity(
        histories(rows, times, [0, 0, 7]), np.array([1, 1, 1, 1, 2, 2, 0], np.int16), 5, DAY
    )
    assert found["popular_row"].tolist() == [[1, 3, 2, 4, 5], [1, 2, 0, 0, 0]]
    assert found["trending_row"].tolist() == [[3, 2, 4, 1, 0], [2, 1, 0, 0, 0]]
    # Country 1 has four watches, country 2 too few for a table of its own.
    assert found["country_table"].tolist() == [0, 1, 0]


def test_newest() -> None:
    time = pd.array([30, None, 50, 50], "Int64")
    found = page_tables.newest(made(contract_of(), None, {"publish_time": time}))
    assert found["fresh_row"].tolist() == [3, 4, 1] and found["fresh_time"].tolist() == [50, 50, 30]
    assert len(page_tables.newest(made(contract_of()))["fresh_row"]) == 0


# --- pasts ---------------------------------------------------------------------------------------
def test_what_was_left_unfinished(tmp_path: Path) -> None:
    watch_s = {"name": "seconds", "role": "watch_s", "dtype": "float32"}
    events = pd.DataFrame(
        {
            "watch_s": [600.0, 10, 590, 950, None, 300, 300, 20],
            "watched": [True, True, False, True, True, True, True, True],
        }
    )
    for part, slice_ in enumerate((slice(0, 4), slice(4, None))):
        events[slice_].to_parquet(tmp_path / f"part-{part}.parquet")
    tables = Tables(
        contract_of(events=[watch_s]), pd.DataFrame(), pd.DataFrame(),
        tuple(sorted(tmp_path.glob("*.parquet"))),
    )  # fmt: skip
    duration_s = np.array([np.nan, 1000, 1000, np.nan, 340, 50], np.float32)
    label = np.array([1, 1, 0, 1, 1, 1, 1], np.int8)
    flags = page_tables.watch_flags(
        tables, histories([1, 2, 1, 2, 3, 4, 5], range(7), [0, 0, 7], label), duration_s
    )
    assert (flags & UNFINISHED > 0).tolist() == [True, False, False, False, False, False, False]
    # Begun; barely begun; done; not known; no duration; 40 s left; a short.
    assert (flags & LIKED > 0).tolist() == [True, True, False, True, True, True, True]


def test_the_country_of_a_watch(tmp_path: Path) -> None:
    """Where the request came from, if that is known, else where the user lives."""
    asked = {"name": "from_where", "role": "context", "kind": "categorical", "dtype": "string",
             "tags": ["country"]}  # fmt: skip
    contract = contract_of(events=[asked], users=[page("home", "country")])
    events = pd.DataFrame(
        {"from_where": ["BB", None, "CC", None], "watched": [True, True, False, True]}
    )
    events.to_parquet(tmp_path / "part.parquet")
    tables = Tables(
        contract, pd.DataFrame({"home": ["AA", None]}), pd.DataFrame(), (tmp_path / "part.parquet",)
    )
    names = page_tables.country_names(tables)
    assert names == ["AA", "BB", "CC"]
    found = page_tables.watch_countries(
        tables, histories([1, 1, 2], [1, 2, 3], [0, 0, 2, 3]), names
    )
    assert found.tolist() == [2, 1, 0]


# --- likeness ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [4, 40])
def test_short_vectors_keep_what_is_alike(dim: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, dim))
    learned = centres[np.arange(301) % 6] + 0.05 * rng.normal(size=(301, dim)) + 3
    short = page_tables.short_vectors(
        learned.astype(np.float32), page_tables.diversity_axes(learned.astype(np.float32))
    )
    assert short.shape == (301, page_tables.DIVERSITY_DIM) and short.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-5)
    likeness = short @ short.T
    same = (np.arange(301)[:, None] - np.arange(301)) % 6 == 0
    assert likeness[same].min() > 0.9 and likeness[~same].mean() < 0.1


def test_what_is_unfinished_is_the_same_online() -> None:
    history = load("history")
    for name in ("BEGUN", "DONE", "LEFT_S", "UNFINISHED", "LIKED"):
        assert getattr(history, name) == getattr(page_tables, name), name
