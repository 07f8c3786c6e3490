"""Fused page: the stages of this bundle that make a page, one after the other in one process.

Query tower, retrieval, the page's other sources, ranker, page. No files of its own: it reads those
of the stages, which lie beside it in the bundle.
"""

import importlib.util
import time

import numpy as np

STEPS = ("query_tower", "retrieval", "sources", "ranker", "page")


def load(path):
    """The module in a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parents[1].name}_stage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """What one stage gives, the next ones take.

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
        self.page = stage("page_stage")
        self.retrieval.num_candidates = self.page.settings["num_fetched"]
        [self.session] = (
            slice(part["at"], part["at"] + part["length"])
            for part in self.query_tower.layout
            if part["name"] == "session_history"
        )
        self.took_us = {}  # by step, of the last batch

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: cursors that are none."""
        if inputs.get("cursor") is None:
            return {}
        refused, start = {}, 0
        for position, size in enumerate(sizes):
            problems = map(self.page.cursor_problem, [inputs] * size, range(start, start + size))
            problem = next((one for one in problems if one), None)
            if problem:
                refused[position] = problem
                inputs["cursor"][start : start + size] = b""
            start += size
        return refused

    def run(self, inputs):
        known, ends = dict(inputs), [time.perf_counter_ns()]
        for step in STEPS:
            known.update(getattr(self, f"run_{step}")(known))
            ends.append(time.perf_counter_ns())
        self.took_us = {
            name: (end - start) // 1000
            for name, start, end in zip(STEPS, ends, ends[1:], strict=False)
        }
        return {name: known[name] for name in ("page", "record")}

    def run_query_tower(self, known):
        """And how many watches the open session has, which the tower has as a list."""
        answer = self.query_tower.run(known)
        session = answer["query_index"][:, self.session]
        size = np.count_nonzero(session, axis=1).astype(np.int32)
        return answer | {"session_size": size[:, None]}

    def run_retrieval(self, known):
        """What earlier answers showed is left out as what was watched is."""
        shown = self.page.shown(known)
        if shown.shape[1] == 0:
            return self.retrieval.run(known)
        left_out = np.concatenate([known["online_row"], shown], axis=1)
        return self.retrieval.run(known | {"online_row": left_out})

    def run_sources(self, known):
        return self.page.gather(known)

    def run_ranker(self, known):
        if not self.ranker.ranks:
            return {"ranker_score": known["candidate_score"]}
        return {"ranker_score": self.ranker.score(known, known["candidate_row"])}

    def run_page(self, known):
        return self.page.run(known)

    def finish(self, answer):
        return self.page.finish(answer)
