"""Fused page: the stages of this bundle that make a page, one after the other in one process.

Query tower, retrieval, the page's other sources, ranker, page. No files of its own: it reads those
of the stages, which lie beside it in the bundle; how they are run is what the model `fused` does.
"""

import importlib.util
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
EXPLAINED = 2  # a request's want_record: with what the ranker's heads say of the videos shown
ASKED = ("query_index", "query_value", "request_time")  # what the ranker reads of a request


def load(path):
    """The module in a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parents[1].name}_stage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Fused = load(HERE.parents[1] / "fused" / HERE.name / "stage.py").Stage


class Stage(Fused):  # type: ignore[misc, valid-type]
    """The steps of a page."""

    ensemble = "page"
    steps = ("query_tower", "retrieval", "sources", "ranker", "page")
    gives = ("page", "record")

    def __init__(self, folder, state=None):
        super().__init__(folder, state)
        self.page = self.stage("page_stage")
        self.retrieval.num_candidates = self.page.settings["num_fetched"]
        self.candidates = self.page.sources.total

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: cursors that are none."""
        return self.page.check_cursors(inputs, sizes)

    def run_step(self, step, known):
        if step == "query_tower":
            return self.query_tower.with_session_size(self.query_tower.run(known))
        if step == "retrieval":
            found = self.retrieval.run(self.page.without_shown(known))
            return found | {"retrieved_row": found["candidate_row"]}
        if step == "sources":
            return self.page.gather(known)
        if step == "ranker":
            return {"ranker_score": self.scores(known)}
        return super().run_step(step, known)

    def scores(self, known):
        """What candidates are ranked by; float32 [n, candidates]."""
        if not self.ranker.ranks:
            return known["candidate_score"]
        return self.ranker.score(known)

    def run_steps(self, inputs):
        known = super().run_steps(inputs)
        if known.get("want_record") is not None:
            for i in np.flatnonzero(known["want_record"][:, 0] >= EXPLAINED):
                known["record"][i, 0] = self.explained(known, i)
        return known

    def explained(self, known, i):
        """The record of a request with what retrieval and the ranker's heads said, too."""
        alone = {name: known[name][i : i + 1] for name in ASKED}
        said = self.ranker.explain(alone, known["page"][i, 0].rows[None])
        return self.page.record_module.explained(
            known["record"][i, 0],
            known["retrieved_row"][i],
            {name: values[0] for name, values in said.items()},
        )

    def finish(self, answer):
        return self.page.finish(answer)
