"""Values per user as the numbers of metrics.json: means, intervals, paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.evaluation import bootstrap
from models.metrics import Float64

# model -> metric -> float64 [seeds, users]
Values = dict[str, dict[str, Float64]]


def summarise(models: Values, ours: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a set of models did, and how `ours` differs from each other one.

    Means are over seeds and users. Intervals resample users, with each user's values averaged
    over seeds, so they do not cover what another seed would change: `per_seed` shows that.

    Returns:
        {model: {metric: {"mean", "low", "high", "per_seed"}}} and
        {other model: {metric: {"difference", "low", "high"}}}, ours minus theirs by user.
    """
    keys = [(model, metric) for model, metrics in models.items() for metric in metrics]
    columns = np.stack([models[model][metric].mean(axis=0) for model, metric in keys], axis=1)
    resampled = bootstrap.resampled_means(columns)
    at = {key: number for number, key in enumerate(keys)}
    metrics: dict[str, Any] = {model: {} for model in models}
    paired: dict[str, Any] = {model: {} for model in models if model != ours}
    for (model, metric), number in at.items():
        per_seed = [float(mean) for mean in models[model][metric].mean(axis=1)]
        entry = bootstrap.summary("mean", columns[:, number], resampled[:, number])
        metrics[model][metric] = {**entry, "per_seed": per_seed}
        mine = at.get((ours, metric))
        if model != ours and mine is not None:
            paired[model][metric] = bootstrap.summary(
                "difference",
                columns[:, mine] - columns[:, number],
                resampled[:, mine] - resampled[:, number],
            )
    return metrics, paired


def arrays(prefix: str, models: Values) -> dict[str, Float64]:
    """The values under "<prefix>/<model>/<metric>", for per_user.npz."""
    return {
        f"{prefix}/{model}/{metric}": values
        for model, metrics in models.items()
        for metric, values in metrics.items()
    }
