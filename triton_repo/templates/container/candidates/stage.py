"""Candidates: query vector in, the best candidates and what the ranker's graph reads of them out.

Files: those of retrieval, in the folder retrieval; the tables of the model `answer` are used.
"""

import importlib.util


def load(path):
    """The module in a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_stage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """Searches the index, then looks the candidates up: one step instead of two."""

    def __init__(self, folder):
        self.retrieval = load(folder / "retrieval" / "stage.py").Stage(folder / "retrieval")
        answer = folder.resolve().parents[1] / "answer" / folder.resolve().name
        self.ranker = load(answer / "stage.py").Stage(answer)

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: rows and pointers that do not exist."""
        return self.retrieval.check(inputs, sizes)

    def run(self, inputs):
        return self.with_videos(self.retrieval.run(inputs), inputs["request_time"])

    def with_videos(self, found, moment):
        """And what the ranker's graph reads of the candidates."""
        if not self.ranker.ranks:
            return found
        return found | self.ranker.videos(found["candidate_row"], moment)

    def finish(self, answer):
        return answer
