"""Off-policy estimators and policies against closed forms, enumeration and planted bias."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from models.evaluation import off_policy
from models.evaluation.best_of import chance_of_winning, logged_probability, win_shares
from models.evaluation.eligible import Eligible, Shelves, recently_shown
from models.evaluation.off_policy import Exposures, Target, difference, estimate, weight_summary
from models.metrics import Lists

# Two contexts, three actions. All probabilities are tenths, so that 1,000 exposures per context
# can hold every (action, reward) exactly as often as it is expected: the estimators' means on
# that log are their expectations.
LOGGING = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
TARGET = np.array([[0.1, 0.1, 0.8], [0.6, 0.4, 0.0]])
CLICK = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, 0.7]])
VALUE = float((TARGET * CLICK).sum(axis=1).mean())
WRONG = np.array([[0.9, 0.2, 0.1], [0.0, 1.0, 0.5]])  # a direct model that is far off


def expected_log() -> tuple[Any, Any, Any]:
    """(context, action, reward) of the exact log."""
    rows = []
    for context, action in itertools.product(range(2), range(3)):
        shown = round(1000 * LOGGING[context, action])
        clicked = round(shown * CLICK[context, action])
        rows += [(context, action, 1)] * clicked + [(context, action, 0)] * (shown - clicked)
    context, action, reward = np.array(rows).T
    return context, action, reward.astype(np.float64)


def means(propensity: Any, direct: Any) -> dict[str, float]:
    context, action, reward = expected_log()
    log = Exposures(np.arange(len(reward)), propensity[context, action], reward)
    target = Target(
        TARGET[context, action], direct[context, action], (TARGET * direct).sum(axis=1)[context]
    )
    return {name: value["mean"] for name, value in estimate(log, target).items()}  # type: ignore[misc]


def test_right_propensities_give_the_value_whatever_the_direct_model() -> None:
    got = means(LOGGING, WRONG)
    assert got["ips"] == pytest.approx(VALUE) and got["snips"] == pytest.approx(VALUE)
    assert got["dr"] == pytest.approx(VALUE)
    assert got["direct"] == pytest.approx(float((TARGET * WRONG).sum(axis=1).mean()))
    assert abs(got["direct"] - VALUE) > 0.1


def test_wrong_propensities_are_seen_as_bias() -> None:
    uniform = np.full((2, 3), 1 / 3)
    got = means(uniform, WRONG)
    biased = float((LOGGING * TARGET / uniform * CLICK).sum(axis=1).mean())
    assert got["ips"] == pytest.approx(biased) and abs(biased - VALUE) > 0.1
    assert got["snips"] == pytest.approx(biased / (LOGGING * TARGET / uniform).sum(1).mean())
    assert abs(got["snips"] - VALUE) > 0.02
    assert abs(got["dr"] - VALUE) > 0.1


def test_a_right_direct_model_makes_up_for_wrong_propensities() -> None:
    got = means(np.full((2, 3), 1 / 3), CLICK)
    assert got["dr"] == pytest.approx(VALUE) and got["direct"] == pytest.approx(VALUE)
    assert got["ips"] != pytest.approx(VALUE, abs=0.1)


def random_log(rng: np.random.Generator, users: int, direct: Any) -> tuple[Exposures, Target]:
    """About eight exposures a user; a user's own mood shifts all their rewards."""
    user = rng.integers(0, users, 8 * users)
    mood = rng.normal(0, 0.5, users)[user]
    context = rng.integers(0, 2, len(user))
    action = (rng.random((len(user), 1)) > np.cumsum(LOGGING, axis=1)[context]).sum(axis=1)
    reward = (rng.random(len(user)) < CLICK[context, action]) + mood
    log = Exposures(user, LOGGING[context, action], reward)
    value = (TARGET * direct).sum(axis=1)[context]
    return log, Target(TARGET[context, action], direct[context, action], value)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    held = dict.fromkeys(("ips", "snips", "dr"), 0)
    for seed in range(100):
        log, target = random_log(np.random.default_rng(seed), 200, WRONG)
        got = estimate(log, target)
        for name in held:
            held[name] += off_policy.holds(got[name], VALUE)
    assert all(88 <= count <= 100 for count in held.values()), held


def test_intervals_know_that_a_users_exposures_belong_together() -> None:
    log, _ = random_log(np.random.default_rng(5), 100, CLICK)
    alone = Exposures(np.arange(len(log.user)), log.propensity, log.reward)

    def width(of: Exposures) -> float:
        value = off_policy.logged_value(of)
        return value["high"] - value["low"]  # type: ignore[operator]

    assert width(log) > 1.3 * width(alone)


def test_difference_of_policies_is_paired() -> None:
    log, target = random_log(np.random.default_rng(6), 300, CLICK)
    same = difference(log, target, target)
    assert (same["difference"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    logged = difference(log, target, None)
    gain = VALUE - float((LOGGING * CLICK).sum(axis=1).mean())
    assert logged["low"] < gain < logged["high"]  # type: ignore[operator]
    assert logged["difference"] == pytest.approx(
        estimate(log, target)["dr"]["mean"] - log.reward.mean()  # type: ignore[operator]
    )


def test_weight_summary() -> None:
    log = Exposures(np.arange(4), np.array([0.5, 0.25, 0.1, 1.0]), np.zeros(4))
    target = Target(np.array([0.5, 0.5, 0.3, 0.0]), np.zeros(4), np.zeros(4))
    got: Any = weight_summary(log, target)  # weights 1, 2, 3, 0
    assert got["mean"]["mean"] == 1.5 and got["largest"] == pytest.approx(3)
    assert got["effective"] == pytest.approx(36 / 14)


def test_a_policy_that_the_log_never_shows_has_no_normalised_value() -> None:
    log = Exposures(np.arange(3), np.full(3, 0.5), np.ones(3))
    got = estimate(log, Target(np.zeros(3), np.zeros(3), np.zeros(3)))
    assert got["ips"]["mean"] == 0 and got["snips"]["mean"] is None
    assert not off_policy.holds(got["snips"], 0.0)


# --- best of K -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("eligible", "draws"), [(6, 1), (6, 3), (6, 6), (1, 1), (7, 2)])
def test_chance_of_winning_by_enumeration(eligible: int, draws: int) -> None:
    wins = np.zeros(eligible)
    for drawn in itertools.combinations(range(eligible), draws):
        wins[max(drawn)] += 1
    wins /= wins.sum()
    full = np.full(eligible, eligible)
    got = chance_of_winning(np.arange(eligible), full - 1, full, np.full(eligible, draws))
    assert got == pytest.approx(wins)


def test_counting_ranks_in_a_sample_is_unbiased() -> None:
    """Over all samples of 4 of the 7 others, the mean estimate is the exact probability."""
    scores = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 2.0])
    ties = np.arange(8.0)
    for video in range(8):
        others = np.array([v for v in range(8) if v != video])
        samples = np.array(list(itertools.combinations(others, 4)))
        n = len(samples)
        got = logged_probability(
            np.full(n, scores[video]), np.full(n, ties[video]),
            (scores[samples], ties[samples], np.ones(samples.shape, bool)), np.full(n, 8), 3,
        )  # fmt: skip
        below = (scores[others] < scores[video]).sum()
        exact = chance_of_winning(np.array([below]), *map(np.array, ([7], [8], [3])))
        assert got.mean() == pytest.approx(exact[0])


def test_policies_sum_to_one_and_ineligible_videos_get_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (5, 8)).astype(np.float64)  # many ties
    ties = np.argsort(rng.random((5, 8))).astype(np.float64)
    valid = np.ones((5, 8), bool)
    valid[1, 3:] = valid[2, 1:] = valid[3] = False
    shares = win_shares(scores, ties, valid, 4)
    assert shares.sum(axis=1) == pytest.approx([1, 1, 1, 0, 1])
    assert (shares[~valid] == 0).all() and shares[2, 0] == 1
    for row in (0, 4):  # by enumeration
        wins = np.zeros(8)
        for drawn in itertools.combinations(range(8), 4):
            wins[max(drawn, key=lambda v: (scores[row, v], ties[row, v]))] += 1
        assert shares[row] == pytest.approx(wins / wins.sum())
    none = logged_probability(
        scores[:, 0], ties[:, 0], (scores[:, 1:], ties[:, 1:], valid[:, 1:]), np.zeros(5, int), 4
    )
    assert (none == 0).all()


# --- eligible ------------------------------------------------------------------------------------
def some_eligible(seed: int) -> tuple[Eligible, list[set[int]]]:
    """Two groups over 30 videos, and by loops what may be shown at each of 40 exposures."""
    rng = np.random.default_rng(seed)
    publish = np.append(0, rng.integers(0, 10, 30))
    members = [np.arange(1, 31), np.sort(rng.permutation(30)[:4] + 1)]
    group, time = rng.integers(0, 2, 40), rng.integers(0, 12, 40)
    shown = [set(rng.integers(1, 31, rng.integers(0, 9)).tolist()) for _ in range(40)]
    expected = [
        {v for v in members[g].tolist() if publish[v] <= t} - s
        for g, t, s in zip(group, time, shown, strict=True)
    ]
    owner = np.repeat(np.arange(40), [len(s) for s in shown])
    values = np.array([v for s in shown for v in sorted(s)], np.int64)
    shelves = Shelves.arrange(members, publish)
    recent = Lists.group(owner, values, 40)
    return Eligible(shelves, group, shelves.until(group, time), recent), expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [3, 50])
def test_eligible_videos(seed: int, size: int) -> None:
    eligible, expected = some_eligible(seed)
    assert eligible.counts.tolist() == [len(videos) for videos in expected]
    every = np.broadcast_to(np.arange(1, 31), (40, 30))
    held = eligible.holds(every)
    assert [set(np.flatnonzero(row) + 1) for row in held] == expected
    videos, valid = eligible.sample(np.random.default_rng(seed), size)
    assert videos.shape == valid.shape == (40, size)
    for row, mask, allowed in zip(videos, valid, expected, strict=True):
        drawn = row[mask].tolist()
        assert len(set(drawn)) == len(drawn) == min(size, len(allowed))
        assert set(drawn) <= allowed


@pytest.mark.parametrize("count", [9, 400])  # all places in random order; draws with repeats
def test_samples_of_eligible_videos_are_uniform(count: int) -> None:
    shelves = Shelves.arrange([np.arange(1, count + 1)], np.zeros(count + 1, np.int64))
    n = 20_000
    group = np.zeros(n, np.int64)
    recent = Lists(np.full(n, 2), np.arange(n + 1))
    eligible = Eligible(shelves, group, np.full(n, count), recent)
    videos, valid = eligible.sample(np.random.default_rng(1), 4)
    assert valid.all()
    seen = np.bincount(videos.ravel(), minlength=count + 1)
    assert seen[0] == seen[2] == 0
    mean = 4 * n / (count - 1)
    assert np.abs(np.delete(seen, [0, 2]) - mean).max() < 5 * np.sqrt(mean)


def test_recently_shown_by_loops() -> None:
    rng = np.random.default_rng(3)
    user, time = rng.integers(0, 5, 200), rng.integers(1000, 1300, 200)
    order = np.lexsort((time, user))
    user, time, video = user[order], time[order], rng.integers(1, 9, 200)
    of_user, at = np.arange(-1, 7), np.array([1100, 1000, 1299, 1150, 1310, 2000, 1200, 1201])
    got = recently_shown((user, time, video), of_user, at, 60)
    for row in range(len(at)):
        near = (user == of_user[row]) & (time < at[row]) & (time >= at[row] - 60)
        assert set(got[row]) == set(video[near]) and len(set(got[row])) == len(got[row])
