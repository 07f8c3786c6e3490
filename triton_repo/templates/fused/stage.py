"""Fused: the stages of this bundle one after the other in one process, as the ensemble's one step.

A step of an ensemble costs about as much as the work of a stage here, so the ensemble has one.
No files of its own: it reads those of the stages, which lie beside it in the bundle.
"""

import importlib.util
import time

import numpy as np

# Candidates worked on at a time, more or less: they stay in the CPU's caches, and what the stages
# keep of their memory is soon as large as it gets, whatever a burst brings.
AT_ONCE = 3_200


def load(path):
    """The module in a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parents[1].name}_stage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """Query tower, retrieval and ranker; what one step gives, the next ones take.

    Args:
        folder: this stage's version folder in a bundle, or a symbolic link to it.
        state: as for the query tower.
    """

    ensemble = "marquee"  # whose step this is
    steps = ("query_tower", "retrieval", "ranker")
    gives = ("rows", "scores", "wanted", "status")

    def __init__(self, folder, state=None):
        self.folder = folder.resolve()
        self.query_tower = self.stage("query_tower", state)
        self.retrieval = self.stage("retrieval")
        self.ranker = self.stage("ranker")
        self.candidates = self.retrieval.num_candidates  # that are ranked for a user
        self.took_us = {}  # by step, of the last batch

    def stage(self, name, *state):
        """Another stage of the bundle."""
        mine = self.folder.parents[1] / name / self.folder.name
        return load(mine / "stage.py").Stage(mine, *state)

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position."""
        return self.ranker.check_top_k(inputs["top_k"], sizes)

    def run(self, inputs):
        size = max(AT_ONCE // self.candidates, 1)
        if len(inputs["user_id"]) <= size:
            return self.run_piece(inputs)
        pieces, took_us = [], dict.fromkeys(self.steps, 0)
        for start in range(0, len(inputs["user_id"]), size):
            mine = slice(start, start + size)
            pieces.append(
                self.run_piece({name: None if x is None else x[mine] for name, x in inputs.items()})
            )
            took_us = {step: us + self.took_us[step] for step, us in took_us.items()}
        self.took_us = took_us
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self.gives}

    def run_piece(self, inputs):
        known = self.run_steps(inputs)
        return {name: known[name] for name in self.gives}

    def run_steps(self, inputs):
        """The inputs and what all steps gave; sets `took_us`."""
        known, ends = dict(inputs), [time.perf_counter_ns()]
        for step in self.steps:
            known.update(self.run_step(step, known))
            ends.append(time.perf_counter_ns())
        self.took_us = {
            name: (end - start) // 1000
            for name, start, end in zip(self.steps, ends, ends[1:], strict=False)
        }
        return known

    def run_step(self, step, known):
        return getattr(self, step).run(known)

    def finish(self, answer):
        return self.ranker.finish(answer)
