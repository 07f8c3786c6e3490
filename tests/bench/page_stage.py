"""The page stage: CPU of a page and of its diversity, and 20,000 random pages against the rules.

    python tests/bench/page_stage.py                    # made-up candidates
    python tests/bench/page_stage.py --run runs/sim     # and how stable a run's pages are

CPU time of one thread; of each figure the 5th, 50th and 95th percentile over calls, since other
work on the machine makes any call slower. The methods of diversity take turns.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.pages import DAY, NOW, Catalogue, check_pages, load, unit

CANDIDATES, DEPTH = 500, 150
ROWS, COLUMNS = 40, 20
PER_CATALOGUE = 50


def stage_and_requests(folder: Path, num_videos: int = 4_000) -> tuple[Any, list[dict[str, Any]]]:
    """A stage with 18 genres and nothing forbidden, and requests with 500 candidates each."""
    rng = np.random.default_rng(1)
    catalogue = Catalogue.random(
        17, num_videos, layouts={"tv": [ROWS, COLUMNS]}, default_device="tv", because_rows=3,
        explore_slots=2, min_row_videos=4, diversity_depth=DEPTH,
    )  # fmt: skip
    catalogue.allowed[:], catalogue.rating[:], catalogue.since[:] = True, 0, 0
    catalogue.until[:] = NOW + 1_000 * DAY
    catalogue.published = np.minimum(catalogue.published, NOW - DAY)
    requests = []
    for user in range(1, 21):
        source = np.ones(CANDIDATES, np.int64)
        for bits, share in (
            (4, 0.12),
            (8, 0.1),
            (2 | 256, 0.07),
            (2 | 512, 0.07),
            (2 | 1024, 0.07),
        ):
            source[rng.random(CANDIDATES) < share] |= bits
        rows = rng.permutation(num_videos)[:CANDIDATES] + 1
        score = rng.normal(size=CANDIDATES)
        requests.append(catalogue.inputs(user, rows, source=source, score=score, device="tv"))
    return catalogue.stage(folder), requests


def cpu_us(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU a call, taking turns: [5th, 50th, 95th percentile]."""
    took: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.thread_time_ns()
            call()
            took[name].append(time.thread_time_ns() - started)
    return {
        name: [round(float(p) / 1e3, 1) for p in np.percentile(one, [5, 50, 95])]
        for name, one in took.items()
    }


def cost(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        stage, requests = stage_and_requests(Path(folder))
        rng = np.random.default_rng(0)
        vectors = unit(rng.normal(size=(CANDIDATES, 16)))
        relevance = -np.sort(-rng.random(CANDIDATES).astype(np.float32))
        turn = itertools.cycle(requests)
        calls: dict[str, Callable[[], Any]] = {
            name: lambda method=method: method(relevance, vectors, DEPTH, 0.3)
            for name, method in load("diversity").METHODS.items()
        }
        found = cpu_us({"page": lambda: stage.finish(stage.run(next(turn)))}, rounds)
        found |= cpu_us(calls, rounds)
        pages = [stage.run(one)["page"][0, 0] for one in requests]
    sizes = [(len(page.sizes), len(page.rows)) for page in pages]
    return {"us": found, "mean_rows_and_videos": np.mean(sizes, axis=0).round(1).tolist()}


def violations(pages: int) -> dict[str, Any]:
    """`pages` random pages over catalogues of all sizes and methods."""
    found: list[str] = []
    videos = 0
    for seed in range(-(-pages // PER_CATALOGUE)):
        with tempfile.TemporaryDirectory() as folder:
            shown, problems = check_pages(Path(folder), 1_000 + seed, PER_CATALOGUE)
        videos, found = videos + shown, found + problems
    return {"pages": seed * PER_CATALOGUE + PER_CATALOGUE, "videos": videos, "problems": found}


def stability(run: Path, num_users: int) -> dict[str, Any]:
    """Share of places with the same video when the same user asks again later, as the web."""
    from triton_repo.local import LocalPage, as_tensors
    from workflow.features.encoded import FeatureStore
    from workflow.features.spec import FeatureSpec
    from workflow.run import Run

    store = FeatureStore(Run(run))
    start = FeatureSpec.load(store.root / "spec.json").last_event // DAY * DAY + DAY
    users = np.random.default_rng(0).permutation(np.asarray(store.user("user_id")))[:num_users]
    local = LocalPage(Run(run))

    def ids(user: Any, later_s: int) -> Any:
        return np.array(local.page(as_tensors(user, time=start + later_s)).video_ids)

    result = {}
    first = [ids(user, 60) for user in users.tolist()]
    for name, later_s in (("1 minute", 120), ("10 minutes", 660), ("50 minutes", 3_060),
                          ("1 day", DAY + 60)):  # fmt: skip
        later = [ids(user, later_s) for user in users.tolist()]
        same = [
            float((a[: len(b)] == b[: len(a)]).mean()) for a, b in zip(first, later, strict=True)
        ]
        result[name] = {"mean": round(float(np.mean(same)), 4),
                        "5th percentile": round(float(np.percentile(same, 5)), 4)}  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--users", type=int, default=200)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    if options.rounds:
        result["cost"] = cost(options.rounds)
        print(json.dumps(result["cost"]), flush=True)
    if options.pages:
        result["violations"] = violations(options.pages)
        print(json.dumps(result["violations"]), flush=True)
    if options.run:
        result["same"] = stability(options.run, options.users)
        print(json.dumps(result["same"]), flush=True)


if __name__ == "__main__":
    main()
