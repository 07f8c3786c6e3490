"""Three target policies on one set of exposures: their probabilities, estimates and truths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation import off_policy
from models.evaluation.best_of import logged_probability, win_shares
from models.evaluation.eligible import Eligible
from models.evaluation.off_policy import Exposures, Target
from models.evaluation.simulated import Simulated
from models.metrics import Float64, Int64

Json = dict[str, Any]
Predicted = dict[str, Float64]  # "score", "click" and, where there are watch times, "watch_s"

BEST_OF = 10  # videos that a policy chooses from
SAMPLED = 50  # eligible videos sampled for each exposure, in which ranks are counted
POLICIES = {"ranker": BEST_OF, "popularity": BEST_OF, "uniform": 1}


@dataclass(frozen=True)
class Log:
    """Exposures with all their rewards.

    Attributes:
        user, video: int64 [n], rows.
        propensity: float64 [n].
        rewards: name -> float64 [n]; NaN where it was not measured.
    """

    user: Int64
    video: Int64
    propensity: Float64
    rewards: dict[str, Float64]

    def earned(self, reward: str) -> tuple[Exposures, Int64]:
        """(the exposures whose reward was measured, their positions)."""
        chosen = np.flatnonzero(np.isfinite(self.rewards[reward]))
        log = Exposures(self.user, self.propensity, self.rewards[reward])
        return log.take(chosen), chosen


class Study:
    """The policies over a sample of each exposure's eligible videos.

    Args:
        eligible: what may be shown at each exposure.
        predict: video rows int64 [n, m] -> what the ranker says of them, float64 [n, m] each.
        popularity: float64 [num_videos + 1], by video row.
        seed: of the samples and of the order of equal scores.
    """

    def __init__(
        self,
        eligible: Eligible,
        predict: Callable[[Int64], Predicted],
        popularity: Float64,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        self._eligible, self._predict, self._popularity = eligible, predict, popularity
        self._counts = eligible.counts
        self._ties = rng.permutation(len(popularity)).astype(np.float64)
        self.videos, self._valid = eligible.sample(rng, SAMPLED)
        self._predicted = predict(self.videos)
        self._scores = {name: self._score(name, self.videos, self._predicted) for name in POLICIES}
        self._shares = {
            name: win_shares(self._scores[name], self._ties[self.videos], self._valid, k)
            for name, k in POLICIES.items()
        }

    def _score(self, policy: str, videos: Int64, predicted: Predicted) -> Float64:
        if policy == "ranker":
            return predicted["score"]
        return self._popularity[videos] if policy == "popularity" else np.zeros(videos.shape)

    def targets(self, video: Int64) -> dict[str, dict[str, Target]]:
        """reward -> policy -> the policy at exposures that showed `video`, int64 [n]."""
        predicted = self._predict(video[:, None])
        chances = {name: self._probability(name, video, predicted) for name in POLICIES}
        return {
            reward: {
                name: Target(
                    chances[name],
                    predicted[reward][:, 0],
                    self._mean(name, self._predicted[reward]),
                )
                for name in POLICIES
            }
            for reward in predicted
            if reward != "score"
        }

    def _probability(self, policy: str, video: Int64, predicted: Predicted) -> Float64:
        score = self._score(policy, video[:, None], predicted)[:, 0]
        valid: npt.NDArray[np.bool_] = self._valid & (self.videos != video[:, None])
        others = self._scores[policy], self._ties[self.videos], valid
        counts = np.where(self._eligible.holds(video), self._counts, 0)
        return logged_probability(score, self._ties[video], others, counts, POLICIES[policy])

    def _mean(self, policy: str, rewards: Float64) -> Float64:
        """Mean reward of the policy at each exposure, from rewards of the sampled videos."""
        result: Float64 = np.where(self._valid, self._shares[policy] * rewards, 0.0).sum(axis=1)
        return result

    def values(self, rewards: dict[str, Float64]) -> dict[str, dict[str, float]]:
        """reward -> policy -> mean, from true rewards of the sampled videos, [n, m] each."""
        return {
            reward: {name: float(self._mean(name, values).mean()) for name in POLICIES}
            for reward, values in rewards.items()
        }

    def result(self, log: Log) -> Json:
        """Estimates, differences and weights of the policies."""
        targets = self.targets(log.video)
        first = next(iter(log.rewards))
        exposures, chosen = log.earned(first)
        return {
            "events": len(log.user),
            "users": len(np.unique(log.user)),
            "best_of": BEST_OF,
            "sampled": SAMPLED,
            "rewards": {name: _rewarded(log, name, targets[name]) for name in log.rewards},
            "paired": {name: _paired(log, name, targets[name]) for name in log.rewards},
            "weights": {
                policy: off_policy.weight_summary(exposures, target.take(chosen))
                for policy, target in targets[first].items()
            },
        }


def _rewarded(log: Log, reward: str, targets: dict[str, Target]) -> Json:
    exposures, chosen = log.earned(reward)
    return {
        "events": len(chosen),
        "logged": off_policy.logged_value(exposures),
        "policies": {
            name: off_policy.estimate(exposures, target.take(chosen))
            for name, target in targets.items()
        },
    }


def _paired(log: Log, reward: str, targets: dict[str, Target]) -> Json:
    """The ranker's policy minus the others and the logging policy."""
    exposures, chosen = log.earned(reward)
    ours, *others = (targets[name].take(chosen) for name in POLICIES)
    names = [name for name in POLICIES if name != "ranker"]
    paired = {
        name: off_policy.difference(exposures, ours, other)
        for name, other in zip(names, others, strict=True)
    }
    return {**paired, "logged": off_policy.difference(exposures, ours, None)}


def coverage(
    study: Study, service: Simulated, user: Int64, truth: dict[str, dict[str, float]], logs: int
) -> Json:
    """How often the intervals hold the truth when the exposures are drawn anew.

    Returns:
        {"logs", "rewards": {reward: {policy: {estimator: share of the logs}}}}.
    """
    held: dict[tuple[str, str, str], int] = {}
    for number in range(logs):
        drawn = service.show_again(np.random.default_rng([number, 1]))
        rewards = {"click": drawn.click, "watch_s": drawn.watch_s}
        targets = study.targets(drawn.video)
        for reward, policies in targets.items():
            exposures = off_policy.Exposures(user, drawn.propensity, rewards[reward])
            for policy, target in policies.items():
                for name, value in off_policy.estimate(exposures, target).items():
                    inside = off_policy.holds(value, truth[reward][policy])
                    key = (reward, policy, name)
                    held[key] = held.get(key, 0) + inside
    return {
        "logs": logs,
        "rewards": {
            reward: {
                policy: {e: held[reward, policy, e] / logs for e in off_policy.ESTIMATORS[:3]}
                for policy in policies
            }
            for reward, policies in truth.items()
        },
    }
