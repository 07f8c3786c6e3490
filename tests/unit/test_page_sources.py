"""Candidates of several sources: quotas, rules, and what is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.pages import DAY, NOW, VERSION, Catalogue, load

NEAR, TREND, NEW = 2, 4, 8
LIKED = 2


def gathered(
    catalogue: Catalogue, stage: Any, user: int, found: Any, **more: Any
) -> dict[str, Any]:
    inputs = catalogue.inputs(user, found, **more)
    vector = catalogue.rng.normal(size=12).astype(np.float32)
    score = catalogue.candidate_vector[found] @ vector
    inputs |= {"query_vector": vector[None], "candidate_score": score[None]}
    del inputs["ranker_score"], inputs["candidate_source"]
    got = stage.gather(inputs)
    rows = got["candidate_row"][0]
    np.testing.assert_allclose(
        got["candidate_score"][0][rows > 0], catalogue.candidate_vector[rows[rows > 0]] @ vector,
        rtol=1e-5,
    )  # fmt: skip
    return {
        "rows": rows.tolist(),
        "source": dict(zip(rows.tolist(), got["candidate_source"][0].tolist(), strict=True)),
    }


def test_what_gather_looked_up_makes_the_same_page(tmp_path: Path) -> None:
    """Watches online and a cursor included."""
    catalogue = Catalogue.random(3, num_videos=300)
    stage = catalogue.stage(tmp_path)
    asked = [
        catalogue.inputs(user, np.arange(1, 61), online=online, cursor=cursor)
        for user, online, cursor in ((1, [7, 9], None), (2, [], stage_cursor(8, 11)))
    ]
    for inputs in asked:
        vector = catalogue.rng.normal(size=(1, 12)).astype(np.float32)
        score = catalogue.rng.random((1, 60)).astype(np.float32)
        known = inputs | {"query_vector": vector, "candidate_score": score}
        known |= stage.gather(known)
        known["ranker_score"] = catalogue.rng.random(known["candidate_row"].shape, np.float32)
        with_it = stage.run(known)["page"][0, 0].plain()
        del known["looked"]
        assert with_it == stage.run(known)["page"][0, 0].plain() and with_it["rows"]


def stage_cursor(*rows: int) -> str:
    """Of a first answer that showed these."""
    return str(load("cursor").encode(VERSION, 0, np.array(rows)).decode())


def test_sources_are_merged_with_quotas(tmp_path: Path) -> None:
    quotas = {"two_tower": 4, "neighbours": 4, "trending": 2, "fresh": 2}
    catalogue = Catalogue(settings={"quotas": quotas})
    catalogue.watches[1] = [(59, LIKED), (60, LIKED), (58, 0)]  # 58 was no good
    catalogue.neighbour[60] = [20, 21, 22, 1, 0]
    catalogue.neighbour[59] = [59, 30, 31, 32, 20]
    catalogue.trending[0, :4] = [2, 60, 40, 41]
    catalogue.published[[50, 51, 52]] = NOW - np.array([2, 1, 40]) * DAY
    got = gathered(catalogue, catalogue.stage(tmp_path), 1, np.arange(1, 13))
    assert got["rows"] == [1, 2, 3, 4, 20, 21, 30, 31, 40, 51, 50, 5]
    source = got["source"]
    assert source[1] == 1 | NEAR | 1 << 8  # found twice; the quota of neighbours is used up
    assert (source[2], source[3]) == (1 | TREND, 1)
    assert (source[20], source[21], source[30]) == (
        NEAR | 1 << 8 | 1 << 9, NEAR | 1 << 8, NEAR | 1 << 9,
    )  # fmt: skip
    assert (source[40], source[51], source[50]) == (TREND, NEW, NEW)


def test_what_rules_leave_open_is_filled_up(tmp_path: Path) -> None:
    """First from what retrieval found beyond its quota, then from what is popular."""
    quotas = {"two_tower": 4, "neighbours": 0, "trending": 0, "fresh": 4}
    catalogue = Catalogue(settings={"quotas": quotas})
    catalogue.until[[1, 2, 3]] = 0
    catalogue.popular = np.array([[3, 9, 4, 10, 11, 12]], np.int32)
    got = gathered(catalogue, catalogue.stage(tmp_path), 1, np.arange(1, 9))
    assert got["rows"] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert got["source"] == {4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 16, 10: 16, 11: 16}


def test_a_small_catalogue_is_padded(tmp_path: Path) -> None:
    catalogue = Catalogue(num_videos=3)
    got = gathered(catalogue, catalogue.stage(tmp_path), 1, np.array([2, 1]), online=[3])
    assert got["rows"] == [2, 1] + [0] * 48


def test_gathering_leaves_no_trace(tmp_path: Path) -> None:
    catalogue = Catalogue.random(8, 150)
    stage = catalogue.stage(tmp_path)
    first = gathered(catalogue, stage, 3, np.arange(1, 60))
    for user in range(8):
        gathered(catalogue, stage, user, catalogue.rng.permutation(150)[:60] + 1)
    assert gathered(catalogue, stage, 3, np.arange(1, 60)) == first
    assert not stage.sources.bits.any() and not stage.rules.hidden.any()
