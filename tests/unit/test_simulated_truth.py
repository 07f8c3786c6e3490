"""The truth of simulated exposures, and off-policy estimates against it over many logs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.evaluation.eligible import Eligible, recently_shown
from models.evaluation.off_policy_study import Predicted, Study, coverage
from models.evaluation.simulated import Simulated
from models.metrics import Float64, Int64
from workflow.config import load_config
from workflow.console import Output
from workflow.frames import read_frame
from workflow.job import Job
from workflow.pipeline import run_stages
from workflow.run import Run

SIZES = ["sim.num_users=2000", "sim.num_videos=500", "sim.num_events=30000", "sim.seed=4"]
LOGS = 20


class Logged:
    """The exposures of 300 users late in a simulated log, and what may be shown at each."""

    def __init__(self, run: Run) -> None:
        files = sorted((run.data / "events").glob("*.parquet"))
        events = read_frame(files[0])
        events = events[events["user_row"] <= 300]
        late = events[events["timestamp"] > events["timestamp"].quantile(0.5)]
        pointers = ("user_row", "video_row", "timestamp")
        self.user, self.video, self.time = (late[n].to_numpy(np.int64) for n in pointers)
        self.propensity = late["propensity"].to_numpy(np.float64)
        past = events["user_row"], events["timestamp"], events["video_row"]
        log = tuple(column.to_numpy(np.int64) for column in past)
        self.service = Simulated(run, self.user, self.video, self.time)
        shelves, group, until = self.service.shelves()
        recent = recently_shown(log, self.user, self.time, 1800)  # type: ignore[arg-type]
        self.eligible = Eligible(shelves, group, shelves.until(group, until), recent)
        watched = events[events["watched"]]["video_row"]
        self.popularity = np.bincount(watched, minlength=501).astype(np.float64)

    def study(self) -> Study:
        """A "ranker" that knows the truth but for noise, and is wrong about its level."""
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 0.3, 501)

        def predict(videos: Int64) -> Predicted:
            click = self.service.rewards(videos)["click"]
            return {"score": click + noise[videos], "click": 0.5 * click, "watch_s": 50 * click}

        return Study(self.eligible, predict, self.popularity, seed=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = Run(tmp_path_factory.mktemp("runs") / "sim")
    run_stages(Job(folder, load_config("sim", None, SIZES)), Output(True), ("validate",))
    return folder


@pytest.fixture(scope="module")
def logged(run: Run) -> Logged:
    return Logged(run)


def test_truth_of_logged_videos_is_what_the_simulator_wrote(run: Run, logged: Logged) -> None:
    """Repeats and earlier watches are counted again here, so equal numbers say they are right."""
    got = logged.service.rewards(logged.video[:, None])
    keys = ["user_id", "video_id", "timestamp"]
    visible = read_frame(run.source / "events" / "part-00000.parquet", columns=keys)
    hidden = read_frame(run.source / "truth" / "events" / "part-00000.parquet")
    table = visible.join(hidden).drop_duplicates(keys).set_index(keys)
    users = read_frame(run.data / "users.parquet")["user_id"].to_numpy()
    videos = read_frame(run.data / "videos.parquet")["video_id"].to_numpy()
    rows = zip(users[logged.user - 1], videos[logged.video - 1], logged.time, strict=True)
    written = table.loc[list(rows)]
    assert (written["watched_before"].sum(), (written["repeats"] > 0).sum()) > (20, 100)
    click = written["click_probability"].to_numpy()
    np.testing.assert_allclose(got["click"][:, 0], click, rtol=1e-5)
    expected = click * written["expected_watch_s"].to_numpy()
    np.testing.assert_allclose(got["watch_s"][:, 0], expected, rtol=1e-5)


def test_what_may_be_shown_is_what_the_log_can_show(logged: Logged) -> None:
    """Mean of 1 / propensity over shown eligible videos = number of eligible videos."""
    shown = logged.eligible.holds(logged.video)
    ratio = (shown / logged.propensity).sum() / logged.eligible.counts.sum()
    assert 0.95 < ratio < 1.05
    assert shown.mean() > 0.7  # the rest are repeats within half an hour


def test_exposures_drawn_anew(logged: Logged) -> None:
    first = logged.service.show_again(np.random.default_rng(1))
    again = logged.service.show_again(np.random.default_rng(1))
    np.testing.assert_array_equal(first.video, again.video)
    assert (first.video != logged.video).mean() > 0.8
    chance = logged.service.rewards(first.video[:, None])
    n = len(first.video)
    assert abs(first.click.mean() - chance["click"].mean()) < 4 * 0.4 / np.sqrt(n)
    error = (first.watch_s - chance["watch_s"][:, 0]).mean()
    assert abs(error) < 4 * first.watch_s.std() / np.sqrt(n)
    assert (first.watch_s[first.click == 0] == 0).all()
    ratio = (logged.eligible.holds(first.video) / first.propensity).sum()
    assert 0.95 < ratio / logged.eligible.counts.sum() < 1.05


def shares(logged: Logged, service: Any) -> dict[str, dict[str, dict[str, float]]]:
    study = logged.study()
    truth = study.values(logged.service.rewards(study.videos))
    assert truth["click"]["ranker"] > 1.2 * truth["click"]["uniform"]
    result: dict[str, Any] = coverage(study, service, logged.user, truth, LOGS)
    assert result["logs"] == LOGS
    rewards: dict[str, dict[str, dict[str, float]]] = result["rewards"]
    return rewards


def test_intervals_hold_the_truth_over_simulated_logs(logged: Logged) -> None:
    every = shares(logged, logged.service)
    assert set(every) == {"click", "watch_s"}
    held = [
        share for policies in every.values() for estimators in policies.values()
        for share in estimators.values()
    ]  # fmt: skip
    assert len(held) == 2 * 3 * 3
    assert min(held) >= 0.75 and np.mean(held) >= 0.88, every


class Misreported:
    """A service that logs every propensity as if videos were shown uniformly."""

    def __init__(self, logged: Logged) -> None:
        self._service = logged.service
        self._uniform: Float64 = 1 / np.maximum(logged.eligible.counts, 1)

    def show_again(self, rng: np.random.Generator) -> Any:
        return replace(self._service.show_again(rng), propensity=self._uniform)


def test_wrong_propensities_are_caught(logged: Logged) -> None:
    click = shares(logged, Misreported(logged))["click"]
    assert all(
        click[policy][e] <= 0.2 for policy in ("popularity", "uniform") for e in click[policy]
    )
