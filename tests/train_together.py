"""Train a run's models without dropout, alone or as TF_CONFIG says: see test_workers.

    python -m tests.train_together RUN_OF_THE_RETRIEVER [RUN_OF_THE_RANKER]

Dropout is drawn for a worker's own rows, and workers begin an epoch with a random state of its own:
without the one and with the other, two processes are to equal one.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np

from models.team import Team, join
from workflow import pipeline
from workflow.console import Output
from workflow.job import Job
from workflow.run import Run
from workflow.workers import read_workers

if __name__ == "__main__":
    workers = read_workers(os.environ)
    join(workers)
    from models import targets  # starts TensorFlow

    for goal, objective in targets.OBJECTIVES.items():
        targets.OBJECTIVES[goal] = replace(objective, dropout=0.0, history_dropout=0.0)
    Team.begin_epoch = lambda _, number: np.random.seed(number)  # type: ignore[method-assign]
    stages = ("train_retriever", "train_ranker")
    for folder, stage in zip(sys.argv[1:], stages, strict=False):
        job = replace(Job.load(Run(folder)), workers=workers)
        pipeline.train(job, Output(True), (stage,), force=True)
