"""The page stage on planted catalogues: which rows there are, what is in them, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pages import Catalogue, load, page_of, rows_of

NEAR, TREND, NEW = 2, 4, 8
UNFINISHED, LIKED = 1, 2


def test_a_page_with_every_kind_of_row(tmp_path: Path) -> None:
    catalogue = Catalogue(
        settings={"layouts": {"web": [9, 3]}, "diversity": "none", "groups": ["Drama", "News"]}
    )
    catalogue.watches[1] = [(50, LIKED), (51, UNFINISHED | LIKED), (52, LIKED), (53, UNFINISHED)]
    catalogue.allowed[:, 2] = True
    catalogue.country[1] = 3
    catalogue.country_table[3] = 1
    catalogue.popular = np.array([[30, 31, 32, 33, 34, 35], [40, 41, 42, 0, 0, 0]], np.int32)
    rows = np.arange(1, 22)
    source = np.ones(21, int)
    source[3:6] = NEAR | 1 << 8  # of the latest liked watch
    source[6:9] = NEAR | 1 << 9
    source[9:12] = TREND
    source[12:15] = NEW
    catalogue.group[16:19, 0] = 2  # rows 16, 17, 18 are News
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(1, rows, source=source))
    assert rows_of(page) == {
        "Continue watching": [53, 51],
        "Top picks": [1, 2, 3],
        "Because you watched Video 52": [4, 5, 6],
        "Because you watched Video 51": [7, 8, 9],
        "Trending now in US": [10, 11, 12],
        "New releases": [13, 14, 15],
        "News": [16, 17, 18],
        "More for you": [19, 20, 21],
        "Popular in US": [40, 41, 42],
    }
    assert page.kinds == [
        b"continue", b"top", b"because", b"because", b"genre", b"trending", b"new", b"more",
        b"popular",
    ]  # fmt: skip
    assert page.status == 0
    assert page.sources[:2].tolist() == [32, 32] and set(page.sources[-3:].tolist()) == {16}
    np.testing.assert_array_equal(page.scores[2:5], np.linspace(1, 0, 21, dtype=np.float32)[:3])
    assert np.isnan(page.scores[[0, -1]]).all()
    assert (page.propensities == 1).all()


@pytest.mark.parametrize(
    ("trending", "new", "kinds"),
    [(0.25, 0.25, "top genre trending new"), (1, 0.25, "top trending genre new"),
     (0.25, 2, "top new genre trending")],
)  # fmt: skip
def test_what_a_row_counts_is_a_setting(
    tmp_path: Path, trending: float, new: float, kinds: str
) -> None:
    worth = {"because": 2, "genre": 1, "trending": trending, "new": new}
    settings = {"layouts": {"web": [4, 3]}, "diversity": "none", "row_worth": worth}
    catalogue = Catalogue(num_groups=1, settings=settings)
    catalogue.group[:] = 0
    catalogue.group[18:21, 0] = 1
    source = np.ones(20, int)
    source[3:10], source[10:17] = TREND, NEW
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 21), source=source))
    assert b" ".join(page.kinds).decode() == kinds


def test_rows_above_leave_trending_and_new_what_they_need(tmp_path: Path) -> None:
    """A genre and the top picks could show every video that is trending or new."""
    settings = {"layouts": {"web": [4, 5]}, "diversity": "none"}
    catalogue = Catalogue(num_groups=3, settings=settings)
    source = np.ones(20, int)
    source[:4], source[4:10] = TREND, NEW
    catalogue.group[1:13, 0], catalogue.group[13:21, 0] = 1, 2
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 21), source=source))
    assert rows_of(page) == {
        "Top picks": [5, 11, 12, 13, 14],
        "Genre 1": [15, 16, 17, 18, 19],
        "Trending now": [1, 2, 3, 4],
        "New releases": [6, 7, 8, 9, 10],
    }


def test_trending_and_new_are_on_the_shortest_page(tmp_path: Path) -> None:
    settings = {"layouts": {"web": [4, 4]}, "diversity": "none"}
    catalogue = Catalogue(num_groups=3, settings=settings)
    source = np.ones(40, int)
    source[30:35], source[35:40] = NEW, TREND
    catalogue.group[5:30, 0] = np.repeat([1, 2, 3], 9)[:25]
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 41), source=source))
    assert list(rows_of(page)) == ["Top picks", "Genre 0", "Trending now", "New releases"]


def test_popular_everywhere_comes_after_popular_in_the_country(tmp_path: Path) -> None:
    catalogue = Catalogue(settings={"layouts": {"web": [4, 3]}})
    catalogue.country[1], catalogue.country_table[3] = 3, 1
    catalogue.popular = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 0, 0, 0]], np.int32)
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(1))
    assert rows_of(page) == {"Popular in US": [6, 5, 4], "Popular": [1, 2, 3]}
    assert page.status == 3  # fewer rows than the layout


def test_the_row_that_adds_most_comes_first(tmp_path: Path) -> None:
    """A genre whose videos the page shows already loses to one of lesser videos."""
    catalogue = Catalogue(
        num_groups=3,
        settings={"layouts": {"web": [4, 4]}, "diversity": "none", "diversity_strength": 0.0},
    )
    catalogue.group[1:7, 0] = 1  # the top picks and two more
    catalogue.group[8:12, 0] = 2
    catalogue.group[12:16, 0] = 3
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 16)))
    assert list(rows_of(page)) == ["Top picks", "Genre 1", "Genre 2", "Genre 0"]


def test_a_row_like_those_above_comes_later(tmp_path: Path) -> None:
    catalogue = Catalogue(
        num_groups=3,
        settings={"layouts": {"web": [4, 4]}, "diversity": "none", "diversity_strength": 0.9},
    )
    for group, (start, axis) in enumerate([(5, 0), (9, 0), (13, 1)], 1):
        catalogue.group[start : start + 4, 0] = group
        catalogue.diversity_vector[start : start + 4] = np.eye(16)[axis]
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 17)))
    assert list(rows_of(page)) == ["Top picks", "Genre 0", "Genre 2", "Genre 1"]


def test_twins_do_not_stand_side_by_side(tmp_path: Path) -> None:
    catalogue = Catalogue(settings={"layouts": {"web": [1, 5]}, "diversity_strength": 0.6})
    catalogue.diversity_vector[2] = catalogue.diversity_vector[1]
    rows = np.arange(1, 11)
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, rows, score=-0.01 * rows))
    assert page.rows[0] == 1 and 2 not in page.rows


@pytest.mark.parametrize(
    ("device", "size"), [("tv", (6, 5)), ("web", (4, 4)), ("fridge", (4, 4)), (None, (4, 4))]
)
def test_the_layout_follows_the_device(
    tmp_path: Path, device: str | None, size: tuple[int, int]
) -> None:
    catalogue = Catalogue(num_videos=200)
    inputs = catalogue.inputs(0, np.arange(1, 51), device=device)
    page = page_of(catalogue.stage(tmp_path), inputs)
    assert (len(page.sizes), set(page.sizes)) == (size[0], {size[1]})


def test_a_row_with_too_few_videos_is_left_out(tmp_path: Path) -> None:
    catalogue = Catalogue(settings={"min_row_videos": 4, "diversity": "none"})
    catalogue.group[5:8, 0], catalogue.group[8:12, 0] = 1, 2
    catalogue.popular[:] = 0
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 15)))
    # Genre 0 has three, and of the three that remain no row is made either.
    assert list(rows_of(page)) == ["Top picks", "Genre 1", "More for you"]
    assert rows_of(page)["More for you"] == [5, 6, 7, 12]


@pytest.mark.parametrize(("session", "first"), [(0, "Genre 0"), (1, "Video 52"), (2, "Video 51")])
def test_what_is_being_watched_now_comes_first(tmp_path: Path, session: int, first: str) -> None:
    """The first row answers the open session; without one the better row follows Top picks."""
    catalogue = Catalogue(settings={"layouts": {"web": [3, 3]}, "diversity": "none"})
    # Of the last two, 52 is liked and the latest one is not.
    catalogue.watches[1] = [(51, LIKED), (52, LIKED)][: 1 + (session < 2)]
    catalogue.watches[1] += [(50, 0)] if session == 2 else []
    catalogue.group[4:10, 0] = 1
    source = np.ones(40, int)
    source[37:40] = NEAR | 1 << 8
    inputs = catalogue.inputs(1, np.arange(1, 41), source=source, session=session)
    page = page_of(catalogue.stage(tmp_path), inputs)
    now, top = page.titles[:2] if session else page.titles[1::-1]
    assert (top, now.decode().endswith(first)) == (b"Top picks", True)
    if session:
        assert page.rows[:6].tolist() == [38, 39, 40, 1, 2, 3]


def test_the_row_of_the_open_session_is_of_all_genres_of_the_video(tmp_path: Path) -> None:
    """Of the neighbours nine are News and one is Drama; other candidates are Drama, too."""
    settings = {"layouts": {"web": [1, 6]}, "diversity": "none", "session_strength": 0.0}
    catalogue = Catalogue(num_groups=3, settings=settings)
    catalogue.watches[1] = [(50, LIKED)]
    catalogue.group[50] = [1, 2]
    catalogue.group[11:20, 0], catalogue.group[20, 0] = 1, 2  # neighbours
    catalogue.group[1:6, 0], catalogue.group[6:11, 0] = 3, 2  # the best are neither
    source = np.ones(40, int)
    source[10:20] = NEAR | 1 << 8
    inputs = catalogue.inputs(1, np.arange(1, 41), source=source, session=1)
    [(title, rows)] = rows_of(page_of(catalogue.stage(tmp_path), inputs)).items()
    assert title == "Because you watched Video 50"
    assert rows == [11, 20, 12, 6, 13, 7]


def test_genres_of_the_open_session_gain(tmp_path: Path) -> None:
    """By the share of the watched video's genres that they have, in parts of the scores' range."""
    catalogue = Catalogue(
        settings={
            "layouts": {"web": [1, 6]},
            "diversity": "none",
            "session_strength": 0.25,
            "min_row_videos": 3,
        },
    )
    catalogue.watches[1] = [(50, LIKED)]
    catalogue.group[50] = [1, 2]
    catalogue.group[[4, 5, 6]] = [[1, 0], [1, 2], [3, 0]]
    inputs = catalogue.inputs(1, np.arange(1, 12), session=0)
    stage = catalogue.stage(tmp_path)
    assert page_of(stage, inputs).rows.tolist() == [1, 2, 3, 4, 5, 6]
    inputs["session_size"][:] = 1
    page = page_of(stage, inputs)  # scores 1, .9, .8, .7 + .125, .6 + .25, .5
    assert page.rows.tolist() == [1, 2, 5, 4, 3, 6]
    np.testing.assert_allclose(page.scores, [1, 0.9, 0.6, 0.7, 0.8, 0.5], rtol=1e-6)


def test_neighbours_of_what_was_just_watched_get_half_the_quota() -> None:
    shares = load("sources").neighbour_shares
    assert shares(100, 3, 0) == [33, 33, 33]
    assert shares(100, 3, 1) == shares(100, 3, 2) == [50, 25, 25]
    assert (shares(100, 1, 1), shares(100, 0, 0)) == ([100], [])


def test_what_was_begun_since_the_export_goes_on(tmp_path: Path) -> None:
    """By the seconds that were told, as those of the log; the latest watch of a video counts."""
    catalogue = Catalogue(settings={"layouts": {"web": [2, 8]}})
    catalogue.watches[1] = [(50, UNFINISHED | LIKED), (51, UNFINISHED)]
    catalogue.duration_s[[7, 8]] = np.nan, 70
    told = {1: 500, 2: 49, 3: 900, 4: np.nan, 50: 950, 7: 500, 8: 30, 5: 50, 6: 700}
    inputs = catalogue.inputs(
        1, np.arange(10, 30), online=[6, *told], watch_s=[950, *told.values()]
    )
    stage = catalogue.stage(tmp_path)
    # Finished since: 50. Barely begun, done, not known, no duration, 40 s left: 2, 3, 4, 7, 8.
    assert rows_of(page_of(stage, inputs))["Continue watching"] == [6, 5, 1, 51]
    inputs["online_watch_s"][:] = np.nan
    assert rows_of(page_of(stage, inputs))["Continue watching"] == [51]
