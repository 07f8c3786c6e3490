"""Pages of a simulated run's users and what is true of them: for the benches that judge pages.

How much of a page is seen: a viewer looks at row r with probability 0.85^r and then at place c of
it with 0.9^c (both from 0), the geometric model of Moffat & Zobel, "Rank-biased precision", TOIS
2008, downwards and sideways. A page's reward is the expected number of clicks: the sum over places
of that probability times the simulator's true click probability, given the user, the moment, the
device, the (hidden) intent of the visit, and how often the log showed the user the video before.
The row Continue watching is left out of rewards: the simulator knows no wish to finish a video.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.dataset as ds

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.evaluation.bootstrap import resampled_means, summary
from triton_repo.local import LocalPage, as_tensors
from workflow.data.simulator import Context, Truth
from workflow.data.simulator_response import DEVICES, INTENTS, WATCH_SPREAD
from workflow.data.simulator_sessions import session_kinds
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.run import Run

ROW_SEEN, PLACE_SEEN = 0.85, 0.9
HOUR = 3_600
MOOD = INTENTS.index("mood")


class Visit(NamedTuple):
    """A user who comes, and what nobody but the simulator knows of it: intent and mood."""

    user_id: int
    user: int  # row in the simulator
    time: int
    device: int
    intent: int
    mood: int  # genre, -1 = none


class Row(NamedTuple):
    """A row of a page: rows of its videos in the simulator."""

    kind: str
    title: str
    videos: Any


class Service:
    """A run's page stages in this process, with the simulator's truth beside them.

    Args:
        run: a run of the dataset "sim" with an export; nothing is written to it.
        state: file for what users watch online; None: nothing is told.
    """

    def __init__(self, run: Run, state: Path | None = None) -> None:
        self.truth = Truth.load(run.source)
        self.local = LocalPage(run, None if state is None else str(state))
        self.stage = self.local.stage
        store = FeatureStore(run)
        self.last_event = FeatureSpec.load(store.root / "spec.json").last_event
        self.user_ids = np.asarray(store.user("user_id"))
        self.store = None if state is None else self.stage.query_tower.profiles.store
        log = ds.dataset(run.source / "events").to_table(["user_id", "video_id"])
        pairs = self._pairs(
            self.truth.user_rows(log["user_id"].to_numpy()),
            self.truth.video_rows(log["video_id"].to_numpy()),
        )
        self.shown, self.times = np.unique(pairs, return_counts=True)

    @staticmethod
    def _pairs(user: Any, video: Any) -> Any:
        return np.asarray(user, np.int64) << 32 | np.asarray(video, np.int64)

    def visits(self, count: int, seed: int = 0, only_moods: bool = False) -> list[Visit]:
        """Visits of different users in the day after the log, as the simulator draws them.

        In the first 45 minutes of an hour, so that some minutes later it is still that hour.

        Args:
            only_moods: those who are in the mood for a genre.
        """
        rng = np.random.default_rng(seed)
        ids = rng.permutation(self.user_ids)
        time = (self.last_event // HOUR + rng.integers(1, 24, len(ids))) * HOUR
        time += rng.integers(0, 2_700, len(ids))
        every = self.visits_at(rng, ids, time)
        return [one for one in every if not only_moods or one.intent == MOOD][:count]

    def visits_at(self, rng: Any, user_ids: Any, time: Any) -> list[Visit]:
        """Visits of users at times, with what the simulator draws for each."""
        users = self.truth.user_rows(user_ids)
        kinds = session_kinds(self.truth.world, rng, users, time)
        columns = np.stack([user_ids, users, time, *kinds], axis=1)
        return [Visit(*row) for row in columns.tolist()]

    def request(self, visit: Visit, later_s: int = 0, **more: Any) -> dict[str, Any]:
        """A visit's request as tensors."""
        context = {"device": DEVICES[visit.device].encode(), **more}
        return as_tensors(visit.user_id, time=visit.time + later_s, context=context)

    def ranked(self, visit: Visit, later_s: int = 0) -> dict[str, Any]:
        """What the page stage takes for a visit: candidates of all sources, with their scores."""
        known = self.request(visit, later_s)
        for step in ("query_tower", "retrieval", "sources", "ranker"):
            known |= self.stage.run_step(step, known)
        return known

    def page(self, visit: Visit, later_s: int = 0) -> list[Row]:
        """The page of a visit."""
        page = self.local.page(self.request(visit, later_s))
        return [
            Row(row.kind, row.title, self.truth.video_rows([v.video_id for v in row.videos]))
            for row in page.rows
        ]

    def watch(self, visit: Visit, video: int, later_s: int, watch_s: float | None = None) -> None:
        """Tell of a watch, as the events' model stores it."""
        video_id = int(self.truth.world.videos.video_id[video])
        event = [visit.time + later_s, video_id, 1, watch_s]
        assert self.store is not None
        self.store.add({b"%d" % visit.user_id: [event]})

    def clicks(self, visit: Visit, videos: Any) -> Any:
        """True click probability of videos (rows in the simulator) where they are looked at."""
        pairs = self._pairs(visit.user, videos)
        at = np.minimum(np.searchsorted(self.shown, pairs), len(self.shown) - 1)
        repeats = np.where(self.shown[at] == pairs, self.times[at], 0)
        context = Context(
            device=visit.device, intent=visit.intent, mood=visit.mood, repeats=repeats
        )
        return self.truth.click_probability(visit.user, videos, visit.time, context)

    def draw(self, rng: Any, visit: Visit, page: list[Row]) -> int:
        """A video of a page that the user watches, one of the mood's genre if they are in one.

        Drawn by how likely they see and click each; -1 where there is none.
        """
        rows = recommended(page)
        videos = np.concatenate([np.zeros(0, np.int64), *rows])
        chance = seen(rows) * self.clicks(visit, videos)
        if visit.mood >= 0:
            chance = chance * self.has(visit.mood, videos)
        return int(rng.choice(videos, p=chance / chance.sum())) if chance.any() else -1

    def has(self, genre: int, videos: Any) -> Any:
        """Whether videos have a genre; bool, their shape."""
        return (self.truth.world.videos.genres[videos] == genre).any(axis=1)

    def seconds(self, rng: Any, visit: Visit, video: int) -> float:
        """How long a user watches: spread about the expectation, at most the whole video."""
        whole = float(self.truth.world.videos.duration_s[video])
        mean = float(self.truth.expected_watch_s(visit.user, video, visit.time))
        return min(whole, mean * float(np.exp(WATCH_SPREAD * rng.standard_normal())))

    def reward(self, visit: Visit, rows: list[Any], without: int = -1) -> float:
        """Expected clicks of rows of videos, given from the top.

        Args:
            without: a video whose clicks do not count.
        """
        if not rows:
            return 0.0
        videos = np.concatenate(rows)
        return float(seen(rows) @ (self.clicks(visit, videos) * (videos != without)))


def recommended(page: list[Row]) -> list[Any]:
    """The videos of a page's rows, without Continue watching."""
    return [row.videos for row in page if row.kind != "continue"]


def seen(rows: list[Any]) -> Any:
    """The probability that each place is looked at, one row after the other."""
    one = [ROW_SEEN**r * PLACE_SEEN ** np.arange(len(row)) for r, row in enumerate(rows)]
    return np.concatenate([np.zeros(0), *one])


def relative(ours: Any, theirs: Any) -> dict[str, float]:
    """Paired difference of means as a share of theirs, with its bootstrap interval over users."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    change = (ours - theirs) / theirs.mean()
    found = summary("change", change, resampled_means(change))
    return {name: round(value, 4) for name, value in found.items()}
