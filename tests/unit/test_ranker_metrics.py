"""Ranker metrics as values per user: the mean is the metric, the spread that of resampled users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import metrics
from models.evaluation.bootstrap import resampled_means
from models.evaluation.ranker_metrics import (
    Events,
    Predictions,
    calibration_values,
    ordered_pairs,
    ranker_values,
    reliability,
    smaller_in_both,
)


def planted(seed: int = 0, num_users: int = 150) -> tuple[Events, Predictions]:
    """Users who differ in taste and activity; predictions that know part of it, with ties."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users) * 3 + 5, rng.integers(1, 40, num_users))
    user = rng.permutation(user)
    taste = rng.normal(0, 1, user.max() + 1)[user]
    truth = 1 / (1 + np.exp(-(taste + rng.normal(0, 1, len(user)))))
    label = (rng.random(len(user)) < truth).astype(np.float32)
    p = np.round(truth, 2).astype(np.float32) * 0.9
    watch_s = np.where(label > 0, rng.gamma(2, 30, len(user)), np.nan).astype(np.float32)
    guess = np.round(np.where(np.isfinite(watch_s), watch_s, 50) + rng.normal(0, 40, len(user)))
    return Events(user, label, watch_s), Predictions(p, guess.astype(np.float32))


def metric_of(events: Events, predictions: Predictions) -> dict[str, float]:
    """Every metric over all events, the direct way."""
    label, p, user = events.label, predictions.p, events.user_row
    known = np.isfinite(events.watch_s)
    truth, guess = events.watch_s[known], predictions.watch_s[known]  # type: ignore[index]
    above = truth[:, None] > truth[None, :]
    agree = np.where(guess[:, None] > guess[None, :], 1.0, 0.0)
    agree[guess[:, None] == guess[None, :]] = 0.5
    return {
        "auc": metrics.auc(label, p),
        "per_user_auc": metrics.per_user_auc(label, p, user),
        "log_loss": metrics.log_loss(label, p),
        "ece": metrics.calibration_error(label, p),
        "watch_mae_s": float(np.abs(truth - guess).mean()),
        "xauc": float(agree[above].mean()),
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_is_the_metric(seed: int) -> None:
    events, predictions = planted(seed)
    values = ranker_values(events, predictions)
    expected = metric_of(events, predictions)
    assert {name: v.mean() for name, v in values.items()} == pytest.approx(expected, rel=1e-5)
    assert {len(v) for v in values.values()} == {len(np.unique(events.user_row))}


def test_the_spread_is_that_of_resampled_users() -> None:
    """Against metrics computed anew on 400 resamples of the users."""
    events, predictions = planted(9)
    values = ranker_values(events, predictions)
    users = np.unique(events.user_row)
    rows = [np.flatnonzero(events.user_row == user) for user in users]
    rng = np.random.default_rng(0)
    again: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(400):
        drawn = rng.integers(0, len(users), len(users))
        chosen = np.concatenate([rows[u] for u in drawn])
        # A user drawn twice is two users, which matters within users.
        owner = np.repeat(np.arange(len(drawn)), [len(rows[u]) for u in drawn])
        resample = Events(owner, events.label[chosen], events.watch_s[chosen])
        guess = Predictions(predictions.p[chosen], predictions.watch_s[chosen])  # type: ignore[index]
        for name, value in metric_of(resample, guess).items():
            again[name].append(value)
    for name, value in values.items():
        spread = resampled_means(value, samples=2000).std()
        # Resampling adds bias and spread of its own to an absolute sum like the ECE.
        tolerance = 0.35 if name == "ece" else 0.15
        assert spread == pytest.approx(np.std(again[name]), rel=tolerance), name


def test_pairs_of_models_share_users() -> None:
    """Two models that differ little have a difference much surer than each metric."""
    events, predictions = planted(2)
    noise = np.random.default_rng(0).normal(0, 0.01, len(predictions.p)).astype(np.float32)
    ours = ranker_values(events, predictions)["auc"]
    theirs = ranker_values(events, Predictions(predictions.p + noise))["auc"]
    assert resampled_means(ours - theirs).std() < 0.2 * resampled_means(ours).std()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_counting_pairs(pairs: list[tuple[int, int]]) -> None:
    y, p = np.array(pairs).T
    smaller = [(y < a).astype(int) @ (p < b).astype(int) for a, b in pairs]
    assert smaller_in_both(y, p).tolist() == smaller
    right, compared = ordered_pairs(y.astype(np.float32), p.astype(np.float32))
    for at, (a, b) in enumerate(pairs):
        other = y != a
        agree = np.where(p == b, 0.5, (y > a) == (p > b))
        assert right[at] == agree[other].sum() and compared[at] == other.sum()


def test_perfect_and_reversed_order() -> None:
    truth = np.array([1, 2, 3, 4, np.nan], np.float32)
    events = Events(np.array([1, 1, 2, 2, 3]), np.array([1, 0, 1, 0, 1], np.float32), truth)
    p = np.full(5, 0.5, np.float32)
    for guess, expected in (([1, 2, 3, 4, 0], 1.0), ([4, 3, 2, 1, 9], 0.0), ([1, 1, 1, 1, 1], 0.5)):
        values = ranker_values(events, Predictions(p, np.array(guess, np.float32)))
        assert values["xauc"].mean() == pytest.approx(expected)


def test_calibration_and_reliability() -> None:
    """Predictions that are right on average have no error; shifted ones the shift."""
    p = np.repeat([0.2, 0.6], 500).astype(np.float32)
    label = np.r_[np.arange(500) % 5 == 0, np.arange(500) % 5 < 3].astype(np.float32)
    owner = np.arange(1000) % 50
    assert calibration_values(label, p, owner).mean() == pytest.approx(0, abs=1e-6)
    assert calibration_values(label, p + np.float32(0.1), owner).mean() == pytest.approx(0.1)
    table = reliability(label, p)
    assert sum(row["count"] for row in table) == 1000 and len(table) == 20
    assert table[0]["predicted"] == pytest.approx(0.2)
    assert table[-1]["observed"] == pytest.approx(0.6, abs=0.05)


def test_without_watch_times() -> None:
    events, predictions = planted(1)
    names = set(ranker_values(events, Predictions(predictions.p)))
    assert names == {"auc", "per_user_auc", "log_loss", "ece"}


def test_undefined_metrics_are_left_out() -> None:
    events, predictions = planted(1)
    ones = Events(events.user_row, np.ones_like(events.label), np.ones_like(events.label))
    assert set(ranker_values(ones, predictions)) == {"log_loss", "ece", "watch_mae_s"}
    first = np.unique(events.user_row, return_index=True)[1]
    alone = Events(events.user_row[first], events.label[first], events.watch_s[first])
    got = ranker_values(alone, Predictions(predictions.p[first]))
    assert set(got) == {"auc", "log_loss", "ece"}
