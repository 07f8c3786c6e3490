"""Answers of the page stage: refusals, batches, scrolling, records and tensors."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages import NOW, VERSION, Catalogue, load, page_of


# --- statuses and refusals -----------------------------------------------------------------------
def test_nothing_left_after_the_rules_is_said(tmp_path: Path) -> None:
    catalogue = Catalogue()
    catalogue.until[:] = NOW
    page = page_of(catalogue.stage(tmp_path), catalogue.inputs(0, np.arange(1, 20), status=1))
    assert (page.status, page.sizes, page.cursor, len(page.rows)) == (5, [], b"", 0)


@pytest.mark.parametrize("status", [1, 2, 4])
def test_what_is_known_of_the_user_goes_on(tmp_path: Path, status: int) -> None:
    catalogue = Catalogue()
    inputs = catalogue.inputs(0, np.arange(1, 50), status=status)
    assert page_of(catalogue.stage(tmp_path), inputs).status == status


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("user_row", 99, "user_row or watched_until is outside"),
        ("watched_until", 1, "user_row or watched_until is outside"),
        ("online_row", 61, "online_row is outside"),
        ("candidate_row", -1, "candidate_row is outside"),
        ("cursor", b"no", "cursor is not one of this server"),
    ],
)
def test_bad_requests_are_refused_alone(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    catalogue = Catalogue()
    stage = catalogue.stage(tmp_path)
    good = catalogue.inputs(0, np.arange(1, 30), cursor="")
    bad = {k: v if v is None else v.copy() for k, v in good.items()}
    bad[name][0, 0] = value
    both = {k: None if v is None else np.concatenate([v, bad[k]]) for k, v in good.items()}
    refused = stage.check(both, [1, 1])
    assert list(refused) == [1] and message in refused[1]
    answer = stage.run(both)  # the other one is answered as if alone
    assert answer["page"][0, 0].plain() == page_of(stage, good).plain()


# --- stability -----------------------------------------------------------------------------------
def test_the_page_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    catalogue = Catalogue.random(4, 300, explore_slots=2)
    stage = catalogue.stage(tmp_path)
    rng = np.random.default_rng(0)
    requests = [catalogue.inputs(u, rng.integers(0, 301, 60)) for u in range(12)]
    joined = {
        name: None if value is None else np.concatenate([one[name] for one in requests])
        for name, value in requests[0].items()
    }
    together = stage.run(joined)["page"][:, 0]
    assert [p.plain() for p in together] == [page_of(stage, one).plain() for one in requests]


def test_a_new_video_that_nobody_shows_changes_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue(num_videos=300)
    stage = catalogue.stage(tmp_path)
    before = page_of(stage, catalogue.inputs(0, np.arange(1, 101)))
    after = page_of(stage, catalogue.inputs(0, np.arange(1, 102)))
    assert (before.rows == after.rows).mean() > 0.9


# --- scrolling -----------------------------------------------------------------------------------
def test_scrolling_shows_everything_once(tmp_path: Path) -> None:
    catalogue = Catalogue(num_videos=100)
    stage = catalogue.stage(tmp_path)
    cursor, seen, pages = None, list[int](), 0
    while cursor is None or cursor:
        inputs = catalogue.inputs(0, np.arange(1, 41), cursor=cursor)
        page = page_of(stage, inputs)
        seen += page.rows.tolist()
        cursor, pages = page.cursor.decode(), pages + 1
    assert Counter(seen) == Counter(range(1, 101))
    assert pages == 7  # of 16 videos; the last one has the 4 that are left


def test_what_was_watched_while_scrolling_does_not_repeat(tmp_path: Path) -> None:
    catalogue = Catalogue(num_videos=100)
    stage = catalogue.stage(tmp_path)
    first = page_of(stage, catalogue.inputs(0, np.arange(1, 41)))
    inputs = catalogue.inputs(0, np.arange(1, 41), cursor=first.cursor.decode(), online=[33, 60])
    second = page_of(stage, inputs)
    assert not {33, 60, *first.rows.tolist()} & set(second.rows.tolist())
    assert not set(second.kinds) & {b"continue", b"top", b"because"}


def test_a_cursor_of_another_bundle_begins_anew(tmp_path: Path) -> None:
    catalogue = Catalogue(num_videos=100)
    stage = catalogue.stage(tmp_path)
    cursor = load("cursor").encode(VERSION + 1, 0, np.array([1, 2])).decode()
    page = page_of(stage, catalogue.inputs(0, np.arange(1, 41), cursor=cursor))
    assert page.status == 6 and page.kinds[0] == b"top" and 1 in page.rows


# --- records -------------------------------------------------------------------------------------
def test_a_record_makes_the_same_page_again(tmp_path: Path) -> None:
    catalogue = Catalogue.random(6, 300, explore_slots=2)
    stage = catalogue.stage(tmp_path)
    rng = np.random.default_rng(1)
    module = load("record")
    for user in range(15):
        inputs = catalogue.inputs(
            user, rng.integers(0, 301, 70), score=rng.normal(size=70), source=[1, 8] * 35,
            online=[5, 9], watch_s=[500, np.nan], device="tv", country="JP",
        )  # fmt: skip
        inputs["want_record"] = np.array([[1]], np.int32)
        answer = stage.run(inputs)
        text = answer["record"][0, 0]
        version, request, page = module.decode(text)
        assert version == VERSION and json.loads(text)["page"] == page
        again = stage.replay(request)
        assert again.plain() == page == answer["page"][0, 0].plain()
        changed = request | {"ranker_score": request["ranker_score"][::-1]}
        assert stage.replay(changed).plain() != page


def test_without_being_asked_there_is_no_record(tmp_path: Path) -> None:
    catalogue = Catalogue()
    answer = catalogue.stage(tmp_path).run(catalogue.inputs(0, [1, 2, 3]))
    assert answer["record"].tolist() == [[b""]]


@pytest.mark.parametrize("text", [b"", b"{}", b'{"format": 1}', b"[1]", b'{"format": 2}'])
def test_what_is_no_record_is_said(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a page's log record"):
        load("record").decode(text)


# --- tensors -------------------------------------------------------------------------------------
def test_pages_as_tensors(tmp_path: Path) -> None:
    catalogue = Catalogue(settings={"layouts": {"web": [2, 3]}, "diversity": "none"})
    catalogue.popular[:] = 0
    stage = catalogue.stage(tmp_path)
    both = [catalogue.inputs(0, np.arange(1, 7)), catalogue.inputs(1, [9, 8, 7, 0, 0, 0])]
    joined = {
        name: None if value is None else np.concatenate([one[name] for one in both])
        for name, value in both[0].items()
    }
    answer = stage.finish(stage.run(joined))
    assert answer["row_title"].tolist() == [[b"Top picks", b"More for you"], [b"Top picks", b""]]
    assert answer["row_size"].tolist() == [[3, 3], [3, 0]]
    assert answer["video_id"].tolist() == [
        [1001, 1002, 1003, 1004, 1005, 1006], [1009, 1008, 1007, -1, -1, -1],
    ]  # fmt: skip
    assert np.isnan(answer["score"][1, 3:]).all() and not np.isnan(answer["score"][0]).any()
    assert answer["status"].tolist() == [[0], [3]]
    assert answer["next_cursor"][0, 0] and not answer["next_cursor"][1, 0]
