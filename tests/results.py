"""Planted results of an evaluation: every number differs, so that a test can tell them apart."""

from __future__ import annotations

from typing import Any

import numpy as np

RETRIEVAL = (
    "recall@10", "recall@100", "recall@500", "ndcg@10", "mrr", "coverage@10", "novelty@10",
    "popularity_lift@10",
)  # fmt: skip
BASELINES = ("popularity", "popularity_30_days", "item_knn", "ease", "ials")
SEGMENTS = ("new", "light", "heavy", "head", "torso", "tail", "cold")
RANKER = ("auc", "per_user_auc", "log_loss", "ece", "watch_mae_s", "xauc")


class _Numbers:
    """Different numbers each time, the same in each run."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def value(self, near: float = 0.3, *, per_seed: int = 3) -> dict[str, Any]:
        seeds = [float(near * x) for x in self._rng.uniform(0.95, 1.05, per_seed)]
        mean = float(np.mean(seeds))
        spread = float(near * self._rng.uniform(0.02, 0.05))
        return {"mean": mean, "low": mean - spread, "high": mean + spread, "per_seed": seeds}

    def interval(self, near: float) -> dict[str, float]:
        return {k: v for k, v in self.value(near).items() if k != "per_seed"}

    def difference(self, near: float) -> dict[str, float]:
        middle, spread = near * self._rng.uniform(0.9, 1.1), 0.005 * self._rng.uniform(0.9, 1.1)
        return {"difference": middle, "low": middle - spread, "high": middle + spread}

    def count(self) -> int:
        return int(self._rng.integers(1_000, 900_000))


def planted_result(seed: int = 1, *, off_policy: bool = True) -> dict[str, Any]:
    """A metrics.json: the two-tower beats all but EASE (no difference) and iALS (worse)."""
    numbers = _Numbers(seed)
    protocols = ("temporal", "leave_last_out", "rolling")
    return {
        "format": 2,
        "dataset": "movies <b>&amp;",
        "seeds": [7, 8, 9],
        "retrieval": {name: _protocol(numbers) for name in protocols},
        "ranker": _ranker(numbers),
        "end_to_end": _end_to_end(numbers),
        "off_policy": _off_policy(numbers) if off_policy else None,
    }


def _near(metric: str) -> float:
    return {"novelty@10": 9.0, "popularity_lift@10": 3.0, "watch_mae_s": 70.0}.get(metric, 0.3)


def _protocol(numbers: _Numbers) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for name in ("two_tower", *BASELINES):
        models[name] = {metric: numbers.value(_near(metric)) for metric in RETRIEVAL}
        models[name]["segments"] = {
            segment: {
                "users" if segment in SEGMENTS[:3] else "events": 1_000 + 7 * place,
                "recall@100": numbers.interval(0.2)["mean"],
            }
            for place, segment in enumerate(SEGMENTS)
        }
    ahead = {"ease": 0.001, "ials": -0.02}
    paired = {
        name: {metric: numbers.difference(ahead.get(name, 0.03)) for metric in RETRIEVAL[:5]}
        for name in BASELINES
    }
    return {
        "users": numbers.count(),
        "models": models,
        "paired": paired,
        "settings": {"ease": "Ease(l2=<200>)"},
        "skipped": {},
    }


def _ranker(numbers: _Numbers) -> dict[str, Any]:
    models = ("dlrm", "lightgbm", "bias")
    edges = np.linspace(0.05, 0.6, 8)
    bent = {"dlrm": 0.0, "lightgbm": 0.03, "bias": -0.06}
    return {
        "events": numbers.count(),
        "models": {m: {name: numbers.value(_near(name)) for name in RANKER} for m in models},
        "paired": {
            name: {"auc": numbers.difference(0.02), "log_loss": numbers.difference(-0.02)}
            for name in models[1:]
        },
        "reliability": {
            m: [
                {"predicted": float(p), "observed": float(p + bent[m]), "count": 100}
                for p in edges
            ]
            for m in models
        },
    }  # fmt: skip


def _end_to_end(numbers: _Numbers) -> dict[str, Any]:
    metrics = ("recall@10", "ndcg@10", "coverage@10")
    models = ("retriever", "served", "popularity", "ease")
    return {
        "users": numbers.count(),
        "num_candidates": 500,
        "metrics": {m: {name: numbers.value() for name in metrics} for m in models},
        "recall_ceiling": numbers.interval(0.55),
        "ranker_lift": numbers.interval(0.04),
        "approximate_loss": numbers.interval(0.002),
        "paired": {m: {"ndcg@10": numbers.difference(0.02)} for m in ("retriever", "ease")},
    }


def _off_policy(numbers: _Numbers) -> dict[str, Any]:
    policies, rewards = ("ranker", "popularity", "uniform"), {"click": 0.25, "watch_s": 80.0}
    estimators = ("ips", "snips", "dr", "direct")
    return {
        "events": numbers.count(),
        "users": numbers.count(),
        "best_of": 10,
        "recent_s": 1800,
        "eligible": "available & published",
        "rewards": {
            reward: {
                "logged": numbers.interval(near * 0.8),
                "policies": {
                    policy: {e: numbers.interval(near) for e in estimators} | {"truth": near * 1.01}
                    for policy in policies
                },
            }
            for reward, near in rewards.items()
        },
        "weights": {
            policy: {
                "mean": numbers.interval(1.0),
                "largest": numbers.value(60.0)["mean"],
                "effective": numbers.value(3000.0)["mean"],
            }
            for policy in policies
        },
        "paired": {
            reward: {other: numbers.difference(near * 0.2) for other in (*policies[1:], "logged")}
            for reward, near in rewards.items()
        },
        "coverage": {
            "logs": 20,
            "rewards": {
                reward: {p: dict.fromkeys(estimators[:3], 0.95) for p in policies}
                for reward in rewards
            },
        },
    }
