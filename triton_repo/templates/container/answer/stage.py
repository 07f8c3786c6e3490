"""Answer: candidates and the ranker's scores in, raw video ids, sorted scores out.

Files: those of the ranker but its graph, in the folder ranker.
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


class Stage(load(HERE / "ranker" / "stage.py").Stage):  # type: ignore[misc]
    """The ranker after its graph, which Triton runs as a model of its own."""

    runs_graph = False

    def __init__(self, folder):
        super().__init__(folder / "ranker")

    def run(self, inputs):
        return self.sort(inputs, inputs["ranker_score"])
