"""Whatever the catalogue and the request: no rule is broken, no video comes twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pages import COUNTRIES, DAY, NOW, RATINGS, Catalogue, check_pages, load


@pytest.mark.parametrize("seed", range(24))
def test_random_pages_keep_all_rules(tmp_path: Path, seed: int) -> None:
    """20,000 of them: tests/bench/page_stage.py."""
    _, found = check_pages(tmp_path, seed, 25)
    assert found == []


def test_the_check_of_random_pages_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a rule, the check finds what it lets through."""
    plain = Catalogue.is_allowed
    monkeypatch.setattr(Catalogue, "is_allowed", lambda self, *a: ~plain(self, *a))
    assert any(
        "not allowed" in one for seed in range(4) for one in check_pages(tmp_path, seed, 10)[1]
    )


@pytest.mark.parametrize("country", [None, "??", *COUNTRIES])
@pytest.mark.parametrize("limit", [None, "??", *RATINGS])
def test_every_video_against_the_plain_rules(
    tmp_path: Path, country: str | None, limit: str | None
) -> None:
    catalogue = Catalogue.random(3, 300)
    stage = catalogue.stage(tmp_path)
    rows = np.arange(301)
    for user in range(catalogue.num_users + 1):
        for moment in (NOW, NOW - 15 * DAY):
            viewer = stage.rules.viewer(user, moment, country, limit)
            np.testing.assert_array_equal(
                stage.rules.allowed(rows, viewer),
                catalogue.is_allowed(rows, user, moment, country, limit),
            )


def test_a_request_can_only_make_the_limit_stricter(tmp_path: Path) -> None:
    catalogue = Catalogue()
    catalogue.limit[1] = 2
    stage = catalogue.stage(tmp_path)
    limits = {text: stage.rules.viewer(1, NOW, None, text).limit for text in (None, *RATINGS, "?")}
    assert limits == {None: 2, "all": 1, "13+": 2, "18+": 2, "?": 1}


@pytest.mark.parametrize(("unknown", "limit"), [(1, 1), (3, 3)])
def test_an_unknown_limit_is_what_the_settings_say(
    tmp_path: Path, unknown: int, limit: int
) -> None:
    catalogue = Catalogue(settings={"unknown_limit": unknown})
    catalogue.limit[:] = 0
    stage = catalogue.stage(tmp_path)
    assert stage.rules.viewer(1, NOW, None, None).limit == limit


def test_ratings_that_are_numbers(tmp_path: Path) -> None:
    stage = Catalogue(settings={"ratings": [0, 12, 16]}).stage(tmp_path)
    limits = {
        text: stage.rules.limit(text) for text in ("-5", "0", "11", "12", "15", "99", "adult")
    }
    assert limits == {"-5": 0, "0": 1, "11": 1, "12": 2, "15": 2, "99": 3, "adult": 1}


def test_cursors_say_what_was_shown() -> None:
    cursor = load("cursor")
    rng = np.random.default_rng(0)
    for some in (rng.permutation(1_000_000)[:800], [7], [], [2**31 - 1], range(1, 9)):
        rows = np.array(list(some), np.int32)
        version, page, shown = cursor.decode(cursor.encode(1_800_000_000, 3, rows).decode())
        assert (version, page) == (1_800_000_000, 4)
        np.testing.assert_array_equal(shown, np.sort(rows))


@pytest.mark.parametrize(
    "text", ["", "x", "AAAA", "ÄÖ", "A" * 300_000, "////", "AAAAAAAAAAAAAAAAAAAAAA=="]
)
def test_foreign_cursors_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cursor is not one of this server"):
        load("cursor").decode(text)
