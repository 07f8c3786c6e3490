"""How users respond: the probability of a click and the seconds watched, and `Truth` over both.

The same two functions make the log and answer questions about it later, so they cannot disagree.
Sources of the coefficients: SIMULATOR.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr

from workflow.config import SimConfig
from workflow.data.simulator_random import Array, row_dot, sigmoid
from workflow.data.simulator_world import (
    COUNTRIES,
    DAY,
    DEVICES,
    LANGUAGE_OF,
    POPULARITY_SPREAD,
    UTC_OFFSET_S,
    Users,
    Videos,
    World,
    load_arrays,
    save_arrays,
)
from workflow.errors import DataError, MissingArtifactError
from workflow.run import read_json, write_json

INTENTS = ("browse", "mood", "continue", "explore")
TASTE_WEIGHT = np.array([6.0, 5.2, 7.2, 4.0])  # by intent
FRESH_WEIGHT = np.array([0.5, 0.4, 0.3, 1.0])  # by intent
QUALITY_WEIGHT = 0.45
MOOD_BONUS = 0.9  # the video has the genre the user is in the mood for
LANGUAGE_BONUS = 0.35
EVENING_WEIGHT = 0.35
POSITION_WEIGHT = -0.45  # times log(1 + position)
SESSION_WEIGHT = -0.025  # per exposure already seen in the session
REPEAT_WEIGHT = -0.45  # times log(1 + earlier exposures of the same video)
WATCHED_PENALTY = -1.6  # the user has watched this video before
FRESH_DAYS = 10.0
#                           short  episode  film
KIND_ON_DEVICE = np.array([[0.35, 0.00, -0.55],  # phone
                           [-0.60, 0.20, 0.55],  # tv
                           [0.05, 0.10, 0.00],  # tablet
                           [0.05, 0.10, -0.10]])  # web  # fmt: skip

WATCH_SCALE = 5.0  # seconds watched = scale * duration ** power * exp(...), cut at the duration
WATCH_POWER = 0.66  # below 1: longer videos hold for more seconds but a smaller part
WATCH_SPREAD = 0.9
WATCH_TASTE, WATCH_QUALITY, WATCH_EXPLORE = 1.5, 0.25, -0.3
WATCH_DEVICE = np.array([-0.1, 0.25, 0.05, 0.0])


@dataclass(frozen=True)
class Context:
    """The circumstances of an exposure. Each field is a scalar or an array of one per pair.

    The defaults are a neutral exposure: browsing on the phone, first place, nothing seen before.
    """

    device: Any = 0  # index into DEVICES
    position: Any = 0  # 0-based place on the page
    intent: Any = 0  # index into INTENTS
    mood: Any = -1  # index into GENRES, -1 = no particular mood
    seen_in_session: Any = 0  # exposures before this one in the session
    repeats: Any = 0  # earlier exposures of this video to this user
    watched_before: Any = False  # the user clicked this video before

    def spread(self, shape: tuple[int, ...], part: slice | None = None) -> Context:
        """Every field broadcast to `shape`, made flat, and cut to `part`."""
        values = [
            np.broadcast_to(np.asarray(getattr(self, field.name)), shape).ravel()
            for field in dataclasses.fields(self)
        ]
        return Context(*(value[part] if part is not None else value for value in values))


def taste_at(world: World, users: Array, time: Array) -> Array:
    """Tastes at a time: they turn steadily from `taste` towards `drift_to`; unit rows [n, d]."""
    table = world.users
    days = (np.asarray(time, dtype=np.float64) - world.start) / DAY
    angle = (table.drift_rate[users] * np.clip(days, -3650, 3650)).astype(np.float32)
    turned = np.cos(angle)[:, None] * table.taste[users]
    return np.asarray(turned + np.sin(angle)[:, None] * table.drift_to[users])


def click_logit(world: World, users: Array, videos: Array, time: Array, ctx: Context) -> Array:
    """The log-odds of a click for matching rows of flat arrays; float64 [n]."""
    people, catalogue = world.users, world.videos
    country = people.country[users]
    match = row_dot(taste_at(world, users, time), catalogue.vector[videos])
    age_days = np.maximum(time - catalogue.publish_time[videos], 0) / DAY
    popularity = catalogue.popularity[country, videos] / POPULARITY_SPREAD
    liked = (catalogue.genres[videos] == np.asarray(ctx.mood)[:, None]).any(axis=1)
    liked &= np.asarray(ctx.mood) >= 0
    own_language = catalogue.language[videos] == LANGUAGE_OF[country]
    evening = np.cos((_local_hour(country, time) - 21.0) * (np.pi / 12))
    return np.asarray(
        world.base_logit
        + people.click_bias[users]
        + TASTE_WEIGHT[ctx.intent] * match
        + QUALITY_WEIGHT * catalogue.quality[videos]
        + MOOD_BONUS * liked
        + LANGUAGE_BONUS * own_language
        + people.conformity[users] * popularity
        + FRESH_WEIGHT[ctx.intent] * np.exp(-age_days / FRESH_DAYS)
        + KIND_ON_DEVICE[ctx.device, catalogue.kind[videos]]
        + EVENING_WEIGHT * catalogue.evening[videos] * evening
        + POSITION_WEIGHT * np.log1p(ctx.position)
        + SESSION_WEIGHT * np.asarray(ctx.seen_in_session)
        + REPEAT_WEIGHT * np.log1p(ctx.repeats)
        + WATCHED_PENALTY * np.asarray(ctx.watched_before)
    )


def log_watch(world: World, users: Array, videos: Array, time: Array, ctx: Context) -> Array:
    """Mean log of the seconds a clicking user would watch if the video never ended."""
    catalogue = world.videos
    match = row_dot(taste_at(world, users, time), catalogue.vector[videos])
    return np.asarray(
        np.log(WATCH_SCALE)
        + WATCH_POWER * np.log(catalogue.duration_s[videos])
        + WATCH_TASTE * (match - 0.35)
        + WATCH_QUALITY * catalogue.quality[videos]
        + WATCH_DEVICE[ctx.device]
        + WATCH_EXPLORE * (np.asarray(ctx.intent) == INTENTS.index("explore"))
    )


def mean_watch_s(log_mean: Array, duration_s: Array) -> Array:
    """E[min(duration, LogNormal(log_mean, WATCH_SPREAD))], in closed form."""
    edge = (np.log(duration_s) - log_mean) / WATCH_SPREAD
    inside = np.exp(log_mean + WATCH_SPREAD**2 / 2) * ndtr(edge - WATCH_SPREAD)
    return np.asarray(inside + duration_s * (1 - ndtr(edge)))


def _local_hour(country: Array, time: Array) -> Array:
    return np.asarray((time + UTC_OFFSET_S[country]) % DAY / 3600)


class Truth:
    """What is really so in a simulated dataset: ask for any user, video, time and context.

    Rows are 0-based row numbers of users.parquet and videos.parquet (both sorted by id).
    Example: `Truth.load(folder).click_probability([[0], [1]], [[3, 4, 5]], time)` is a 2 x 3 table.
    """

    _PAIRS_AT_ONCE = 262_144

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """Read the truth of a dataset that `simulate` wrote into `folder`.

        Raises:
            MissingArtifactError: the folder holds no truth.
        """
        truth = folder / "truth"
        if not (truth / "world.json").exists():
            raise MissingArtifactError(
                f"no ground truth in {folder}", expected="truth/world.json",
                next_step="only the sim dataset has one: marquee run --dataset sim",
            )  # fmt: skip
        values = read_json(truth / "world.json")
        return cls(World(
            config=SimConfig(**values["config"]),
            users=load_arrays(Users, truth / "users"),
            videos=load_arrays(Videos, truth / "videos"),
            genre_vectors=np.load(truth / "genre_vectors.npy", allow_pickle=False),
            base_logit=values["base_logit"],
        ))  # fmt: skip

    def user_rows(self, user_ids: Any) -> Array:
        """Row numbers of raw user ids. Raises DataError for an unknown id."""
        return _rows(self.world.users.user_id, np.asarray(user_ids), "user")

    def video_rows(self, video_ids: Any) -> Array:
        """Row numbers of raw video ids. Raises DataError for an unknown id."""
        return _rows(self.world.videos.video_id, np.asarray(video_ids), "video")

    def click_probability(
        self, user_rows: Any, video_rows: Any, timestamp: Any, context: Context = Context()
    ) -> Array:
        """P(click | user, video, time, context).

        Args:
            user_rows, video_rows, timestamp: integers of any shapes that broadcast together.
            context: the circumstances; its fields broadcast too.
        Returns:
            float64, the broadcast shape.
        """
        return self._over_pairs(
            lambda *pair: sigmoid(click_logit(self.world, *pair)),
            user_rows, video_rows, timestamp, context,
        )  # fmt: skip

    def expected_watch_s(
        self, user_rows: Any, video_rows: Any, timestamp: Any, context: Context = Context()
    ) -> Array:
        """E[seconds watched | click]; times `click_probability` it is the unconditional mean."""

        def mean(users: Array, videos: Array, time: Array, ctx: Context) -> Array:
            log_mean = log_watch(self.world, users, videos, time, ctx)
            return mean_watch_s(log_mean, self.world.videos.duration_s[videos])

        return self._over_pairs(mean, user_rows, video_rows, timestamp, context)

    def eligible(self, user_rows: Any, video_rows: Any, timestamp: Any) -> Array:
        """Whether the video may be shown: available, published, rated within the limit; bool."""
        users, videos = np.asarray(user_rows), np.asarray(video_rows)
        people, catalogue = self.world.users, self.world.videos
        return np.asarray(
            catalogue.available[videos, people.country[users]]
            & (catalogue.maturity[videos] <= people.maturity_limit[users])
            & (catalogue.publish_time[videos] <= np.asarray(timestamp))
        )

    def _over_pairs(
        self, function: Any, user_rows: Any, video_rows: Any, timestamp: Any, context: Context
    ) -> Array:
        """Broadcast, then work through the pairs in pieces so that memory stays small."""
        inputs = [np.asarray(value) for value in (user_rows, video_rows, timestamp)]
        extra = [np.asarray(getattr(context, f.name)) for f in dataclasses.fields(context)]
        shape = np.broadcast_shapes(*(value.shape for value in inputs + extra))
        flat = [np.broadcast_to(value, shape).ravel() for value in inputs]
        result = np.empty(int(np.prod(shape)), dtype=np.float64)
        for first in range(0, len(result), self._PAIRS_AT_ONCE):
            part = slice(first, first + self._PAIRS_AT_ONCE)
            result[part] = function(*(v[part] for v in flat), context.spread(shape, part))
        return result.reshape(shape)


def save_world(world: World, folder: Path) -> None:
    """Write everything `Truth.load` reads, below `folder`/truth."""
    truth = folder / "truth"
    save_arrays(world.users, truth / "users")
    save_arrays(world.videos, truth / "videos")
    np.save(truth / "genre_vectors.npy", world.genre_vectors, allow_pickle=False)
    write_json(truth / "world.json", {
        "config": world.config.model_dump(mode="json"),
        "base_logit": world.base_logit,
        "countries": COUNTRIES, "devices": DEVICES, "intents": INTENTS,
    })  # fmt: skip


def _rows(table: Array, ids: Array, what: str) -> Array:
    rows = np.minimum(np.searchsorted(table, ids), len(table) - 1)
    if not np.array_equal(table[rows], ids):
        unknown = ids[np.asarray(table[rows]) != ids].ravel()[0]
        raise DataError(f"no simulated {what} {unknown}", expected=f"a raw {what}_id")
    return np.asarray(rows)
