"""What diversity costs and brings: the three methods over a simulated run's own candidates.

    python tests/bench/page_diversity.py runs/sim

Of each method and strength, over users: true click probability of the first row and of the first
150 videos (the simulator's, as a share of that without diversity), likeness of neighbours within
the first row and within the 150, different genres in the first row, and CPU of choosing 150.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from triton_repo.local import LocalPage, as_tensors
from workflow.data.simulator import Context, Truth
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run

STRENGTHS = {
    "none": (0.0,),
    "mmr": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    "spectrum": (0.1, 0.3, 0.5, 0.7),
    "dpp": (0.05, 0.1, 0.2, 0.4),
}
ROW, DEPTH = 20, 150
TV = 1


class Ranked:
    """Candidates that the rules allow of some users, best first, with what is true of them."""

    def __init__(self, run: Run, num_users: int) -> None:
        store = FeatureStore(run)
        moment = FeatureSpec.load(store.root / "spec.json").last_event + 60
        local = LocalPage(run).stage
        truth = Truth.load(run.source)
        users = np.random.default_rng(0).permutation(np.asarray(store.user("user_id")))
        self.page, self.lists = local.page, []
        for user in users[:num_users].tolist():
            known = as_tensors(user, time=moment, context={"device": b"tv"})
            for step in ("query_tower", "retrieval", "sources", "ranker"):
                known |= local.run_step(step, known)
            row = known["candidate_row"][0]
            score = known["ranker_score"][0][row > 0]
            order = np.argsort(-score, kind="stable")
            rows = row[row > 0][order]
            chance = truth.click_probability(
                truth.user_rows([user]), truth.video_rows(local.page.video_id[rows]), moment,
                Context(device=TV),
            )  # fmt: skip
            self.lists.append((rows, score[order], np.asarray(chance).reshape(-1)))

    def judge(self, method: str, strength: float) -> dict[str, float]:
        """Means over the users."""
        found = [self._one(method, strength, *one) for one in self.lists]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def _one(self, method: str, s: float, rows: Any, score: Any, chance: Any) -> dict[str, float]:
        relevance = ((score - score[-1]) / max(score[0] - score[-1], 1e-9)).astype(np.float32)
        vectors = self.page.diversity_vector[rows]
        started = time.thread_time_ns()
        order = self.page.diversity_module.METHODS[method](relevance, vectors, DEPTH, s)
        took_us = (time.thread_time_ns() - started) / 1e3
        groups = self.page.group[rows[order[:ROW]]]
        return {
            "clicks_row": chance[order[:ROW]].sum(),
            "clicks_150": chance[order].sum(),
            "likeness_row": _likeness(vectors[order[:ROW]]),
            "likeness_150": _likeness(vectors[order]),
            "genres_row": len(np.unique(groups[groups > 0])),
            "cpu_us": took_us,
        }


def _likeness(vectors: Any) -> float:
    """Mean cosine of all pairs."""
    count = len(vectors)
    return float((np.square(vectors.sum(axis=0)).sum() - count) / (count * (count - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=300)
    options = parser.parse_args()
    ranked = Ranked(Run(options.run), options.users)
    base = ranked.judge("none", 0.0)
    for method, strengths in STRENGTHS.items():
        for strength in strengths:
            found = ranked.judge(method, strength)
            for name in ("clicks_row", "clicks_150"):
                found[name] /= base[name]
            shown = {name: round(value, 3) for name, value in found.items()}
            print(json.dumps({"method": method, "strength": strength, **shown}), flush=True)


if __name__ == "__main__":
    main()
