"""What simulated users do, checked by counting, and the truth as others use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from tests.simulated import CONFIG, Dataset
from workflow.data import simulator
from workflow.data.simulator import Context, Truth
from workflow.data.simulator_random import generator, row_dot
from workflow.data.simulator_response import log_watch, mean_watch_s, taste_at
from workflow.data.simulator_world import DAY, KINDS, LOG_END
from workflow.errors import DataError, MissingArtifactError


@pytest.fixture(scope="module")
def data(simulated: Dataset) -> Dataset:
    return simulated


def auc(label: Any, score: Any) -> float:
    positives = label.sum()
    below = rankdata(score)[label].sum() - positives * (positives + 1) / 2
    return float(below / (positives * (len(label) - positives)))


# --- what users do -----------------------------------------------------------------------------
def test_truth_gives_the_probabilities_of_the_log(data: Dataset) -> None:
    asked = (data.user, data.video, data.events["timestamp"], data.context)
    np.testing.assert_allclose(
        data.truth.click_probability(*asked), data.hidden["click_probability"], rtol=2e-5
    )
    np.testing.assert_allclose(
        data.truth.expected_watch_s(*asked), data.hidden["expected_watch_s"], rtol=2e-5
    )


def test_clicks_happen_as_often_as_their_probability_says(data: Dataset) -> None:
    chance = data.hidden["click_probability"].astype(np.float64)
    group = np.digitize(chance, np.quantile(chance, np.linspace(0, 1, 21)[1:-1]))
    gap = np.bincount(group, data.clicked - chance)
    spread = np.sqrt(np.bincount(group, chance * (1 - chance)))
    assert abs(gap / spread).max() < 4.5


def test_expected_watch_time_is_the_mean(data: Dataset) -> None:
    watched = data.events["watch_s"][data.clicked].astype(np.float64)
    gap = watched - data.hidden["expected_watch_s"][data.clicked]
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_mean_watch_formula_agrees_with_drawing(data: Dataset) -> None:
    world, one = data.truth.world, np.zeros(1, dtype=np.int64)
    mean = log_watch(world, one, one + 5, one + LOG_END, Context())
    duration = world.videos.duration_s[5]
    noise = generator(1).standard_normal(400_000)
    drawn = np.minimum(np.exp(mean + simulator.WATCH_SPREAD * noise), duration)
    assert mean_watch_s(mean, duration)[0] == pytest.approx(drawn.mean(), rel=0.01)


def test_base_rates_are_those_of_a_video_service(data: Dataset) -> None:
    assert 0.15 < data.clicked.mean() < 0.25
    clicks = np.sort(np.bincount(data.video, data.clicked, minlength=CONFIG.num_videos))[::-1]
    assert 0.58 < clicks[: CONFIG.num_videos // 10].sum() / clicks.sum() < 0.78
    per_user = np.bincount(data.user, minlength=CONFIG.num_users)
    assert np.quantile(per_user, 0.95) > 4 * np.median(per_user)


def test_longer_videos_are_watched_longer_but_less_completely(data: Dataset) -> None:
    kind = data.truth.world.videos.kind[data.video]
    duration = data.truth.world.videos.duration_s[data.video]
    of_kind = [data.clicked & (kind == number) for number in range(len(KINDS))]
    seconds = [data.events["watch_s"][rows].mean() for rows in of_kind]
    part = [(data.events["watch_s"] / duration)[rows].mean() for rows in of_kind]
    assert seconds[0] < seconds[1] < seconds[2]
    assert part[0] > part[1] > part[2]


def test_taste_matters_far_more_than_popularity(data: Dataset) -> None:
    world = data.truth.world
    country = world.users.country[data.user]
    popularity = auc(data.clicked, world.videos.popularity[country, data.video])
    oracle = auc(data.clicked, data.hidden["click_probability"])
    neutral = data.truth.click_probability(data.user, data.video, data.events["timestamp"])
    assert 0.78 < oracle < 0.85
    assert popularity < 0.66
    assert auc(data.clicked, neutral) > popularity + 0.1


def test_tastes_drift(data: Dataset) -> None:
    world, everybody = data.truth.world, np.arange(CONFIG.num_users)
    start, end = (taste_at(world, everybody, everybody * 0 + t) for t in (world.start, LOG_END))
    np.testing.assert_allclose(row_dot(end, end), 1, atol=1e-4)
    assert 0.5 < row_dot(start, end).mean() < 0.97
    late = data.events["timestamp"] > LOG_END - 6 * DAY
    vector, user = world.videos.vector[data.video[late]], data.user[late]
    old, new = (auc(data.clicked[late], row_dot(t[user], vector)) for t in (start, end))
    assert new > old + 0.01


def test_fatigue_and_position_lower_the_chance(data: Dataset) -> None:
    def ask(**changed: Any) -> Any:
        return data.truth.click_probability(3, 5, LOG_END, Context(**changed))

    neutral = ask()
    for worse in ({"position": 5}, {"seen_in_session": 12}, {"repeats": 2}):
        assert ask(**worse) < neutral
    assert ask(repeats=1, watched_before=True) < ask(repeats=1)


# --- Truth as others use it ----------------------------------------------------------------------
def test_truth_broadcasts_users_against_videos(data: Dataset) -> None:
    users, videos = np.arange(4)[:, None], np.arange(700)
    table = data.truth.click_probability(users, videos, LOG_END, Context(device=1))
    assert table.shape == (4, 700)
    assert table[2, 9] == data.truth.click_probability(2, 9, LOG_END, Context(device=1))
    assert data.truth.eligible(users, videos, LOG_END).shape == (4, 700)
    assert data.truth.expected_watch_s(users, videos, LOG_END).min() > 0


def test_truth_works_in_pieces(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (np.arange(50)[:, None], np.arange(40), LOG_END)
    whole = data.truth.click_probability(*asked)
    monkeypatch.setattr(Truth, "_PAIRS_AT_ONCE", 333)
    assert np.array_equal(data.truth.click_probability(*asked), whole)


def test_unknown_id_and_missing_truth_are_named(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no simulated user 17"):
        data.truth.user_rows([17])
    with pytest.raises(DataError, match="no simulated video 99"):
        data.truth.video_rows(np.array([data.truth.world.videos.video_id[0], 99]))
    with pytest.raises(MissingArtifactError, match="no ground truth"):
        Truth.load(tmp_path)
