"""What one watched video does to the next page, for users whose intent the simulator knows.

    python tests/bench/page_intent.py runs/sim

Users in the mood for a genre see a page and watch one of its videos of that genre, drawn by how
likely they see and click each. Ten minutes later they ask again. Compared is that page with the
page of the same second had they not watched: recall of the genre in the first two rows (shown over
all videos of the genre, the watched one aside) must rise for 90% of them. Without the watch, 90%
of the places must show what they showed ten minutes before.

Then what the rows of the open visit do to the true reward (page_truth.py): the page against the
one that the same stages make of the same watch without knowing that the visit is still open, for
these users, and for all users who watched what they came for, whatever that is.

The exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.page_truth import Row, Service, Visit, recommended, relative
from workflow.run import Run

BAR = 0.9
LATER_S = 600
TWO = 2


class Study:
    """Pages with and without a watch."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service, self.rng = service, np.random.default_rng(seed)

    def one(self, visit: Visit) -> dict[str, Any] | None:
        """What one user's watch changes; None where the page has nothing of the genre."""
        service = self.service
        first = service.page(visit)
        video = service.draw(self.rng, visit, first)
        if video < 0:
            return None
        before = service.page(visit, LATER_S)
        service.watch(visit, video, LATER_S // 2, service.seconds(self.rng, visit, video))
        after = service.page(visit, LATER_S)
        tower = service.stage.query_tower
        session, tower.session_part = tower.session_part, slice(0, 0)
        closed = service.page(visit, LATER_S)
        tower.session_part = session
        return {
            "same": same(first, before),
            "kept": float(np.isin(all_of(after), all_of(before)).mean()),
            "recall": [self.of_genre(visit.mood, video, page) for page in (before, after)],
            "kinds": [[row.kind for row in page[:TWO]] for page in (before, after)],
            "reward": [
                service.reward(visit, recommended(page), video) for page in (closed, after, before)
            ],
        }

    def of_genre(self, genre: int, watched: int, page: list[Row]) -> int:
        """Videos of the genre in the first two rows; over a constant it is their recall."""
        shown = all_of(page[:TWO])
        return int((self.service.has(genre, shown) & (shown != watched)).sum())


def all_of(page: list[Row]) -> Any:
    return np.concatenate([np.zeros(0, np.int64), *(row.videos for row in page)])


def same(one: list[Row], other: list[Row]) -> float:
    """Share of places with the same video."""
    a, b = all_of(one), all_of(other)
    size = min(len(a), len(b))
    return float((a[:size] == b[:size]).sum() / max(len(a), len(b)))


def judge(study: Study, visits: list[Visit]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the figures, what happened to each user)."""
    found = [one for one in map(study.one, visits) if one is not None]
    closed, opened, without = np.array([one["reward"] for one in found]).T
    result: dict[str, Any] = {"users": len(found)}
    if all(visit.mood >= 0 for visit in visits):
        before, after = np.array([one["recall"] for one in found]).T
        result |= {
            "recall_rises": round(float((after > before).mean()), 4),
            "recall_same": round(float((after == before).mean()), 4),
            "of_genre_before_and_after": [round(float(v.mean()), 2) for v in (before, after)],
        }
    return result | {
        "identical_without_a_watch": round(float(np.mean([one["same"] for one in found])), 4),
        "kept_after_a_watch": round(float(np.mean([one["kept"] for one in found])), 4),
        "reward_of_open_visit": relative(opened, closed),
        "reward_of_watch": relative(opened, without),
    }, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--verbose", action="store_true", help="a line for each user")
    options = parser.parse_args()
    result = {}
    for name, only_moods in (("mood", True), ("all", False)):
        with tempfile.TemporaryDirectory() as folder:
            service = Service(Run(options.run), Path(folder) / "events.sqlite")
            visits = service.visits(options.users, seed=1, only_moods=only_moods)
            result[name], found = judge(Study(service, 2), visits)
        for one in found if options.verbose else ():
            print(json.dumps(one))
        print(json.dumps({name: result[name]}), flush=True)
    good = [result["mood"][name] >= BAR for name in ("recall_rises", "identical_without_a_watch")]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
