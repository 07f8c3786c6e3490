"""Off-policy evaluation of a run: the ranker's policy, popularity and uniform, on its test part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from models.evaluation.eligible import Eligible, Shelves, recently_shown
from models.evaluation.off_policy_study import Log, Predicted, Study, coverage
from models.evaluation.replaced import WhatIf
from models.evaluation.simulated import Simulated
from models.metrics import Float64, Int64
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.features.encoded import FeatureStore
from workflow.frames import read_frame
from workflow.run import Run
from workflow.schema import Contract

Json = dict[str, Any]
MAX_EXPOSURES = 10_000  # of the test part; whole users
LOGS = 20  # simulated logs on which the intervals are checked


def evaluate_off_policy(
    run: Run, config: Config, contract: Contract, report: Report = no_report
) -> Json | None:
    """Estimates, and on the simulator the truth, of the three policies.

    The direct model is the run's ranker, which never saw the test part.

    Returns:
        {"events", "users", "best_of", "sampled", "recent_s", "eligible", "rewards", "paired",
        "weights", "coverage"}; None where the log has no propensities or no labels, or its test
        part is not a period of time.
    """
    logged = contract.has_propensity and contract.has_label
    if not logged or config.split.protocol != "temporal":
        return None
    store = FeatureStore(run)
    samples = _test_samples(store, config.seed)
    if samples.empty:
        return None
    report(0, 3, "off-policy: predictions")
    service = _simulated(run, samples) if config.dataset == "sim" else None
    recent_s = config.features.session_gap_s
    eligible, rule = _eligible(store, contract, samples, service, recent_s)
    predict = _predictor(run, config, contract, samples)
    study = Study(eligible, predict, _watches(store), config.seed)
    report(1, 3, "off-policy: estimates")
    result = study.result(_log(samples)) | {"recent_s": recent_s, "eligible": rule}
    result["coverage"] = None
    if service is not None:
        truth = study.values(service.rewards(study.videos))
        for reward, policies in result["rewards"].items():
            for policy, estimates in policies["policies"].items():
                estimates["truth"] = truth[reward][policy]
        report(2, 3, "off-policy: simulated logs")
        result["coverage"] = coverage(study, service, samples["user_row"].to_numpy(), truth, LOGS)
    return result


def _test_samples(store: FeatureStore, seed: int) -> pd.DataFrame:
    """Exposures of the test part that have a propensity; of random users if there are many."""
    frames = [read_frame(path) for path in store.samples("test")]
    frame = pd.concat([f[f["propensity"] > 0] for f in frames]) if frames else pd.DataFrame()
    frame = frame.reset_index(drop=True)
    if len(frame) <= MAX_EXPOSURES:
        return frame
    users, sizes = np.unique(frame["user_row"], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(users))
    taken = np.searchsorted(np.cumsum(sizes[order]), MAX_EXPOSURES, side="right")
    chosen = users[order[: max(1, taken)]]
    return frame[frame["user_row"].isin(chosen)].reset_index(drop=True)


def _simulated(run: Run, samples: pd.DataFrame) -> Simulated:
    pointers = ("user_row", "video_row", "timestamp")
    return Simulated(run, *(samples[name].to_numpy(np.int64) for name in pointers))


def _eligible(
    store: FeatureStore,
    contract: Contract,
    samples: pd.DataFrame,
    service: Simulated | None,
    recent_s: int,
) -> tuple[Eligible, str]:
    """What the policies may show, and that rule in words.

    Anything but the simulator does not say which videos its logging policy could have shown. Then
    it is every video that the log shows with a propensity; the mean weight tells where that is too
    much.
    """
    user, time = (samples[name].to_numpy(np.int64) for name in ("user_row", "timestamp"))
    shown, past = _exposures(store, user)
    recent = recently_shown(past, user, time, recent_s)
    if service is not None:
        shelves, group, until = service.shelves()
        rule = "available in the user's country, within the age limit and already published"
    else:
        publish = np.zeros(len(store.video("video_id")) + 1, np.int64)
        rule = "shown with a propensity anywhere in the log"
        if contract.has_publish_time:
            publish = np.asarray(store.video("publish_time"))
            rule = "already published and shown with a propensity anywhere in the log"
        shelves = Shelves.arrange([shown], publish)
        group, until = np.zeros(len(user), np.int64), time
    return Eligible(shelves, group, shelves.until(group, until), recent), rule


def _exposures(store: FeatureStore, users: Int64) -> tuple[Int64, tuple[Int64, Int64, Int64]]:
    """(videos ever shown with a propensity, (user, time, video) of what `users` were shown)."""
    columns = ["user_row", "timestamp", "video_row"]
    shown, parts = np.zeros(0, np.int64), []
    for path in store.samples("train", "valid", "test"):
        frame = read_frame(path, columns=[*columns, "propensity"])
        drawn = frame.loc[frame["propensity"] > 0, "video_row"]
        shown = np.union1d(shown, drawn.to_numpy(np.int64))
        parts.append(frame[frame["user_row"].isin(users)])
    past = pd.concat(parts).sort_values(columns[:2], kind="stable")
    user, time, video = (past[name].to_numpy(np.int64) for name in columns)
    return shown, (user, time, video)


def _predictor(
    run: Run, config: Config, contract: Contract, samples: pd.DataFrame
) -> Callable[[Int64], Predicted]:
    what_if = WhatIf(run, config)
    return lambda video_rows: what_if.predict(samples, video_rows)


def _watches(store: FeatureStore) -> Float64:
    """How often each video was watched before the test part; float64 [num_videos + 1]."""
    total = np.zeros(len(store.video("video_id")) + 1)
    for path in store.samples("train", "valid"):
        frame = read_frame(path, columns=["video_row", "watched"])
        total += np.bincount(frame["video_row"], frame["watched"], minlength=len(total))
    return total


def _log(samples: pd.DataFrame) -> Log:
    rewards = {"click": samples["label"].to_numpy(np.float64)}
    if "log_watch" in samples:
        rewards["watch_s"] = np.expm1(samples["log_watch"].to_numpy(np.float64))
    return Log(
        user=samples["user_row"].to_numpy(np.int64),
        video=samples["video_row"].to_numpy(np.int64),
        propensity=samples["propensity"].to_numpy(np.float64),
        rewards=rewards,
    )
