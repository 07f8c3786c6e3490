"""Do experts (MMoE) help the ranker more than layers that its tasks share?

    PYTHONPATH=. .venv/bin/python tests/bench/ranker_sharing.py RUN [SEEDS]

RUN is a run folder with a trained retriever, of data with labels. The ranker stage runs as it is,
and with four experts mixed by one gate a task in place of the shared perceptron of the label and
watch-time heads; each expert is a quarter as wide in its first layer, so that both have about as
many weights, or as wide ("wide"). Judged on the validation part by models that are not trained on
it, SEEDS (default 3) averaged user by user; differences to the default have 95% intervals over
users. Few retrieved lists are trained on: the layers in question learn nothing from them.

Source: Ma et al., Multi-gate Mixture-of-Experts, KDD 2018.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import models.compat  # noqa: F401

import merlin.models.tf as mm
import numpy as np
import tensorflow as tf

from models import ranker as stage
from models.dlrm import Outputs, Ranker
from models.evaluation.bootstrap import interval, paired_interval
from models.evaluation.learned import Trained
from models.evaluation.ranker_metrics import ranker_values
from models.evaluation.trees import read_events
from workflow.job import Job
from workflow.pipeline import link_stages
from workflow.run import Run

EXPERTS = 4
FEW = 500
METRICS = ("auc", "per_user_auc", "log_loss", "watch_mae_s", "xauc")


class Experts(tf.keras.layers.Layer):
    """Perceptrons on the same input, mixed by a gate of each task."""

    def __init__(self, layers: list[int], dropout: float, tasks: int) -> None:
        super().__init__()
        self.experts = [mm.MLPBlock(layers, dropout=dropout or None) for _ in range(EXPERTS)]
        self.gates = [tf.keras.layers.Dense(EXPERTS, activation="softmax") for _ in range(tasks)]

    def call(self, joined: Any, training: bool = False) -> list[Any]:
        """float32 [batch, k, width] per task."""
        said = tf.stack([expert(joined, training=training) for expert in self.experts], axis=-1)
        return [tf.linalg.matvec(said, gate(joined)) for gate in self.gates]


class WithExperts(Ranker):
    """The ranker with experts below the heads of label and watch time."""

    narrow = EXPERTS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        first, *others = self.config.top_layers
        self.top = Experts([first // self.narrow, *others], self.config.dropout, 2)

    def call(self, query: Any, candidates: Any, training: bool = False) -> Outputs:
        joined = self._joined(query, candidates, training)
        for_label, for_time = self.top(joined, training=training)
        watch = self.watch_top(tf.stop_gradient(joined), training=training)
        return Outputs(
            self.label_head(for_label)[..., 0],
            self.watch_head(watch)[..., 0],
            self.time_head(for_time)[..., 0],
        )


class WithWideExperts(WithExperts):
    narrow = 1


KINDS: dict[str, type[Ranker]] = {
    "shared": Ranker, "experts": WithExperts, "wide experts": WithWideExperts
}  # fmt: skip


def judged(job: Job, kind: type[Ranker], seed: int) -> dict[str, Any]:
    """Metric values per user of the validation part after training with `seed`."""
    ranker = job.config.ranker.model_copy(update={"refit": False, "list_queries": FEW})
    config = job.config.model_copy(update={"seed": seed, "ranker": ranker})
    with (
        tempfile.TemporaryDirectory(prefix="marquee-") as folder,
        patch.object(stage, "Ranker", kind),
        patch.object(stage, "MAX_VALID_LISTS", FEW),
    ):
        other = Job(Run(Path(folder)), config)
        link_stages(other, job, "validate", "features", "train_retriever")
        stage.train_ranker(other.run, config)
        trained = Trained(other.run, config)
        predicted = trained.dlrm("valid")
        return ranker_values(read_events(trained.store, trained.spec, "valid"), predicted)


def main(folder: str, seeds: int = 3) -> None:
    job = Job.load(Run(Path(folder)))
    found: dict[str, dict[str, Any]] = {}
    for name, kind in KINDS.items():
        each = [judged(job, kind, job.config.seed + seed) for seed in range(seeds)]
        found[name] = {
            m: np.mean([one[m] for one in each], axis=0) for m in METRICS if m in each[0]
        }
        for metric, values in found[name].items():
            line = f"{name:14s} {metric:14s} {interval(values)['mean']:.4f}"
            if name != "shared":
                difference = paired_interval(values, found["shared"][metric])
                line += " {difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference)
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
