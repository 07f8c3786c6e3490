"""Words and number formats for people: models, metrics, protocols, segments and verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["better", "worse", "none"]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        better: 1 when more is better, -1 when less is, 0 when neither is.
        digits: decimals shown.
    """

    title: str
    meaning: str
    better: int = 1
    digits: int = 4


METRICS = {
    "recall@10": Metric("Recall@10", "share of a user's held-out videos among the first 10"),
    "recall@100": Metric("Recall@100", "the same among the first 100"),
    "recall@500": Metric("Recall@500", "the same among the first 500"),
    "ndcg@10": Metric("NDCG@10", "hits among the first 10, higher places counting more"),
    "mrr": Metric("MRR", "one over the place of the first hit"),
    "coverage@10": Metric(
        "Coverage@10", "share of all videos that are in the first 10 of some user"
    ),
    "novelty@10": Metric(
        "Novelty@10", "mean bits of surprise, -log2 of the share of watches", 0, 2
    ),
    "popularity_lift@10": Metric(
        "Pop. lift@10", "popularity of what is shown over that of what users watched", 0, 2
    ),
    "auc": Metric("AUC", "chance that a positive scores above a negative"),
    "per_user_auc": Metric("Per-user AUC", "the same within a user, weighted by events"),
    "log_loss": Metric("Log loss", "mean negative log-likelihood, nats", -1),
    "ece": Metric("ECE", "gap between predicted and observed rates over equally filled bins", -1),
    "watch_mae_s": Metric("Watch MAE, s", "mean absolute error of the seconds watched", -1, 2),
    "xauc": Metric("XAUC", "chance that the longer of two watches has the longer prediction"),
}
MODELS = {
    "two_tower": "Two-tower",
    "popularity": "Popularity",
    "popularity_30_days": "30-day popularity",
    "item_knn": "ItemKNN",
    "ease": "EASE",
    "ials": "iALS",
    "dlrm": "DLRM ranker",
    "lightgbm": "LightGBM",
    "bias": "User + item bias",
    "retriever": "Retriever alone",
    "served": "Served list",
}
PROTOCOLS = {
    "temporal": (
        "Temporal",
        "Two points in time: train before, tune between, test once after (80/10/10 by default)",
    ),
    "leave_last_out": (
        "Leave-last-out",
        "Each user's last watch is the test, the one before it the validation",
    ),
    "rolling": (
        "Rolling",
        "Temporal's test period watch by watch: the history advances as in production",
    ),
}
SEGMENTS = {
    "new": ("New users", "nothing watched before the request"),
    "light": ("Light users", "at most the median number of watched videos"),
    "heavy": ("Heavy users", "more than the median"),
    "head": ("Head videos", "the most watched ones, with half of the training watches"),
    "torso": ("Torso videos", "the next ones, with 40%"),
    "tail": ("Tail videos", "the other videos that training has seen watched"),
    "cold": ("Cold videos", "never watched in training"),
}
VERDICTS = {"better": "better", "worse": "worse", "none": "no difference shown"}


def metric(name: str) -> Metric:
    """How `name` is shown; an unknown metric under its own name, as neither good nor bad."""
    return METRICS.get(name, Metric(name, "", 0))


def model(name: str) -> str:
    """A model's name for people."""
    return MODELS.get(name, name.replace("_", " "))


def protocol(name: str) -> str:
    """A protocol's name for people."""
    return PROTOCOLS[name][0] if name in PROTOCOLS else name.replace("_", " ").capitalize()


def segment(name: str) -> str:
    """A segment's name for people."""
    return SEGMENTS[name][0] if name in SEGMENTS else name.replace("_", " ")


def in_order(present: Any, known: Any) -> list[str]:
    """The names of `present` in the order of `known`; others after them, by name."""
    first = [name for name in dict.fromkeys(known) if name in present]
    return first + sorted(name for name in present if name not in known)


def verdict(name: str, low: float, high: float) -> Verdict:
    """What the interval of a difference says: a side only if it excludes zero."""
    sign = metric(name).better
    if sign == 0 or not (low > 0 or high < 0):
        return "none"
    return "better" if (low > 0) == (sign > 0) else "worse"


def shown(name: str, value: float | None, *, signed: bool = False) -> str:
    """A value of metric `name` as text; an en dash for what could not be measured."""
    return decimals(value, metric(name).digits, signed=signed)


def decimals(value: float | None, digits: int, *, signed: bool = False) -> str:
    """A number with a fixed number of decimals and a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "−")


def listed(words: list[str]) -> str:
    """["a", "b", "c"] → "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def in_text(name: str) -> str:
    """A name inside a sentence: "Popularity" → "popularity", but EASE, iALS and LightGBM stay."""
    capitals = sum(letter.isupper() for letter in name)
    return name if capitals > 1 else name[:1].lower() + name[1:]


def sentence(subject: str, verdicts: dict[str, Verdict], others: str = "baselines") -> str:
    """One sentence about `subject` from its verdict against each of the named `others`."""
    order: tuple[Verdict, ...] = ("better", "none", "worse")
    groups = {kind: [in_text(n) for n, v in verdicts.items() if v == kind] for kind in order}
    for kind in ("better", "worse"):
        if len(verdicts) > 2 and len(groups[kind]) == len(verdicts):
            return f"{subject} is {kind} than all {len(verdicts)} {others}."
    words = {"better": "better than", "worse": "worse than", "none": "not shown to differ from"}
    parts = [f"{words[kind]} {listed(names)}" for kind, names in groups.items() if names]
    return f"{subject} is {'; '.join(parts)}." if parts else f"{subject} has no {others} beside it."
