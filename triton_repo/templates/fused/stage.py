"""Fused: the stages of this bundle one after the other in one process, as the ensemble's one step.

A step of an ensemble costs about as much as the work of a stage here, so the ensemble has one.
No files of its own: it reads those of the stages, which lie beside it in the bundle.
"""

import importlib.util
import time


def load(path):
    """The module in a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parents[1].name}_stage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """Query tower, retrieval and ranker; what one gives, the next ones take.

    Args:
        folder: this stage's version folder in a bundle, or a symbolic link to it.
        state: as for the query tower.
    """

    def __init__(self, folder, state=None):
        folder = folder.resolve()
        bundle, version = folder.parents[1], folder.name

        def stage(name, *state):
            mine = bundle / name / version
            return load(mine / "stage.py").Stage(mine, *state)

        self.query_tower = stage("query_tower", state)
        self.retrieval = stage("retrieval")
        self.ranker = stage("ranker")
        self.took_us = {}  # by stage, of the last batch

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position."""
        return self.ranker.check_top_k(inputs["top_k"], sizes)

    def run(self, inputs):
        known, ends = dict(inputs), [time.perf_counter_ns()]
        for stage in (self.query_tower, self.retrieval, self.ranker):
            known.update(stage.run(known))
            ends.append(time.perf_counter_ns())
        names = ("query_tower", "retrieval", "ranker")
        self.took_us = {
            name: (end - start) // 1000
            for name, start, end in zip(names, ends, ends[1:], strict=False)
        }
        return {name: known[name] for name in ("rows", "scores", "wanted", "status")}

    def finish(self, answer):
        return self.ranker.finish(answer)
