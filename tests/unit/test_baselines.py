"""One suite over every retrieval baseline, on planted data with a known answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.baselines import (
    EASE,
    IALS,
    MAX_EASE_VIDEOS,
    Baseline,
    ItemKNN,
    Popularity,
    candidates,
    too_large,
)
from models.evaluation.tuning import baseline_scorer, best_on_validation
from models.metrics import Lists, top_lists
from models.queries import Queries
from models.watches import Watches, history_matrix

NUM_USERS, NUM_VIDEOS, NUM_CLUSTERS = 60, 40, 4
DAY = 86_400

PERSONAL: dict[str, Callable[[], Baseline]] = {
    "knn": lambda: ItemKNN(10),
    "knn-popular": lambda: ItemKNN(10, saturation=0.3, length_norm=0.5),
    "ease": lambda: EASE(5.0),
    "ials": lambda: IALS(factors=4, regularisation=0.1, confidence=10.0),
}
EVERY = PERSONAL | {
    "popularity": Popularity,
    "popularity-days": lambda: Popularity(days=30),
}


@pytest.fixture(scope="module")
def watches() -> Watches:
    """User u watches most videos v with v % 4 == u % 4, and video 40 nobody."""
    rng = np.random.default_rng(0)
    pairs = [
        (user, video)
        for user in range(1, NUM_USERS + 1)
        for video in range(1, NUM_VIDEOS)
        if video % NUM_CLUSTERS == user % NUM_CLUSTERS and rng.random() < 0.7
    ]
    user, video = np.array(pairs).T
    return Watches(user, video, rng.integers(0, 90 * DAY, len(user)), NUM_USERS, NUM_VIDEOS)


def histories(*rows: list[int]) -> Lists:
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return Lists.group(owner, np.array([v for row in rows for v in row], np.int64), len(rows))


def scores(model: Baseline, *rows: list[int]) -> NDArray[np.float32]:
    return model.scores(history_matrix(histories(*rows), NUM_VIDEOS))


@pytest.mark.parametrize("name", EVERY)
def test_shape_and_type(name: str, watches: Watches) -> None:
    model = EVERY[name]().fit(watches)
    got = scores(model, [1, 5], [], [2])
    assert got.shape == (3, NUM_VIDEOS + 1) and got.dtype == np.float32
    again = scores(model, [1, 5], [], [2])
    np.testing.assert_array_equal(got, again)
    got[:] = -np.inf  # the caller may write into what it gets
    np.testing.assert_array_equal(scores(model, [1, 5], [], [2]), again)


@pytest.mark.parametrize("name", PERSONAL)
def test_the_cluster_is_found(name: str, watches: Watches) -> None:
    """From two watched videos of a cluster, the other seven or eight come first."""
    model = PERSONAL[name]().fit(watches)
    past = histories([1, 5], [6, 2], [3, 39], [4, 8])
    got = top_lists(
        lambda at: model.scores(history_matrix(past, NUM_VIDEOS)[at]), NUM_VIDEOS + 1, past, 7
    )
    for cluster, row in zip((1, 2, 3, 0), got, strict=True):
        assert {int(video) % NUM_CLUSTERS for video in row} == {cluster}, row
    assert NUM_VIDEOS not in got


@pytest.mark.parametrize("name", PERSONAL)
def test_an_empty_history_gets_popularity(name: str, watches: Watches) -> None:
    got = scores(PERSONAL[name]().fit(watches), [], [1])
    np.testing.assert_array_equal(got[0], watches.counts)
    assert not np.array_equal(got[1], watches.counts)


@pytest.mark.parametrize("name", PERSONAL)
def test_only_the_history_counts(name: str, watches: Watches) -> None:
    """A query is answered alike in every batch, whoever else is in it."""
    model = PERSONAL[name]().fit(watches)
    alone = scores(model, [1, 5, 9])[0]
    np.testing.assert_allclose(scores(model, [2], [1, 5, 9])[1], alone, rtol=1e-4, atol=1e-6)


def test_popularity(watches: Watches) -> None:
    got = scores(Popularity().fit(watches), [1], [])
    np.testing.assert_array_equal(got, np.tile(watches.counts, (2, 1)))


def test_popularity_of_the_last_days(watches: Watches) -> None:
    days = 30
    recent = watches.timestamp > watches.timestamp.max() - days * DAY
    assert 0 < recent.sum() < len(recent)
    expected = np.bincount(watches.video_row[recent], minlength=NUM_VIDEOS + 1)
    np.testing.assert_array_equal(scores(Popularity(days).fit(watches), [1])[0], expected)


def test_ease_is_the_closed_form(watches: Watches) -> None:
    """Every column of the weights is a ridge regression on the other videos (Steck, eq. 3)."""
    strength = 7.0
    x = watches.matrix.toarray()[:, 1:NUM_VIDEOS].astype(np.float64)
    got = scores(EASE(strength).fit(watches), *[[video] for video in range(1, NUM_VIDEOS)])
    assert np.isneginf(got[:, [0, NUM_VIDEOS]]).all()  # never watched
    weights = got[:, 1:NUM_VIDEOS]
    for target in range(x.shape[1]):
        others = np.arange(x.shape[1]) != target
        a = x[:, others]
        ridge = np.linalg.solve(a.T @ a + strength * np.eye(a.shape[1]), a.T @ x[:, target])
        np.testing.assert_allclose(weights[others, target], ridge, atol=1e-5)
        assert weights[target, target] == 0


def test_ials_folds_in_the_history(watches: Watches) -> None:
    """The user vector minimises the weighted squared error of Hu et al., eq. 4."""
    model = IALS(factors=6, regularisation=2.0, confidence=5.0).fit(watches)
    items = model._model.item_factors.astype(np.float64)
    history = [3, 7, 11]
    weight = np.ones(NUM_VIDEOS + 1)
    weight[history] = 5.0
    target = np.zeros(NUM_VIDEOS + 1)
    target[history] = 1.0
    left = (items * weight[:, None]).T @ items + 2.0 * np.eye(6)
    user = np.linalg.solve(left, (items * weight[:, None]).T @ target)
    np.testing.assert_allclose(scores(model, history)[0], items @ user, rtol=1e-3, atol=1e-4)


def test_knn_keeps_its_neighbours(watches: Watches) -> None:
    """BM25 of the users who watched each video, and its 3 most similar others."""
    x = watches.matrix.toarray().astype(np.float64)  # users x videos
    length = x.sum(axis=0) / x.sum(axis=0).mean()
    idf = np.log(NUM_VIDEOS + 1) - np.log1p(x.sum(axis=1))
    weight = x * idf[:, None] * 3.0 / (2.0 * (0.4 + 0.6 * length) + 1)
    similar = np.delete((weight.T @ weight)[1], [0, 1])
    got = scores(ItemKNN(3, saturation=2.0, length_norm=0.6).fit(watches), [1])[0]
    others = np.delete(got, [0, 1])
    assert (others > 0).sum() == 3
    np.testing.assert_allclose(np.sort(others)[-3:], np.sort(similar)[-3:], rtol=1e-5)


def test_tuning_prefers_what_finds_the_relevant(watches: Watches) -> None:
    past = histories([1, 5], [2, 6])
    relevant = histories([9, 13, 17], [10, 14, 18])
    valid = Queries({}, relevant, past, np.array([1, 2]))
    weak, strong = Popularity(), ItemKNN(10)
    assert best_on_validation([weak, strong], watches, valid) is strong
    assert best_on_validation([strong, weak], watches, valid) is strong
    scorer = baseline_scorer(strong.fit(watches), valid, NUM_VIDEOS)
    assert scorer(np.array([1])).shape == (1, NUM_VIDEOS + 1)


def test_every_candidate_can_be_told_apart() -> None:
    for name, models in candidates().items():
        assert len({repr(model) for model in models}) == len(models), name
    assert candidates()["ease"][0] is not candidates()["ease"][0]


def test_what_is_not_run_says_why(watches: Watches) -> None:
    assert too_large(watches) == {}
    rows = np.arange(1, MAX_EASE_VIDEOS + 2)
    wide = Watches(rows, rows, rows, len(rows), 2 * MAX_EASE_VIDEOS)
    assert set(too_large(wide)) == {"ease"} and "10,001 watched videos" in too_large(wide)["ease"]
    ones = np.ones(200_000, np.int64)
    deep = Watches(ones, ones, ones, 1, 1)
    assert set(too_large(deep)) == {"item_knn"} and "4e+10 pairs" in too_large(deep)["item_knn"]


def test_tuning_sample_keeps_whole_users(watches: Watches) -> None:
    assert watches.of_some_users(len(watches.user_row)) is watches
    some = watches.of_some_users(len(watches.user_row) // 2)
    assert 0.25 < len(some.user_row) / len(watches.user_row) < 0.75
    kept = np.isin(watches.user_row, some.user_row)
    np.testing.assert_array_equal(watches.video_row[kept], some.video_row)
