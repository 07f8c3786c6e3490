"""Off-policy evaluation of a made run: with the simulator's truth, and as any other log."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import pandas as pd
import pytest

from models.evaluation.off_policy import ESTIMATORS, holds
from models.evaluation.off_policy_run import evaluate_off_policy
from models.evaluation.off_policy_study import POLICIES
from models.evaluation.replaced import WhatIf
from workflow.features.encoded import FeatureStore
from workflow.frames import read_frame
from workflow.job import Job
from workflow.run import Run
from workflow.schema import Contract


@pytest.fixture(scope="module")
def job(sim_run: Any) -> Job:
    return Job.load(Run(sim_run.folder))


@pytest.fixture(scope="module")
def result(job: Job) -> Any:
    return evaluate_off_policy(job.run, job.config, job.contract)


def test_estimates_and_truth_on_the_simulator(result: Any) -> None:
    assert set(result["rewards"]) == {"click", "watch_s"}
    held = [
        holds(policy[name], policy["truth"])
        for reward in result["rewards"].values()
        for policy in reward["policies"].values()
        for name in ("ips", "snips", "dr")
    ]
    assert len(held) == 18 and np.mean(held) >= 0.8, result["rewards"]
    clicks = result["rewards"]["click"]["policies"]
    assert clicks["ranker"]["truth"] > clicks["uniform"]["truth"] * 1.1
    assert not holds(clicks["uniform"]["dr"], clicks["ranker"]["truth"])  # it can tell apart
    for weights in result["weights"].values():
        assert holds(weights["mean"], 1.0) or abs(weights["mean"]["mean"] - 1) < 0.1
        assert 1 < weights["effective"] < result["events"] and weights["largest"] > 1
    assert {*result["paired"]["click"]} == {"popularity", "uniform", "logged"}


def test_coverage_with_the_trained_ranker(result: Any) -> None:
    coverage = result["coverage"]
    shares = [
        coverage["rewards"][reward][policy][name]
        for reward in ("click", "watch_s")
        for policy in POLICIES
        for name in ESTIMATORS[:3]
    ]
    assert coverage["logs"] == 20 and np.mean(shares) >= 0.85 and min(shares) >= 0.6, coverage


def test_a_log_without_a_simulator_has_no_truth(job: Job, result: Any) -> None:
    """The same files as somebody's own: who may be shown what is not known exactly."""
    config = job.config.model_copy(update={"dataset": "custom"})
    own: Any = evaluate_off_policy(job.run, config, job.contract)
    assert own["coverage"] is None and own["events"] == result["events"]
    for reward in own["rewards"].values():
        assert all("truth" not in policy for policy in reward["policies"].values())
    uniform = own["weights"]["uniform"]["mean"]
    assert uniform["high"] < 0.9  # many videos of the catalogue are never shown to many users
    assert result["weights"]["uniform"]["mean"]["low"] > uniform["high"]


def without(contract: Contract, role: str) -> Contract:
    values = contract.model_dump()
    events = values["events"]["columns"]
    values["events"]["columns"] = [c for c in events if c["role"] != role]
    return Contract.model_validate(values)


def test_nothing_to_estimate_without_propensities(job: Job) -> None:
    assert evaluate_off_policy(job.run, job.config, without(job.contract, "propensity")) is None
    split = job.config.split.model_copy(update={"protocol": "leave_last_out"})
    config = job.config.model_copy(update={"split": split})
    assert evaluate_off_policy(job.run, config, job.contract) is None


def test_replacing_a_video_by_itself_changes_nothing(job: Job) -> None:
    store = FeatureStore(job.run)
    samples = pd.concat([read_frame(path) for path in store.samples("test")], ignore_index=True)
    what_if = WhatIf(job.run, job.config)
    same = what_if.samples(samples, samples["video_row"].to_numpy(np.int64))
    pd.testing.assert_frame_equal(same, samples, rtol=1e-5, atol=1e-6)
    rows = samples["video_row"].to_numpy(np.int64)[:50]
    other = np.roll(rows, 1)
    both = what_if.predict(samples.iloc[:50], np.stack([rows, other], axis=1))
    alone = what_if.predict(samples.iloc[:50], other[:, None])
    np.testing.assert_allclose(both["click"][:, 1], alone["click"][:, 0], rtol=1e-5)
    assert (both["click"][:, 0] != both["click"][:, 1]).mean() > 0.9
