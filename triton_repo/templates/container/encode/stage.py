"""Encode: raw user id and request context in, what the query tower's graph reads out.

Files: those of the query tower but its graph, in the folder query_tower.
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


class Stage(load(HERE / "query_tower" / "stage.py").Stage):  # type: ignore[misc]
    """The query tower up to its graph, which Triton runs as a model of its own."""

    runs_graph = False

    def __init__(self, folder):
        super().__init__(folder / "query_tower")

    def run(self, inputs):
        return self.with_session_size(self.features(inputs))
