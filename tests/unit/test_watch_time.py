"""Watch time free of duration: planted interests come back, durations do not."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from models.watch_groups import MAX_GROUPS, MIN_WATCHES_PER_GROUP, NUM_BINS, DurationGroups
from models.watch_time import WatchTime
from tests.bench.watch_heads import HEADS, OrdinalInGroups
from workflow.errors import MissingArtifactError, TrainingError

NAN = np.float32(np.nan)


def planted(count: int, interest_weight: float, seed: int = 0) -> tuple[Any, Any, Any]:
    """(seconds, durations, interest): longer videos are watched longer, by interest or chance."""
    rng = np.random.default_rng(seed)
    duration = rng.lognormal(6, 1.5, count).astype(np.float32)
    interest = rng.standard_normal(count)
    endless = 5 * duration**0.66 * np.exp(interest_weight * interest)
    chance = np.exp((1 - interest_weight) * rng.standard_normal(count))
    return np.minimum(duration, endless * chance).astype(np.float32), duration, interest


def logit(quantile: Any) -> Any:
    q = np.clip(np.asarray(quantile, np.float32), 1e-6, 1 - 1e-6)
    return np.log(q / (1 - q))[:, None]


def train(head: WatchTime, watch_s: Any, duration_s: Any, steps: int = 300) -> Callable[..., Any]:
    """Outputs that are linear in log duration and its square, trained with the head's loss."""

    def inputs(duration: Any) -> Any:
        x = (np.log(duration) - 6) / 1.5
        return tf.constant(np.stack([np.ones_like(x), x, x**2], axis=1), tf.float32)

    weights, features = tf.Variable(tf.zeros([3, head.width])), inputs(duration_s)
    optimizer = tf.keras.optimizers.Adam(0.05)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = head.loss(features @ weights, watch_s, duration_s, tf.ones_like(watch_s))
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    optimizer.build([weights])
    for _ in range(steps):
        step()
    return lambda duration: (inputs(duration) @ weights).numpy()


def test_what_depends_on_duration_alone_is_not_relevance() -> None:
    watch, duration, _ = planted(20_000, interest_weight=0.0)
    head = WatchTime.fit(watch, duration)
    outputs = train(head, watch, duration)
    seen = np.exp(np.linspace(3, 9, 50)).astype(np.float32)
    seconds, relevance = head.decode(outputs(seen), seen)
    assert np.abs(relevance - 0.5).max() < 0.03
    assert seconds[-1] > 30 * seconds[0]  # while seconds still grow with the duration
    medians = np.minimum(5 * seen**0.66, seen)
    np.testing.assert_allclose(seconds, medians, rtol=0.25)


def test_the_quantile_is_the_interest() -> None:
    watch, duration, interest = planted(20_000, interest_weight=1.0)
    quantile = WatchTime.fit(watch, duration).quantile(watch, duration).numpy()
    cut = watch >= duration  # nothing tells complete watches apart
    assert cut.mean() > 0.1
    assert spearmanr(quantile[~cut], interest[~cut])[0] > 0.98
    assert spearmanr(watch[~cut], interest[~cut])[0] < 0.8
    assert quantile[cut].min() > 0.6
    assert abs(spearmanr(quantile, duration)[0]) < 0.03


@pytest.mark.parametrize("interest_weight", [0.0, 0.5])
def test_each_group_has_the_same_mean_relevance(interest_weight: float) -> None:
    """Whatever its share of complete watches: a tenth of long videos, half of short ones."""
    watch, duration, _ = planted(40_000, interest_weight)
    head = WatchTime.fit(watch, duration)
    quantile = head.quantile(watch, duration).numpy()
    group = np.searchsorted(head.groups.edges, duration, side="right")
    means = [quantile[group == i].mean() for i in range(len(head.groups.edges) + 1)]
    complete = [(watch >= duration)[group == i].mean() for i in range(len(means))]
    assert len(means) == MAX_GROUPS and max(complete) - min(complete) > 0.2
    np.testing.assert_allclose(means, 0.5, atol=0.02)


def test_quantiles_by_brute_force() -> None:
    """One duration: the rank among all watches, equal ones sharing the middle of their ranks."""
    rng = np.random.default_rng(1)
    watch = np.minimum(rng.integers(0, 40, 3_000), 30).astype(np.float32)
    watch[:600] = 0
    head = WatchTime.fit(watch, np.full(3_000, 30.0))
    assert head.groups.tables.shape == (2, NUM_BINS + 1) and len(head.groups.edges) == 0
    quantile = head.quantile(watch, tf.fill([3_000], 30.0)).numpy()
    expected = (rankdata(watch) - 0.5) / len(watch)
    np.testing.assert_allclose(quantile, expected, atol=1.01 / NUM_BINS)
    assert len(np.unique(quantile)) == 31


def test_seconds_come_back() -> None:
    watch, duration, _ = planted(20_000, interest_weight=0.5)
    head = WatchTime.fit(watch, duration)
    quantile = head.quantile(watch, duration).numpy()
    seconds, relevance = head.decode(logit(quantile), duration)
    np.testing.assert_allclose(relevance, quantile, atol=1e-4)
    inner = (quantile > 0.02) & (quantile < 0.98)
    np.testing.assert_allclose(seconds[inner], watch[inner], rtol=1e-2)
    assert (seconds <= duration * (1 + 1e-6)).all()


def test_more_output_is_more_of_both() -> None:
    watch, duration, _ = planted(5_000, interest_weight=0.5)
    head = WatchTime.fit(watch, duration)
    outputs = np.linspace(-8, 8, 200, dtype=np.float32)[:, None]
    for length in (1.0, *np.quantile(duration, [0, 0.3, 1]), 1e6, NAN):
        seconds, relevance = head.decode(outputs, np.full(200, length, np.float32))
        assert (np.diff(seconds) >= 0).all() and (np.diff(relevance) > 0).all()
        assert seconds[-1] > seconds[0] >= 0


def test_groups_have_equal_frequency() -> None:
    watch, duration, _ = planted(MIN_WATCHES_PER_GROUP * 8, interest_weight=0.5)
    edges = WatchTime.fit(watch, duration).groups.edges
    counts = np.bincount(np.searchsorted(edges, duration, side="right"))
    assert len(counts) == 8 and counts.min() > 0.98 * MIN_WATCHES_PER_GROUP
    few = [30.0] * 900 + [60.0] * 20 + [90.0] * 900
    groups = DurationGroups.fit(np.arange(len(few)) % 30, few)
    assert len(groups.tables) == len(groups.edges) + 2 and np.isfinite(groups.tables).all()


def test_unknown_durations() -> None:
    """They are compared with each other, or with all watches where they are few."""
    watch, duration, _ = planted(4_000, interest_weight=0.5)
    duration[:1_000], watch[:1_000] = NAN, np.arange(1_000)
    head = WatchTime.fit(watch, duration)
    got = head.quantile(tf.constant([250.0, 750.0, 5_000.0]), tf.constant([NAN, 0.0, -1.0]))
    np.testing.assert_allclose(got, [0.25, 0.75, 1.0], atol=0.01)
    few = WatchTime.fit(watch[900:], duration[900:])
    np.testing.assert_allclose(
        few.groups.thresholds(np.array([NAN]))[0],
        np.quantile(watch[900:], np.linspace(0, 1, NUM_BINS + 1)),
        rtol=1e-4,
    )


def test_no_duration_is_known() -> None:
    watch = np.arange(1_000, dtype=np.float32)
    head = WatchTime.fit(watch, np.full(1_000, NAN))
    for unknown in (NAN, 60.0, 0.0):  # a new video may have one: it has no group
        durations = np.full(1_000, unknown, np.float32)
        quantile = head.quantile(watch, durations).numpy()
        np.testing.assert_allclose(quantile, (watch + 0.5) / 1_000, atol=1e-3)
        np.testing.assert_allclose(head.decode(logit(quantile), durations)[0], watch, atol=1)


def test_missing_watch_times_are_left_out() -> None:
    watch, duration, _ = planted(2_000, interest_weight=0.5)
    with_gaps = np.where(np.arange(2_000) % 2 == 0, watch, NAN)
    got, expected = WatchTime.fit(with_gaps, duration), WatchTime.fit(watch[::2], duration[::2])
    np.testing.assert_array_equal(got.groups.tables, expected.groups.tables)
    with pytest.raises(TrainingError, match=r"no watch time was measured.*Found: 2 watches"):
        WatchTime.fit([NAN, NAN], [60.0, 60.0])


def test_loss_counts_measured_watches_only() -> None:
    head = WatchTime.fit(np.arange(1_000), np.full(1_000, 1_000.0))
    watch = tf.constant([250.0, 750.0, np.nan, 400.0, np.inf])
    duration = tf.constant([1_000.0] * 5)
    watched = tf.constant([1.0, 1.0, 1.0, 0.0, 1.0])
    outputs = tf.Variable([[0.0], [1.0], [2.0], [3.0], [4.0]])
    with tf.GradientTape() as tape:
        loss = head.loss(outputs, watch, duration, watched)
    q, p = np.array([0.25, 0.75]), 1 / (1 + np.exp([0.0, -1.0]))
    assert float(loss) == pytest.approx((2 * (p - q) ** 2).mean(), abs=1e-3)
    gradient = tape.gradient(loss, outputs).numpy()[:, 0]
    np.testing.assert_allclose(gradient, [*(2 * (p - q) * p * (1 - p)), 0, 0, 0], atol=1e-3)
    nothing = head.loss(outputs, watch, duration, tf.zeros(5))
    assert float(nothing) == 0.0


def test_statistics_survive_the_disk_without_pickle(tmp_path: Path) -> None:
    watch, duration, _ = planted(3_000, interest_weight=0.5)
    head, path = WatchTime.fit(watch, duration), tmp_path / "run" / "ranker" / "watch_time.npz"
    path.parent.mkdir(parents=True)
    head.save(path)
    again = WatchTime.load(path)
    for name in ("edges", "tables"):
        ours, theirs = getattr(head.groups, name), getattr(again.groups, name)
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)
    for name in zipfile.ZipFile(path).namelist():
        assert zipfile.ZipFile(path).read(name)[:6] == b"\x93NUMPY"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MissingArtifactError, match="damaged or missing"):
        WatchTime.load(path)
    with pytest.raises(MissingArtifactError, match="damaged or missing"):
        WatchTime.load(tmp_path / "a" / "b" / "absent.npz")


# --- the targets it is compared with (tests/bench/watch_time.py) ---------------------------------
@pytest.mark.parametrize("name", [name for name in HEADS if "d2q" not in name])
def test_compared_targets_find_their_optimum(name: str) -> None:
    """One constant output for equal videos: the mean, or the median, of what was watched."""
    rng = np.random.default_rng(5)
    watch = np.minimum(rng.lognormal(4, 1, 4_000), 200).astype(np.float32)
    duration = np.full(4_000, 200, np.float32)
    head = HEADS[name].fit(watch, duration)
    output = tf.Variable(tf.zeros([1, head.width]))
    optimizer = tf.keras.optimizers.Adam(0.05)
    optimizer.build([output])

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            repeated = tf.repeat(output, len(watch), axis=0)
            loss = head.loss(repeated, watch, duration, tf.ones_like(watch))
        optimizer.apply_gradients([(tape.gradient(loss, output), output)])

    for _ in range(150):
        step()
    expected = {
        "regression": np.expm1(np.log1p(watch).mean()),
        "weighted_logistic": watch.mean(),
    }
    seconds, relevance = head.decode(output.numpy(), duration[:1])
    assert seconds[0] == pytest.approx(expected.get(name, np.median(watch)), rel=0.02)
    assert name in expected or relevance[0] == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.floats(-30, 30, width=32), min_size=NUM_BINS - 1, max_size=NUM_BINS - 1))
def test_ordinal_thresholds_are_passed_less_and_less(outputs: list[float]) -> None:
    head = OrdinalInGroups(ORDINARY.groups)
    passed = head.passed(np.array([outputs], np.float32))[0]
    assert passed[0] == 1 and passed[-1] == 0 and (np.diff(passed) <= 0).all()
    seconds, relevance = head.decode(np.array([outputs], np.float32), np.float32([300]))
    assert 0 <= seconds[0] <= 300 and 0 < relevance[0] < 1


WATCH, DURATION, _INTEREST = planted(3_000, interest_weight=0.5)
ORDINARY = WatchTime.fit(WATCH, DURATION)
FITTED = [
    ORDINARY,
    WatchTime.fit(WATCH, np.full(3_000, NAN)),
    WatchTime.fit(np.minimum(WATCH, 60), np.full(3_000, 60.0)),
]
ROWS = st.lists(
    st.tuples(
        st.floats(-200, 200, width=32),
        st.one_of(
            st.floats(0, 1e6, width=32),
            st.sampled_from([float("nan"), 0.0, -1.0, 60.0, *map(float, ORDINARY.groups.edges)]),
        ),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(st.sampled_from(FITTED), ROWS)
def test_numpy_decodes_as_tensorflow(head: WatchTime, rows: list[tuple[float, float]]) -> None:
    outputs, duration = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    seconds, relevance = head.decode(outputs[:, None], duration)
    assert seconds.dtype == relevance.dtype == np.float32
    np.testing.assert_allclose(relevance, head.relevance(outputs[:, None]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        seconds, head.watch_s(outputs[:, None], duration), rtol=1e-4, atol=1e-4
    )
