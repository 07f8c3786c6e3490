"""The simulated world: who the users are and what the videos are, before anybody watches.

Everything here is truth. Only `visible_users` and `visible_videos` choose what a dataset shows.
Sources of the parameters: SIMULATOR.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from workflow.config import SimConfig
from workflow.data.simulator_random import Array, draw_rows, generator, unit
from workflow.data.simulator_titles import make_titles

DAY = 86_400
LOG_END = 1_769_817_600  # 2026-01-31T00:00:00Z: fixed, so that a dataset never depends on today
DIMENSIONS = 24
LEAVING = 7  # random stream of `_departures`; simulator.py has the others

COUNTRIES = ("US", "IN", "BR", "DE", "JP", "FR", "MX", "GB")
COUNTRY_SHARE = np.array([0.30, 0.20, 0.14, 0.09, 0.08, 0.07, 0.07, 0.05])
UTC_OFFSET_S = np.array([-6.0, 5.5, -3.0, 1.0, 9.0, 1.0, -6.0, 0.0]) * 3600
LANGUAGES = ("en", "hi", "pt", "de", "ja", "fr", "es")
LANGUAGE_OF = np.array([0, 1, 2, 3, 4, 5, 6, 0])  # country -> language
AGE_BANDS = ("0-12", "13-17", "18-24", "25-34", "35-49", "50+")
AGE_SHARE = np.array([0.07, 0.09, 0.20, 0.26, 0.23, 0.15])
RATINGS = ("all", "13+", "18+")
DEVICES = ("phone", "tv", "tablet", "web")
DEVICE_SHARE = np.array([0.50, 0.25, 0.10, 0.15])
KINDS = ("short", "episode", "film")
KIND_SHARE = np.array([0.45, 0.35, 0.20])
KIND_SECONDS = np.array([75.0, 1_560.0, 6_000.0])  # median duration
KIND_SPREAD = np.array([0.7, 0.45, 0.25])  # sigma of log duration
# genre: share of videos, lean to older users, evening lean, chances of ratings (all, 13+, 18+)
GENRES: dict[str, tuple[float, float, float, tuple[float, float, float]]] = {
    "action": (9, -0.2, 0.3, (0.1, 0.6, 0.3)), "animation": (6, -0.8, -0.4, (0.7, 0.25, 0.05)),
    "anime": (5, -0.9, 0.1, (0.3, 0.5, 0.2)), "comedy": (11, 0.0, 0.2, (0.4, 0.5, 0.1)),
    "cooking": (4, 0.5, -0.3, (0.95, 0.05, 0.0)), "crime": (6, 0.5, 0.5, (0.0, 0.4, 0.6)),
    "documentary": (5, 0.7, 0.1, (0.6, 0.35, 0.05)), "drama": (10, 0.5, 0.4, (0.2, 0.6, 0.2)),
    "family": (6, -0.1, -0.5, (1.0, 0.0, 0.0)), "fantasy": (5, -0.4, 0.2, (0.3, 0.6, 0.1)),
    "gaming": (7, -1.0, 0.1, (0.5, 0.45, 0.05)), "horror": (4, -0.4, 1.0, (0.0, 0.2, 0.8)),
    "music": (7, -0.5, -0.1, (0.7, 0.3, 0.0)), "news": (3, 1.0, -0.8, (0.7, 0.3, 0.0)),
    "romance": (5, 0.1, 0.3, (0.2, 0.65, 0.15)), "science": (4, 0.2, -0.1, (0.9, 0.1, 0.0)),
    "sports": (6, 0.2, 0.0, (0.9, 0.1, 0.0)), "thriller": (5, 0.3, 0.7, (0.0, 0.5, 0.5)),
}  # fmt: skip
GENRE_SHARE = np.array([row[0] for row in GENRES.values()])
GENRE_AGE = np.array([row[1] for row in GENRES.values()])
GENRE_EVENING = np.array([row[2] for row in GENRES.values()])
GENRE_RATING = np.array([row[3] for row in GENRES.values()])
POPULARITY_SPREAD = 1.95  # sigma of log popularity; sets how few videos take most views


@dataclass(frozen=True)
class Users:
    """One row per user, ordered by user_id. Vectors are unit rows, float32 [users, DIMENSIONS]."""

    user_id: Array  # int64, ascending, gaps
    country: Array  # int8 -> COUNTRIES
    age_band: Array  # int8 -> AGE_BANDS
    maturity_limit: Array  # int8 -> RATINGS: the strictest rating the profile may see
    signup_time: Array  # int64 seconds
    device: Array  # int8 -> DEVICES, the preferred one
    peak_hour: Array  # float32, preferred local hour
    taste: Array  # at the start of the log
    drift_to: Array  # at a right angle to `taste`: where the taste turns to
    drift_rate: Array  # float32, radians a day
    conformity: Array  # float32, weight of popularity in a click
    click_bias: Array  # float32, how freely this user clicks
    activity: Array  # float32, relative number of exposures


@dataclass(frozen=True)
class Videos:
    """One row per video, ordered by video_id."""

    video_id: Array  # int64, ascending, gaps
    publish_time: Array  # int64 seconds
    kind: Array  # int8 -> KINDS
    duration_s: Array  # float32
    genres: Array  # int8 [videos, 3] -> GENRES, -1 = none
    maturity: Array  # int8 -> RATINGS
    language: Array  # int8 -> LANGUAGES
    available: Array  # bool [videos, COUNTRIES]
    vector: Array  # float32 [videos, DIMENSIONS], unit length
    quality: Array  # float32, standard normal
    evening: Array  # float32, lean to evening hours
    popularity: Array  # float32 [COUNTRIES, videos]: log popularity, about standard normal x spread


@dataclass(frozen=True)
class World:
    """Users, videos and the click level: with the code, all there is to know about the service."""

    config: SimConfig
    users: Users
    videos: Videos
    genre_vectors: Array  # float32 [GENRES, DIMENSIONS]
    base_logit: float = 0.0  # set so that the click rate is the intended one

    @property
    def start(self) -> int:
        """First second of the log."""
        return LOG_END - self.config.num_days * DAY


def make_world(config: SimConfig) -> World:
    """Draw all users and videos. Depends on nothing but `config`."""
    square = generator(config.seed, 0).standard_normal((DIMENSIONS, DIMENSIONS))
    genre_vectors = np.linalg.qr(square)[0][: len(GENRES)].astype(np.float32)
    start = LOG_END - config.num_days * DAY
    users = _make_users(generator(config.seed, 1), config.num_users, start, genre_vectors)
    videos = _make_videos(generator(config.seed, 2), config.num_videos, start, genre_vectors)
    return World(config, users, videos, genre_vectors)


def _raw_ids(rng: np.random.Generator, count: int, first: int) -> Array:
    """Ascending ids with random gaps: nobody can mistake them for row numbers."""
    return np.asarray(first + np.cumsum(rng.integers(1, 900, count)))


def _make_users(rng: np.random.Generator, count: int, start: int, genre_vectors: Array) -> Users:
    country = rng.choice(len(COUNTRIES), count, p=COUNTRY_SHARE)
    age = rng.choice(len(AGE_BANDS), count, p=AGE_SHARE)
    lenient = np.where(rng.random(count) < 0.06, 1, 2)  # some adults set a limit
    old = start - rng.exponential(400 * DAY, count)
    recent = rng.uniform(start, LOG_END - 3 * DAY, count)
    appetite = _genre_appetite(rng, country, age)
    taste = _taste(rng, appetite, genre_vectors)
    turn = _taste(rng, appetite, genre_vectors)
    turn = unit(turn - np.einsum("ij,ij->i", turn, taste)[:, None] * taste)
    return Users(
        user_id=_raw_ids(rng, count, 50_000_000),
        country=country.astype(np.int8),
        age_band=age.astype(np.int8),
        maturity_limit=np.where(age == 0, 0, np.where(age == 1, 1, lenient)).astype(np.int8),
        signup_time=np.where(rng.random(count) < 0.8, old, recent).astype(np.int64),
        device=rng.choice(len(DEVICES), count, p=DEVICE_SHARE).astype(np.int8),
        peak_hour=rng.choice([7.5, 12.5, 17.0, 20.5, 22.5], count).astype(np.float32),
        taste=taste,
        drift_to=turn,
        drift_rate=np.minimum(rng.lognormal(np.log(0.006), 0.7, count), 0.05).astype(np.float32),
        conformity=rng.normal(0.30, 0.15, count).astype(np.float32),
        click_bias=rng.normal(0, 0.35, count).astype(np.float32),
        activity=np.minimum(rng.lognormal(0, 1.1, count), 30).astype(np.float32),
    )


def _genre_appetite(rng: np.random.Generator, country: Array, age: Array) -> Array:
    """Mean weight of each genre for each user, from age and country; float64 [users, genres]."""
    national = rng.normal(0, 0.5, (len(COUNTRIES), len(GENRES)))
    lean = np.linspace(-1.2, 1.2, len(AGE_BANDS))[age]
    logit = np.log(GENRE_SHARE) + national[country] + lean[:, None] * GENRE_AGE
    weight = np.exp(logit)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def _taste(rng: np.random.Generator, appetite: Array, genre_vectors: Array) -> Array:
    """A few loved genres (a Dirichlet draw) plus a personal part; unit rows."""
    mix = rng.standard_gamma(4.0 * appetite) + 1e-9
    mix = np.sqrt(mix / mix.sum(axis=1, keepdims=True))
    personal = rng.standard_normal((len(mix), DIMENSIONS)) * (0.5 / np.sqrt(DIMENSIONS))
    return unit(mix @ genre_vectors + personal)


def _make_videos(rng: np.random.Generator, count: int, start: int, genre_vectors: Array) -> Videos:
    kind = rng.choice(len(KINDS), count, p=KIND_SHARE)
    genres = _video_genres(rng, count)
    core = np.zeros(count, dtype=bool)  # old, for everybody, everywhere: no page is ever empty
    core[rng.permutation(count)[: max(60, count // 100)]] = True
    old = core | (rng.random(count) < 0.7)
    age = np.minimum(rng.exponential(350 * DAY, count), 2_500 * DAY)
    publish = np.where(old, start - age, rng.uniform(start, LOG_END, count))
    origin = rng.choice(len(COUNTRIES), count, p=COUNTRY_SHARE)
    language = LANGUAGE_OF[origin]
    quality = rng.standard_normal(count)
    has = genres >= 0
    mean = np.where(has[:, :, None], genre_vectors[genres], 0).sum(axis=1)
    personal = rng.standard_normal((count, DIMENSIONS)) * (0.8 / np.sqrt(DIMENSIONS))
    duration = KIND_SECONDS[kind] * np.exp(KIND_SPREAD[kind] * rng.standard_normal(count))
    return Videos(
        video_id=_raw_ids(rng, count, 7_000_000_000),
        publish_time=publish.astype(np.int64),
        kind=kind.astype(np.int8),
        duration_s=np.clip(np.round(duration), 10, 4 * 3600).astype(np.float32),
        genres=genres,
        maturity=np.where(core, 0, draw_rows(rng, GENRE_RATING[genres[:, 0]])).astype(np.int8),
        language=language.astype(np.int8),
        available=_availability(rng, origin) | core[:, None],
        vector=unit(unit(mean) + personal),
        quality=quality.astype(np.float32),
        evening=(np.where(has, GENRE_EVENING[genres], 0).sum(1) / has.sum(1)).astype(np.float32),
        popularity=_popularity(rng, quality, language),
    )


def _video_genres(rng: np.random.Generator, count: int) -> Array:
    """A main genre and up to two others of a similar mood (no family horror); int8 [videos, 3]."""
    main = rng.choice(len(GENRES), count, p=GENRE_SHARE / GENRE_SHARE.sum())
    apart = 4.0 * np.abs(GENRE_EVENING[:, None] - GENRE_EVENING[None, :])
    np.fill_diagonal(apart, 1e3)
    score = (np.log(GENRE_SHARE) - apart).astype(np.float32)[main]
    score += rng.gumbel(size=score.shape)
    others = np.argsort(-score, axis=1)[:, :2]
    how_many = draw_rows(rng, np.tile([0.35, 0.45, 0.20], (count, 1))) + 1
    genres = np.concatenate([main[:, None], others], axis=1)
    return np.where(np.arange(3) < how_many[:, None], genres, -1).astype(np.int8)


def _availability(rng: np.random.Generator, origin: Array) -> Array:
    everywhere = rng.random(len(origin)) < 0.55
    licensed = rng.random((len(origin), len(COUNTRIES))) < 0.6
    licensed[np.arange(len(origin)), origin] = True
    return licensed | everywhere[:, None]


def _popularity(rng: np.random.Generator, quality: Array, language: Array) -> Array:
    """Log popularity by country: luck, quality, and one's own language; float32 [countries, n]."""
    luck = rng.standard_normal(len(quality))
    local = rng.standard_normal((len(COUNTRIES), len(quality))).astype(np.float32)
    own = language[None, :] == LANGUAGE_OF[:, None]
    everyone = 0.80 * luck + 0.50 * quality
    spread = POPULARITY_SPREAD * (everyone[None, :] + 0.33 * local) + 0.7 * own
    return np.asarray(spread, dtype=np.float32)


def visible_users(users: Users) -> pa.Table:
    """What a dataset shows of its users; no latent value is among it."""
    return pa.table({
        "user_id": users.user_id,
        "country": _labels(COUNTRIES, users.country),
        "age_band": _labels(AGE_BANDS, users.age_band),
        "maturity_limit": _labels(RATINGS, users.maturity_limit),
        "signup_time": users.signup_time,
    })  # fmt: skip


def visible_videos(videos: Videos, seed: int) -> pa.Table:
    """What a dataset shows of its videos; no latent value is among it."""
    return pa.table({
        "video_id": videos.video_id,
        "title": make_titles(generator(seed, 3), videos.kind),
        "publish_time": videos.publish_time,
        "genres": _label_lists(tuple(GENRES), videos.genres, videos.genres >= 0),
        "duration_s": videos.duration_s,
        "maturity": _labels(RATINGS, videos.maturity),
        "language": _labels(LANGUAGES, videos.language),
        "countries": _label_lists(
            COUNTRIES,
            np.broadcast_to(np.arange(len(COUNTRIES)), videos.available.shape),
            videos.available,
        ),
        **_departures(generator(seed, LEAVING), videos.publish_time),
    })  # fmt: skip


def _departures(rng: np.random.Generator, published: Array) -> dict[str, Any]:
    """What leaves the service after the log's end, so that no logged page knows of it.

    A tenth of the videos have a licence that ends within 90 days; 2% are withdrawn at the end.
    """
    count = len(published)
    ends = LOG_END + rng.integers(1, 90, count) * DAY
    is_licensed, is_withdrawn = rng.random(count) < 0.1, rng.random(count) < 0.02
    return {
        "available_from": pa.array(published, mask=~is_licensed),
        "available_until": pa.array(ends, mask=~is_licensed),
        "withdrawn": is_withdrawn.astype(np.int64),
    }


def _labels(names: tuple[str, ...], codes: Array) -> pa.Array:
    return pa.array(names).take(pa.array(codes.astype(np.int32)))


def _label_lists(names: tuple[str, ...], codes: Array, kept: Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _labels(names, codes[kept]))


Table = TypeVar("Table", Users, Videos)


def save_arrays(table: Users | Videos, folder: Path) -> None:
    """One .npy file a field: readable without this code, memory-mapped when loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    for field in dataclasses.fields(table):
        np.save(folder / f"{field.name}.npy", getattr(table, field.name), allow_pickle=False)


def load_arrays(kind: type[Table], folder: Path) -> Table:
    """What `save_arrays` wrote, memory-mapped."""
    arrays: dict[str, Any] = {
        field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False)
        for field in dataclasses.fields(kind)
    }
    return kind(**arrays)
