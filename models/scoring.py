"""From the heads' outputs to one score: calibration per head, learned weights of the tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, minimize
from scipy.special import expit

from workflow.config import ScoreWeights
from workflow.run import read_json, write_json

Float64 = npt.NDArray[np.float64]
TERMS = ("retrieval", "watch", "label", "watch_time")


@dataclass(frozen=True)
class Platt:
    """Calibrated logit = scale * logit + shift (Platt, 1999)."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, logit: Any) -> Any:
        return self.scale * logit + self.shift


@dataclass(frozen=True)
class Scoring:
    """How a candidate's score is made of the retrieval score and the ranker's outputs."""

    label: Platt = Platt()
    watch: Platt = Platt()
    weights: ScoreWeights = field(default_factory=lambda: ScoreWeights(retrieval=1.0))

    def save(self, path: Path) -> None:
        heads = {"label": asdict(self.label), "watch": asdict(self.watch)}
        write_json(path, {**heads, "weights": self.weights.model_dump()})

    @classmethod
    def load(cls, path: Path) -> Scoring:
        saved = read_json(path)
        weights = ScoreWeights.model_validate(saved["weights"])
        return cls(Platt(**saved["label"]), Platt(**saved["watch"]), weights)


def fit_platt(logit: npt.NDArray[Any], positive: npt.NDArray[Any]) -> Platt:
    """The scale (at least 0) and shift that minimise log loss on held-out examples."""
    x, y = logit.astype(np.float64), positive.astype(np.float64)
    if len(y) == 0 or y.min() == y.max():
        return Platt()

    def loss(parameters: Float64) -> tuple[float, Float64]:
        z = parameters[0] * x + parameters[1]
        error = 1 / (1 + np.exp(-z)) - y
        value = float(np.mean(np.logaddexp(0, z) - y * z))
        return value, np.array([np.mean(error * x), np.mean(error)])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0, None), (None, None)])
    return Platt(float(found.x[0]), float(found.x[1]))


def fit_spread(logit: npt.NDArray[Any], positive: npt.NDArray[Any]) -> Platt:
    """Platt's scale, with the shift that leaves the mean probability as it was.

    How sure a model may be is learned well from a held-out part of the log. Whether more or less
    is liked there than the model expects is mostly the chance of those days: it is gone, or
    turned round, in the next ones.
    """
    x, scale = logit.astype(np.float64), fit_platt(logit, positive).scale
    if scale == 1.0 or len(x) == 0:
        return Platt()
    mean = expit(x).mean()
    furthest = (1 + scale) * float(np.abs(x).max())
    shift = brentq(lambda shift: expit(scale * x + shift).mean() - mean, -furthest, furthest)
    return Platt(scale, float(shift))


def fit_weights(
    terms: npt.NDArray[Any], gains: npt.NDArray[Any], present: npt.NDArray[np.bool_]
) -> ScoreWeights:
    """Weights that make the gains of held-out lists most likely under a softmax over each list.

    Args:
        terms: float [n, k, 4] in the order of TERMS; a term that is constant gets no weight.
        gains: float [n, k], what each candidate turned out to be worth.
        present: bool [n, k].
    Source: ListNet's top-one loss, Cao et al., ICML 2007; conditional logit, McFadden 1973.
    """
    useful = (gains * present).sum(axis=1) > 0
    terms, gains, present = terms[useful].astype(np.float64), gains[useful], present[useful]
    if len(gains) == 0:
        return ScoreWeights(retrieval=1.0)
    share = gains * present / (gains * present).sum(axis=1, keepdims=True)
    within = [row[keep].var(axis=0) for row, keep in zip(terms, present, strict=True)]
    spread = np.sqrt(np.mean(within, axis=0))
    varies = spread > 1e-6
    scaled = np.where(varies, terms / np.where(varies, spread, 1.0), 0.0)

    def loss(weights: Float64) -> tuple[float, Float64]:
        score = np.where(present, scaled @ weights, -np.inf)
        score = score - score.max(axis=1, keepdims=True)
        exp = np.exp(score)
        p = exp / exp.sum(axis=1, keepdims=True)
        log_p = np.where(present, score - np.log(exp.sum(axis=1, keepdims=True)), 0.0)
        slope = np.einsum("nk,nkt->t", p - share, scaled) / len(share)
        value = -float((share * log_p).sum()) / len(share)
        return value + RIDGE * float(weights @ weights), slope + 2 * RIDGE * weights

    found = minimize(loss, np.full(len(TERMS), 0.1), jac=True, bounds=[(0, None)] * len(TERMS))
    weights = np.where(varies, found.x / np.where(varies, spread, 1.0), 0.0)
    if not weights.any():  # nothing helps: a constant score would order nothing
        return ScoreWeights(retrieval=1.0)
    return ScoreWeights(**dict(zip(TERMS, map(float, weights), strict=True)))


RIDGE = 1e-3  # per squared standard deviation: settles ties between terms that say the same
