"""New videos get places by chance, as often as their propensity says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.pages import DAY, NOW, Catalogue, page_of

NEW = 8


def explored(stage: Any, catalogue: Catalogue, user: int, time: int = NOW) -> Any:
    source = np.where(np.arange(1, 41) > 20, NEW, 1)  # half of the candidates are new
    return page_of(stage, catalogue.inputs(user, np.arange(1, 41), source=source, time=time))


def test_new_videos_get_places_as_often_as_their_propensity_says(tmp_path: Path) -> None:
    catalogue = Catalogue(
        num_users=400,
        settings={"layouts": {"web": [2, 9]}, "explore_slots": 2, "diversity": "none"},
    )
    stage = catalogue.stage(tmp_path)
    expected, counts = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    pages = 0
    for user in range(400):
        for day in range(5):
            page = explored(stage, catalogue, user, NOW + day * DAY)
            assert page.titles == [b"Top picks", b"New releases"]
            new = page.rows[9:]
            drawn = np.flatnonzero(page.sources[9:] & 64)
            assert drawn.tolist() == [3, 7]
            kept = np.delete(new, drawn).tolist()
            assert kept == list(range(21, 28))  # the best keep their order
            assert page.propensities[9:][drawn].tolist() == [np.float32(1 / 13), np.float32(1 / 12)]
            assert (np.delete(page.propensities, 9 + drawn) == 1).all()
            first, second = int(new[3]), int(new[7])
            counts[3, first] += 1
            counts[7, second] += 1
            for row in set(range(28, 41)):
                expected[3, row] += 1 / 13
                if row != first:
                    expected[7, row] += 1 / 12
            pages += 1
    assert set(counts) == set(expected)
    chi2 = sum((counts[key] - expected[key]) ** 2 / expected[key] for key in expected)
    assert chi2 < 60  # 24 degrees of freedom; the seed is fixed, so this is no matter of luck
    assert pages == 2000


def test_exploration_is_the_same_all_day(tmp_path: Path) -> None:
    catalogue = Catalogue(settings={"layouts": {"web": [2, 6]}, "explore_slots": 2})
    stage = catalogue.stage(tmp_path)
    days = [explored(stage, catalogue, 1, NOW + hour * 3600) for hour in (0, 5, 23)]
    assert len({tuple(page.rows.tolist()) for page in days}) == 1
    others = {tuple(explored(stage, catalogue, 1, NOW + d * DAY).rows.tolist()) for d in range(9)}
    assert len(others) > 5
