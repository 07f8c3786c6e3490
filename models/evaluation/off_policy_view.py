"""The off-policy section of the report."""

from __future__ import annotations

from typing import Any

from scipy.stats import binom

from models.evaluation import names
from models.evaluation.bootstrap import LEVEL

Json = dict[str, Any]
ESTIMATORS = ("dr", "snips", "ips", "direct")
POLICIES = {
    "ranker": "Ranker",
    "popularity": "Popularity",
    "uniform": "Uniform",
    "logged": "Logged",
}
REWARDS = {"click": ("Clicks", "auc"), "watch_s": ("Seconds watched", "watch_mae_s")}


def view(result: Json) -> Json:
    """Estimates beside the truth where there is one, weights, coverage and differences."""
    rewards = [
        _reward(name, result["rewards"][name])
        for name in names.in_order(result["rewards"], REWARDS)
    ]
    return {
        **{name: result[name] for name in ("events", "users", "best_of", "recent_s", "eligible")},
        "sentence": _sentence(result),
        "rewards": rewards,
        "weights": [
            {"title": POLICIES[name], **result["weights"][name]}
            for name in names.in_order(result["weights"], POLICIES)
        ],
        "differences": _differences(result),
        "coverage": _coverage(result["coverage"]) if result.get("coverage") else None,
    }


def _reward(name: str, reward: Json) -> Json:
    title, form = REWARDS[name]
    policies = reward["policies"]
    return {
        "title": title,
        "format": form,
        "logged": reward["logged"],
        "has_truth": any("truth" in policy for policy in policies.values()),
        "rows": [
            {
                "title": POLICIES[policy],
                "truth": policies[policy].get("truth"),
                "cells": [_cell(policies[policy], estimator) for estimator in ESTIMATORS],
            }
            for policy in names.in_order(policies, POLICIES)
        ],
    }


def _cell(policy: Json, estimator: str) -> Json:
    value, truth = policy[estimator], policy.get("truth")
    inside = None if truth is None else value["low"] <= truth <= value["high"]
    return {"value": value, "inside": inside}


def _differences(result: Json) -> list[Json]:
    """Ranker minus each other policy, one cell per reward."""
    paired = result["paired"]
    others = names.in_order({other for values in paired.values() for other in values}, POLICIES)
    return [
        {
            "title": POLICIES[other],
            "cells": [
                {
                    "value": paired[reward][other],
                    "format": REWARDS[reward][1],
                    "verdict": _verdict(paired[reward][other]),
                }
                for reward in names.in_order(result["rewards"], REWARDS)
            ],
        }
        for other in others
    ]


def _verdict(difference: Json) -> names.Verdict:
    return names.verdict("auc", difference["low"], difference["high"])  # more is better


def _sentence(result: Json) -> str:
    verdicts = {
        f"the {POLICIES[other].lower()} policy": _verdict(difference)
        for other, difference in result["paired"]["click"].items()
    }
    return names.sentence("By clicks, the ranker's policy", verdicts, "others")


def _coverage(coverage: Json) -> Json:
    rows = [
        {
            "title": f"{POLICIES[policy]}, {REWARDS[reward][0].lower()}",
            "cells": [coverage["rewards"][reward][policy][e] for e in ("dr", "snips", "ips")],
        }
        for reward in names.in_order(coverage["rewards"], REWARDS)
        for policy in names.in_order(coverage["rewards"][reward], POLICIES)
    ]
    low, high = binom.interval(LEVEL, coverage["logs"], LEVEL)
    usual = f"{low / coverage['logs']:.0%} to {high / coverage['logs']:.0%}"
    return {"logs": coverage["logs"], "usual": usual, "rows": rows}
