"""Exploration: how soon new videos are seen, with and without its slots, and what that costs.

    python tests/bench/exploration.py runs/sim

Days of visits after the log, users as often as they are active, all answered by the exported
stages in this process from one bundle. New: published in the week before the log's end. A video is
seen on a page with the probability that its place is looked at (page_truth.py); the time to the
first impression is when the probability of having been seen at least once passes one half. For
each number of slots: the share of new videos seen by the end of each day (the sum of those
probabilities), the median time over the videos (null: not within the days), those never shown, and
the true reward of the pages against none, paired by visit, bootstrapped over visits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.page_truth import Service, Visit, relative, seen
from workflow.run import Run

DAY, NEW_DAYS = 86_400, 7


class Seen:
    """Which of the new videos were seen by when.

    Args:
        new: their rows in the simulator.
    """

    def __init__(self, count: int, new: Any) -> None:
        self.new, self.unseen = new, np.ones(count)  # probability of not having been seen
        self.first = np.full(count, np.inf)
        self.by_day: list[float] = []

    def add(self, rows: list[Any], time: int) -> None:
        videos = np.concatenate([np.zeros(0, np.int64), *rows])
        self.unseen[videos] *= 1 - seen(rows)
        late = videos[(self.unseen[videos] < 0.5) & np.isinf(self.first[videos])]
        self.first[late] = time

    def end_day(self) -> None:
        self.by_day.append(round(float(1 - self.unseen[self.new].mean()), 4))

    def summary(self, start: int) -> dict[str, Any]:
        hours = float(np.median(self.first[self.new]) - start) / 3_600
        return {
            "seen_by_day": self.by_day,
            "median_hours": round(hours, 1) if np.isfinite(hours) else None,
            "never_shown": int((self.unseen[self.new] == 1).sum()),
        }


def days_of_visits(service: Service, days: int, per_day: int) -> list[list[Visit]]:
    rng = np.random.default_rng(4)
    activity = service.truth.world.users.activity[service.truth.user_rows(service.user_ids)]
    chance = activity / activity.sum(dtype=np.float64)
    found = []
    for day in range(days):
        ids = rng.choice(service.user_ids, per_day, p=chance)
        time = service.last_event + 60 + day * DAY + np.sort(rng.integers(0, DAY, per_day))
        found.append(service.visits_at(rng, ids, time))
    return found


def rows_of(service: Service, known: dict[str, Any]) -> list[Any]:
    """The recommended rows of a page; videos by row of the simulator."""
    stage = service.stage.page
    page = stage.run(known)["page"][0, 0]
    ends = np.cumsum(page.sizes)
    videos = service.truth.video_rows(stage.video_id[page.rows])
    parts = np.split(videos, ends[:-1]) if len(ends) else []
    return [part for kind, part in zip(page.kinds, parts, strict=True) if kind != b"continue"]


def study(service: Service, days: list[list[Visit]], slots: list[int]) -> dict[int, dict[str, Any]]:
    videos, settings = service.truth.world.videos, service.stage.page.settings
    age_s = service.last_event - np.asarray(videos.publish_time)
    new = np.flatnonzero((age_s >= 0) & (age_s < NEW_DAYS * DAY))
    tallies = {count: Seen(len(age_s), new) for count in slots}
    rewards: dict[int, list[float]] = {count: [] for count in slots}
    for visits in days:
        for visit in visits:
            known = service.ranked(visit)
            for count in slots:
                settings["explore_slots"] = count
                rows = rows_of(service, known)
                tallies[count].add(rows, visit.time)
                rewards[count].append(service.reward(visit, rows))
        for tally in tallies.values():
            tally.end_day()
    start = days[0][0].time
    return {
        count: {
            "new_videos": len(new),
            **tallies[count].summary(start),
            "reward": relative(rewards[count], rewards[slots[0]]),
        }
        for count in slots
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--visits", type=int, default=700, help="a day")
    parser.add_argument("--slots", type=int, nargs="+", default=[0, 1, 2, 4])
    options = parser.parse_args()
    service = Service(Run(options.run))
    days = days_of_visits(service, options.days, options.visits)
    for count, found in study(service, days, options.slots).items():
        print(json.dumps({"slots": count, **found}), flush=True)


if __name__ == "__main__":
    main()
