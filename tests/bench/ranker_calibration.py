"""How good and how well calibrated is the ranker?

    PYTHONPATH=. .venv/bin/python tests/bench/ranker_calibration.py RUN [SEEDS]

RUN is a trained run of data with labels. Its ranker is judged on the test part, with those of
SEEDS - 1 (default 2) more trainings of the ranker stage alone, next to LightGBM on the same
features: means over seeds, differences and their 95% intervals over users. `marquee evaluate` says
the same, but trains everything anew.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import models.compat  # noqa: F401

import numpy as np

from models.evaluation.biases import Biases
from models.evaluation.bootstrap import interval, paired_interval
from models.evaluation.learned import Trained
from models.evaluation.ranker_metrics import Events, Predictions, ranker_values
from models.evaluation.trees import Trees, read_events
from models.ranker import train_ranker
from workflow.job import Job
from workflow.pipeline import link_stages
from workflow.run import Run

METRICS = ("auc", "per_user_auc", "log_loss", "ece")


def predictions(job: Job, seed: int) -> Predictions:
    """Of the test part, by the run's own ranker or by one trained with another seed."""
    if seed == job.config.seed:
        return Trained(job.run, job.config).dlrm("test")
    config = job.config.model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        other = Job(Run(Path(folder)), config)
        link_stages(other, job, "validate", "features", "train_retriever")
        train_ranker(other.run, config)
        return Trained(other.run, config).dlrm("test")


def compare(events: Events, ours: list[Predictions], theirs: Predictions) -> None:
    """Print each metric, by seed too, and how it differs from the other model's."""
    judged = [ranker_values(events, one) for one in ours]
    baseline = ranker_values(events, theirs)
    for metric in METRICS:
        values = np.mean([one[metric] for one in judged], axis=0)
        by_seed = " ".join(f"{one[metric].mean():.4f}" for one in judged)
        line = "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**interval(values))
        difference = paired_interval(values, baseline[metric])
        less = "{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference)
        print(f"{metric:12s} {line} by seed {by_seed}, minus LightGBM's {less}", flush=True)


def main(folder: str, seeds: int = 3) -> None:
    job = Job.load(Run(Path(folder)))
    trained = Trained(job.run, job.config)
    events = read_events(trained.store, trained.spec, "test")
    biases = Biases(trained.store).fit()
    trees = Predictions(*Trees(trained.store, trained.spec, biases).fit().predict("test"))
    ours = [predictions(job, job.config.seed + number) for number in range(seeds)]
    compare(events, ours, trees)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
