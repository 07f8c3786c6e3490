"""Calibration and score weights recover planted truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from models.scoring import Platt, Scoring, fit_platt, fit_spread, fit_weights
from workflow.config import ScoreWeights

RNG = np.random.default_rng


def test_platt_recovers_scale_and_shift() -> None:
    rng = RNG(0)
    logit = rng.normal(0, 2, 50_000)
    p = 1 / (1 + np.exp(-(0.6 * logit - 0.8)))
    found = fit_platt(logit.astype(np.float32), rng.random(50_000) < p)
    assert found.scale == pytest.approx(0.6, abs=0.03)
    assert found.shift == pytest.approx(-0.8, abs=0.05)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_platt_of_one_class_changes_nothing(label: float) -> None:
    assert fit_platt(np.array([1.0, 2.0]), np.full(2, label)) == Platt()
    assert fit_platt(np.zeros(0), np.zeros(0)) == Platt()


def test_platt_never_turns_the_order_round() -> None:
    logit = np.linspace(-3, 3, 1000)
    assert fit_platt(logit, logit < 0).scale == pytest.approx(0, abs=1e-6)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("centre", [0.0, -2.0])
def test_spread_is_learned_and_the_mean_kept(centre: float) -> None:
    """A model right on average but too sure, judged in days when more is liked than usual."""
    rng = RNG(3)
    right = rng.normal(centre, 1, 50_000)
    shift = brentq(lambda by: sigmoid(1.5 * right + by).mean() - sigmoid(right).mean(), -9, 9)
    sure = 1.5 * right + shift
    liked = rng.random(50_000) < sigmoid(right + 0.3)
    found = fit_spread(sure.astype(np.float32), liked)
    assert found.scale == pytest.approx(2 / 3, abs=0.03)
    assert found(sure) == pytest.approx(right, abs=0.15)
    assert (fit_platt(sure, liked)(sure) - right).mean() == pytest.approx(0.3, abs=0.05)


def test_spread_of_one_class_changes_nothing() -> None:
    assert fit_spread(np.array([1.0, 2.0]), np.ones(2)) == Platt()
    assert fit_spread(np.zeros(0), np.zeros(0)) == Platt()


def test_spread_of_logits_that_say_nothing() -> None:
    logit = np.linspace(-3, 3, 1000)
    found = fit_spread(logit, logit < 0)
    assert sigmoid(found(logit)) == pytest.approx(np.full(1000, 0.5), abs=1e-3)


def lists(truth: tuple[float, ...], count: int = 4000) -> tuple[np.ndarray, ...]:
    """Terms on different scales, and one watch per list drawn by the true weights."""
    rng = RNG(1)
    terms = rng.normal(0, [0.1, 2.0, 1.0, 1.0], (count, 10, 4))
    score = terms @ np.array(truth) + rng.gumbel(size=(count, 10))
    gains = np.zeros((count, 10))
    gains[np.arange(count), score.argmax(axis=1)] = 1
    return terms, gains, np.ones((count, 10), bool)


def test_weights_are_recovered() -> None:
    found = fit_weights(*lists((5.0, 0.5, 0.0, 1.0)))
    assert found.retrieval == pytest.approx(5.0, abs=0.7)
    assert found.watch == pytest.approx(0.5, abs=0.05)
    assert found.label == pytest.approx(0.0, abs=0.08)
    assert found.watch_time == pytest.approx(1.0, abs=0.1)


def test_a_harmful_term_gets_no_weight() -> None:
    assert fit_weights(*lists((0.0, 0.5, -1.0, 0.0))).label == 0.0


def test_absent_candidates_and_constant_terms_do_not_count() -> None:
    terms, gains, present = lists((0.0, 0.5, 0.0, 0.0))
    terms[..., 3] = 0.0
    expected = fit_weights(terms, gains, present)
    more = np.concatenate([terms, np.full((len(terms), 3, 4), 1e3)], axis=1)
    padded = [np.concatenate([x, np.zeros((len(x), 3), x.dtype)], axis=1) for x in (gains, present)]
    found = fit_weights(more, *padded)
    assert found.watch_time == 0.0
    assert found.watch == pytest.approx(expected.watch, rel=1e-3)


def test_gains_decide_between_terms() -> None:
    """Two candidates are watched; the one that is worth more is the one that term 2 prefers."""
    rng = RNG(2)
    terms = rng.normal(size=(2000, 8, 4)) * [1, 1, 1, 0]
    gains = np.zeros((2000, 8))
    rows = np.arange(2000)
    gains[rows, terms[..., 1].argmax(axis=1)] = 1
    low = fit_weights(terms, gains, gains >= 0)
    gains[rows, terms[..., 2].argmax(axis=1)] += 10
    high = fit_weights(terms, gains, gains >= 0)
    assert low.label < low.watch and high.label > high.watch


def test_nothing_watched_keeps_the_order_of_retrieval() -> None:
    found = fit_weights(np.ones((3, 2, 4)), np.zeros((3, 2)), np.ones((3, 2), bool))
    assert found == ScoreWeights(retrieval=1.0)


def test_saved_and_loaded(tmp_path: object) -> None:
    path = tmp_path / "scoring.json"  # type: ignore[operator]
    scoring = Scoring(Platt(0.5, 0.1), Platt(2.0, -1.0), ScoreWeights(watch=1.5, label=0.25))
    scoring.save(path)
    assert Scoring.load(path) == scoring
