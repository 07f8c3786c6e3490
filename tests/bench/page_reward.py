"""True reward of the page against plain lists of the same candidates, laid out in the same shape.

    python tests/bench/page_reward.py runs/sim

Visits as the simulator draws them, device, intent and mood included; reward and who sees what of a
page: page_truth.py. The lists fill the page's layout row after row, without titles: the candidates
by the ranker's score, in the order of MMR, and by the retriever's score, and what is popular in the
country; the rules are the same. `titles`: the reward if a viewer in the mood for a genre goes to
the row of that title first, where the page has one. Once for the first page of a visit, once for
the next one, after the user watched a video of the first.

Differences are paired; intervals are bootstrapped over users. The exit status is 1 unless the page
is above every list with its whole interval.
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
from workflow.data.simulator_world import GENRES
from workflow.run import Run

LISTS = ("ranker", "mmr", "retriever", "popularity")
LATER_S = 600


def lists_of(service: Service, visit: Visit, later_s: int) -> dict[str, list[Any]]:
    """Rows of videos (of the simulator) by name of the list."""
    known, page = service.ranked(visit, later_s), service.stage.page
    request = page.request(known, 0)
    viewer, past, _, _ = page.look(request._replace(session_size=0))
    with page.hiding(page._unseen(past)):
        popular = page.sources.popular(viewer)
        draft = page.draft_module.Draft(page, request, viewer, past._replace(num_now=0), 0)
        draft._order_candidates()
    by_retriever = request.candidate_row[np.argsort(-known["candidate_score"][0], kind="stable")]
    orders = {
        "ranker": draft.rows[np.argsort(-draft.scores, kind="stable")],
        "mmr": draft.rows,
        "retriever": by_retriever[np.isin(by_retriever, draft.rows)],
        "popularity": popular,
    }
    ids = page.video_id
    return {
        name: laid_out(service.truth.video_rows(ids[rows]), draft.wanted, draft.columns)
        for name, rows in orders.items()
    }


def laid_out(videos: Any, rows: int, columns: int) -> list[Any]:
    return [videos[at : at + columns] for at in range(0, len(videos), columns)][:rows]


def found_by_title(visit: Visit, page: list[Row]) -> list[Any]:
    """The page's rows in the order of a viewer who looks for the mood's genre."""
    rows = [row for row in page if row.kind != "continue"]
    if visit.mood >= 0:
        wanted = tuple(GENRES)[visit.mood]
        rows.sort(key=lambda row: row.kind != "genre" or row.title.lower() != wanted)
    return [row.videos for row in rows]


def rewards(service: Service, visit: Visit, later_s: int = 0) -> tuple[dict[str, float], list[Row]]:
    """(reward of the page and of each list, the page)."""
    page = service.page(visit, later_s)
    rows = {
        "page": recommended(page),
        "titles": found_by_title(visit, page),
        **lists_of(service, visit, later_s),
    }
    return {name: service.reward(visit, one) for name, one in rows.items()}, page


def study(service: Service, visits: list[Visit]) -> dict[str, list[dict[str, float]]]:
    rng = np.random.default_rng(2)
    found: dict[str, list[dict[str, float]]] = {"first page": [], "after a watch": []}
    for visit in visits:
        reward, page = rewards(service, visit)
        found["first page"].append(reward)
        video = service.draw(rng, visit, page)
        if video < 0:
            continue
        watch_s = service.seconds(rng, visit, video)
        service.watch(visit, video, LATER_S // 2, watch_s)
        found["after a watch"].append(rewards(service, visit, LATER_S)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--seed", type=int, default=3, help="of the visits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Run(options.run), Path(folder) / "events.sqlite")
        found = study(service, service.visits(options.users, seed=options.seed))
    is_above = True
    for when, values in found.items():
        mean = {name: round(float(np.mean([v[name] for v in values])), 3) for name in values[0]}
        print(json.dumps({"when": when, "users": len(values), "clicks": mean}), flush=True)
        for name in ("page", "titles"):
            for other in LISTS:
                change = relative([v[name] for v in values], [v[other] for v in values])
                is_above &= name != "page" or change["low"] > 0
                print(json.dumps({"when": when, "of": name, "against": other, **change}))
    sys.exit(0 if is_above else 1)


if __name__ == "__main__":
    main()
