"""What is true of a simulated log's exposures, for checking off-policy estimates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.evaluation.eligible import Shelves
from models.metrics import Float64, Int64
from workflow.data.simulator_policy import PAGE_SIZE, Policy
from workflow.data.simulator_response import WATCH_SPREAD, Context, Truth, log_watch
from workflow.data.simulator_sessions import MAX_PACE_S, pages_at, policy_error
from workflow.data.simulator_world import COUNTRIES, DEVICES, RATINGS
from workflow.errors import DataError
from workflow.frames import read_frame
from workflow.run import Run

_VISIBLE = ["user_id", "video_id", "timestamp", "clicked", "device", "position"]
_HIDDEN = ["intent", "mood", "seen_in_session"]


@dataclass(frozen=True)
class Drawn:
    """Exposures drawn anew: video rows of the run, propensities, clicks and seconds watched."""

    video: Int64
    propensity: Float64
    click: Float64
    watch_s: Float64


class Simulated:
    """The simulator at some logged exposures.

    Args:
        run: a run of the dataset "sim".
        user_row, video_row, timestamp: int64 [n], the exposures, by the run's rows.
    """

    def __init__(self, run: Run, user_row: Int64, video_row: Int64, timestamp: Int64) -> None:
        self.truth = Truth.load(run.source)
        self._policy = Policy(self.truth.world)
        user_ids = read_frame(run.data / "users.parquet", columns=["user_id"])["user_id"]
        video_ids = read_frame(run.data / "videos.parquet", columns=["video_id"])["video_id"]
        self._user_of = self.truth.user_rows(user_ids)
        self._video_of = np.append(-1, self.truth.video_rows(video_ids))  # run's row -> truth's
        self._row_of = np.zeros(len(video_ids), np.int64)  # truth's row -> run's
        self._row_of[self._video_of[1:]] = np.arange(1, len(video_ids) + 1)
        self.user = self._user_of[user_row - 1]
        self.time = timestamp
        log = _log_of(run, self.truth, np.unique(self.user))
        self._past = _Past(log)
        self._event = _find(log, self.user, self._video_of[video_row], timestamp)
        self._context = _context(log.iloc[self._event])

    def shelves(self) -> tuple[Shelves, Int64, Int64]:
        """(shelves by country and age limit, group of each exposure, time of the last refresh).

        A page may be up to a minute older than its last place, so the refresh before that counts.
        """
        videos, people = self.truth.world.videos, self.truth.world.users
        members = [
            self._row_of[np.flatnonzero(videos.available[:, c] & (videos.maturity <= limit))]
            for c in range(len(COUNTRIES))
            for limit in range(len(RATINGS))
        ]
        publish = np.append(0, np.asarray(videos.publish_time)[self._video_of[1:]])
        group = people.country[self.user].astype(np.int64) * len(RATINGS)
        group += people.maturity_limit[self.user]
        refresh = self._policy.refresh_of(self.time - PAGE_SIZE * MAX_PACE_S)
        published_by = self._policy.refresh_times[np.maximum(refresh, 0)]
        return Shelves.arrange(members, publish), group, published_by

    def rewards(self, video_rows: Int64) -> dict[str, Float64]:
        """Expected click and seconds watched of videos at the exposures; float64 [n, m] each.

        Everything else is as it was logged: place, device, intent, session, and what the user had
        been shown and had watched before.
        """
        video = self._video_of[video_rows]
        context = self._at(video)
        place = self.user[:, None], video, self.time[:, None], context
        click = self.truth.click_probability(*place)
        return {"click": click, "watch_s": click * self.truth.expected_watch_s(*place)}

    def _at(self, video: Int64) -> Context:
        repeats, watched = self._past.of(self.user[:, None], video, self._event[:, None])
        fields = {name: value[:, None] for name, value in self._context.items()}
        return Context(**fields, repeats=repeats, watched_before=watched)

    def show_again(self, rng: np.random.Generator) -> Drawn:
        """Draw video and response of every exposure anew, each as the first place of a page.

        The logging policy is the simulator's, with new lasting errors about every user.
        """
        users, owner = np.unique(self.user, return_inverse=True)
        error = policy_error(self.truth.world, rng, len(users))[owner]
        intent, mood = (self._context[name].astype(np.int64) for name in ("intent", "mood"))
        page = pages_at(
            self.truth.world, self._policy, error,
            user=self.user, time=self.time, intent=intent, mood=mood,
        )  # fmt: skip
        every = np.arange(len(self.user))
        video = page.draw(rng, every).astype(np.int64)
        click, watch_s = self._respond(rng, video)
        return Drawn(self._row_of[video], page.probability(every, video), click, watch_s)

    def _respond(self, rng: np.random.Generator, video: Int64) -> tuple[Float64, Float64]:
        context = self._at(video[:, None])
        chance = self.truth.click_probability(
            self.user[:, None], video[:, None], self.time[:, None], context
        )[:, 0]
        click = rng.random(len(video)) < chance
        flat = context.spread((len(video), 1))
        mean = log_watch(self.truth.world, self.user, video, self.time, flat)
        endless = np.exp(mean + WATCH_SPREAD * rng.standard_normal(len(video)))
        duration = self.truth.world.videos.duration_s[video]
        return click.astype(np.float64), np.where(click, np.minimum(endless, duration), 0.0)


def _log_of(run: Run, truth: Truth, users: Int64) -> pd.DataFrame:
    """Visible and hidden columns of all exposures of some users, in the log's order."""
    parts = []
    for path in sorted((run.source / "events").glob("*.parquet")):
        visible = read_frame(path, columns=_VISIBLE)
        hidden = read_frame(run.source / "truth" / "events" / path.name, columns=_HIDDEN)
        frame = pd.concat([visible, hidden], axis=1)
        frame["user"] = truth.user_rows(frame["user_id"].to_numpy())
        frame = frame[np.isin(frame["user"], users)].copy()
        frame["video"] = truth.video_rows(frame["video_id"].to_numpy())
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _find(log: pd.DataFrame, user: Int64, video: Int64, time: Int64) -> Int64:
    """Positions in the log of exposures; the first of several in one second."""
    keys = ["user", "video", "timestamp"]
    known = log[keys].drop_duplicates().reset_index(names="event")
    wanted = pd.DataFrame({"user": user, "video": video, "timestamp": time})
    found = wanted.merge(known, on=keys, how="left")["event"]
    if found.isna().any():
        raise DataError(
            "the simulated log and its truth do not belong together",
            found=f"{int(found.isna().sum()):,} exposures without a truth",
            next_step="marquee run --dataset sim --force",
        )
    result: Int64 = found.to_numpy(np.int64)
    return result


def _context(events: pd.DataFrame) -> dict[str, Any]:
    """Circumstances that do not depend on the video; arrays [n] by field of Context."""
    device = pd.Index(DEVICES).get_indexer(events["device"])
    values = {"device": device, **{name: events[name].to_numpy() for name in _HIDDEN}}
    values["position"] = events["position"].to_numpy()
    names = {field.name for field in dataclasses.fields(Context)}
    return {name: value for name, value in values.items() if name in names}


class _Past:
    """How often a user was shown a video before an event of the log, and whether they clicked."""

    def __init__(self, log: pd.DataFrame) -> None:
        pair = _pair(log["user"].to_numpy(np.int64), log["video"].to_numpy(np.int64))
        self._pairs, code = np.unique(pair, return_inverse=True)
        self._events = len(log)
        order = np.argsort(code, kind="stable")
        self._keys = code[order] * self._events + order
        self._clicks = np.r_[0, np.cumsum(log["clicked"].to_numpy()[order])]

    def of(self, user: Int64, video: Int64, event: Int64) -> tuple[Int64, Any]:
        """(earlier exposures, whether one was clicked); the broadcast shape."""
        pair = _pair(*np.broadcast_arrays(user, video))
        code = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        known = self._pairs[code] == pair
        first = np.searchsorted(self._keys, code * self._events)
        last = np.searchsorted(self._keys, code * self._events + event)
        repeats = np.where(known, last - first, 0)
        return repeats, known & (self._clicks[last] > self._clicks[first])


def _pair(user: Int64, video: Int64) -> Int64:
    result: Int64 = user.astype(np.int64) << 32 | video.astype(np.int64)
    return result
