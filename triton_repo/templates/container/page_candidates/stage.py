"""Page candidates: query vector in, candidates of all sources of a page out.

No files of its own: the models `candidates` and `page_stage` lie beside it.
"""

import importlib.util
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load(path):
    """The module in a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_stage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def beside(model):
    """The version folder of another model of this bundle."""
    return HERE.parents[1] / model / HERE.name


class Stage(load(beside("candidates") / "stage.py").Stage):  # type: ignore[misc]
    """Retrieval for a page, the page's other sources, then the look-up."""

    def __init__(self, folder):
        super().__init__(beside("candidates"))
        self.page = load(beside("page_stage") / "stage.py").Stage(beside("page_stage"))
        self.retrieval.num_candidates = self.page.settings["num_fetched"]

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: rows that do not exist, wrong cursors."""
        return self.retrieval.check(inputs, sizes) | self.page.check_cursors(inputs, sizes)

    def run(self, inputs):
        found = self.retrieval.run(self.page.without_shown(inputs))
        gathered = self.page.gather({**inputs, **found})
        return self.with_videos(gathered, inputs["request_time"])
