"""Intervals against what is known analytically, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.bootstrap import interval, paired_interval, resampled_means


def test_resampled_means_have_the_moments_of_a_mean() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=400)
    means = resampled_means(values, samples=4000)
    assert means.shape == (4000,)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / np.sqrt(400), rel=0.05)


def test_interval_of_a_normal_mean() -> None:
    values = np.random.default_rng(1).normal(5, 2, 2000)
    got = interval(values, samples=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert got["mean"] == pytest.approx(values.mean())
    assert got["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert got["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 10, 500)
    better, worse = shared + 0.1 + rng.normal(0, 0.1, 500), shared
    got = paired_interval(better, worse)
    assert 0 < got["low"] < got["difference"] < got["high"] < 0.2
    assert got["difference"] == pytest.approx(better.mean() - worse.mean())
    alone = interval(better)
    assert alone["high"] - alone["low"] > 20 * (got["high"] - got["low"])


def test_columns_are_resampled_together() -> None:
    values = np.random.default_rng(3).normal(size=(50, 1))
    both = resampled_means(np.hstack([values, 2 * values]), samples=20)
    assert both.shape == (20, 2)
    np.testing.assert_allclose(both[:, 1], 2 * both[:, 0])
    np.testing.assert_allclose(both[:, 0], resampled_means(values[:, 0], samples=20))


def test_seeded() -> None:
    values = np.arange(30.0)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_coverage_of_the_interval() -> None:
    """Of 300 intervals of a skewed mean about 95% hold it; one standard error is 1.3%."""
    rng = np.random.default_rng(4)
    samples = rng.exponential(1.0, (300, 200))
    covered = [bounds["low"] <= 1.0 <= bounds["high"] for bounds in map(interval, samples)]
    assert 0.90 <= np.mean(covered) <= 0.98


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_bounds_surround_the_values(values: list[float]) -> None:
    got = interval(np.array(values), samples=50)
    assert min(values) - 1e-9 <= got["low"] <= got["high"] <= max(values) + 1e-9
