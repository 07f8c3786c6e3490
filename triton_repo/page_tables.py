"""What the page stage looks up, from validated tables: rules, titles, groups, popularity, pasts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.metrics import Float32
from models.neighbours import unit_rows
from workflow.features.history import Histories
from workflow.frames import read_frame
from workflow.roles import TableName
from workflow.schema import Column, Contract

Array = npt.NDArray[Any]
ALWAYS = np.iinfo(np.int64).max
SECONDS_PER_DAY = 86_400
MAX_GROUPS = 64
DIVERSITY_DIM = 16
TRENDING, POPULAR, FRESH = 500, 2_000, 5_000  # lengths of the lists
# A country has lists of its own from so many watches on.
MIN_WATCHES = 1_000
# As templates/page/history.py.
BEGUN, DONE, LEFT_S = 0.05, 0.9, 60.0  # shares of a video and seconds left: what is unfinished
UNFINISHED, LIKED = 1, 2


@dataclass(frozen=True)
class Tables:
    """The validated tables of a run.

    Attributes:
        users, videos: by row, from row 1.
    """

    contract: Contract
    users: pd.DataFrame
    videos: pd.DataFrame
    events: tuple[Path, ...]

    @classmethod
    def read(cls, contract: Contract, data: Path) -> Tables:
        users, videos = (read_frame(data / f"{name}.parquet") for name in ("users", "videos"))
        return cls(contract, users, videos, tuple(sorted((data / "events").glob("*.parquet"))))

    def column(self, table: TableName, tag: Any) -> pd.Series[Any] | None:
        """The tagged column of users or videos, as far as the contract has one."""
        column = self.contract.tagged(table, tag)
        frame = self.users if table == "users" else self.videos
        return None if column is None else frame[column.name]

    def watched(self, *names: str) -> pd.DataFrame:
        """Columns of all watches, in the order of the histories."""
        parts = [read_frame(path, columns=[*names, "watched"]) for path in self.events]
        frame = pd.concat(parts, ignore_index=True)
        return frame.loc[frame["watched"].to_numpy(bool), list(names)]


# --- rules ---------------------------------------------------------------------------------------
def country_names(tables: Tables) -> list[str]:
    """Every country that a user, a request or a video names, in order."""
    found: set[str] = set()
    for name in ("users", "videos"):
        column = tables.column(name, "country")
        for value in () if column is None else column:
            found.update(_texts(value))
    asked = tables.contract.tagged("events", "country")
    if asked is not None:
        for path in tables.events:
            found.update(
                map(str, read_frame(path, columns=[asked.name])[asked.name].dropna().unique())
            )
    return sorted(found)


def _texts(value: Any) -> list[str]:
    """A cell as texts: none of a null, several of a list."""
    if isinstance(value, list | np.ndarray):
        return [str(one) for one in value]
    if pd.isna(value):
        return []
    # Whole numbers with nulls among them are read as floats.
    return [str(int(value) if isinstance(value, float) else value)]


def country_bits(tables: Tables, countries: list[str]) -> npt.NDArray[np.uint8]:
    """Where each video may be shown; uint8 [bytes, num_videos + 1], see templates/page/rules.py."""
    values = tables.column("videos", "country")
    count = len(tables.videos) + 1
    if values is None:
        allowed = np.ones((count, len(countries) + 1), bool)
    else:
        place = {name: at for at, name in enumerate(countries, 1)}
        allowed = np.zeros((count, len(countries) + 1), bool)
        for row, value in enumerate(values, 1):
            known = [place[name] for name in _texts(value) if name in place]
            allowed[row, known] = True
        allowed[:, 0] = allowed[:, 1:].all(axis=1)
    allowed[0] = False
    bits: npt.NDArray[np.uint8] = np.packbits(allowed, axis=1, bitorder="little").T
    return bits


def user_countries(tables: Tables, countries: list[str]) -> npt.NDArray[np.int16]:
    """Place of each user's country among `countries`, from 1; 0 = not known."""
    values = tables.column("users", "country")
    result = np.zeros(len(tables.users) + 1, np.int16)
    if values is not None:
        place = {name: at for at, name in enumerate(countries, 1)}
        known = [next(iter(_texts(value)), "") for value in values]
        result[1:] = [place.get(name, 0) for name in known]
    return result


def ratings_of(tables: Tables) -> list[Any]:
    """All maturity ratings, mildest first."""
    column = tables.contract.tagged("videos", "maturity")
    if column is None:
        return []
    if column.dtype == "string":
        return list(tables.contract.ratings)
    return sorted({int(value) for value in tables.videos[column.name].dropna()})


def video_ratings(tables: Tables, ratings: list[Any]) -> npt.NDArray[np.int16]:
    """Place of each video's rating; one that is not known counts as the strictest."""
    values = tables.column("videos", "maturity")
    result = np.zeros(len(tables.videos) + 1, np.int16)
    if values is not None:
        place = {rating: at for at, rating in enumerate(ratings)}
        strictest = max(len(ratings) - 1, 0)
        result[1:] = [place.get(_rating(value), strictest) for value in values]
    return result


def user_limits(tables: Tables, ratings: list[Any]) -> npt.NDArray[np.int16]:
    """How many of the ratings each user may see; 0 = not known."""
    values = tables.column("users", "maturity")
    result = np.zeros(len(tables.users) + 1, np.int16)
    if values is None:
        return result
    if ratings and isinstance(ratings[0], int):
        known = values.notna().to_numpy()
        allowed = np.searchsorted(ratings, values.fillna(0).to_numpy(np.int64), side="right")
        # A limit below every rating allows none of them, which is not "not known".
        result[1:] = np.where(known, np.where(allowed == 0, -1, allowed), 0)
    else:
        place = {rating: at for at, rating in enumerate(ratings, 1)}
        result[1:] = [place.get(_rating(value), 0) for value in values]
    return result


def _rating(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else int(value)


def windows(tables: Tables) -> npt.NDArray[np.int64]:
    """When each video may be shown; int64 [2, num_videos + 1], from and until (exclusive)."""
    videos = tables.videos
    result = np.zeros((2, len(videos) + 1), np.int64)
    result[1, 1:] = ALWAYS
    for name in ("publish_time", "available_from"):
        if name in videos:
            since = videos[name].fillna(0).to_numpy(np.int64)
            result[0, 1:] = np.maximum(result[0, 1:], since)
    if "available_until" in videos:
        until = videos["available_until"]
        result[1, 1:] = np.where(until.notna(), until.fillna(0).to_numpy(np.int64), ALWAYS)
    if "withdrawn" in videos:
        result[1, 1:][videos["withdrawn"].fillna(0).to_numpy(np.int64) != 0] = 0
    return result


# --- rows ----------------------------------------------------------------------------------------
def groups(tables: Tables, least: int) -> list[str]:
    """Titles of the values that get rows of their own, those of most videos first.

    Args:
        least: values of fewer videos get no row.
    """
    sizes: dict[str, int] = {}
    for values in _group_titles(tables):
        for title in values:
            sizes[title] = sizes.get(title, 0) + 1
    kept = sorted((one for one in sizes if sizes[one] >= least), key=lambda one: (-sizes[one], one))
    return kept[:MAX_GROUPS]


def places_of(tables: Tables, names: list[str], width: int | None = None) -> npt.NDArray[np.int16]:
    """The groups of each video; int16 [num_videos + 1, width], 1-based places, 0-padded.

    Args:
        width: None: as many as any video has.
    """
    place = {name: at for at, name in enumerate(names, 1)}
    lists = [[place[t] for t in values if t in place] for values in _group_titles(tables)]
    width = width or max([1, *map(len, lists)])
    result = np.zeros((len(tables.videos) + 1, width), np.int16)
    for row, places in enumerate(lists, 1):
        kept = places[:width]
        result[row, : len(kept)] = kept
    return result


def _group_titles(tables: Tables) -> Iterator[list[str]]:
    """Of each video, its values in the columns that rows are made of."""
    videos = tables.contract.videos
    columns = videos.tagged("row") if videos else ()
    for row in zip(*(tables.videos[column.name] for column in columns), strict=True):
        cells = zip(columns, row, strict=True)
        found = (_title(column, text) for column, cell in cells for text in _texts(cell))
        yield list(dict.fromkeys(found))


def _title(column: Column, value: str) -> str:
    """A value as the title of a row; a number needs its column's name."""
    if column.dtype == "int64":
        return f"{column.name} {value}".replace("_", " ").capitalize()
    return value[:1].upper() + value[1:]


def titles(tables: Tables) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(UTF-8 of all titles, where each begins: int64 [num_videos + 2])."""
    texts = [b"", *(b"" if pd.isna(t) else str(t).encode() for t in tables.videos["title"])]
    start = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), start


# --- popularity ----------------------------------------------------------------------------------
def popularity(
    histories: Histories, watch_country: npt.NDArray[np.int16], num_videos: int, half_life_s: float
) -> dict[str, Array]:
    """Lists of videos by watches, everywhere and by country.

    Args:
        watch_country: place of the country of each watch.
        half_life_s: of what a watch is worth to the trending list.
    Returns:
        popular_row, trending_row: int32 [tables, length], best first, 0-padded; table 0 is
        everywhere, where the popular list goes on with videos that nobody watched.
        country_table: int16 [countries + 1], the table of each country.
    """
    rows = np.asarray(histories.video_row, np.int64)
    age_s = histories.time.max(initial=0) - histories.time
    worth = np.exp2(-age_s / half_life_s)
    sizes = np.bincount(watch_country)
    own = [place for place in range(1, len(sizes)) if sizes[place] >= MIN_WATCHES]
    tables: dict[str, list[Array]] = {"popular_row": [], "trending_row": []}
    for place in (0, *own):
        mine = slice(None) if place == 0 else watch_country == place
        counts = np.bincount(rows[mine], minlength=num_videos + 1).astype(np.float64)
        recent = np.bincount(rows[mine], worth[mine], minlength=num_videos + 1).astype(np.float64)
        tables["popular_row"].append(_best(counts + (1e-9 if place == 0 else 0), POPULAR))
        tables["trending_row"].append(_best(recent, TRENDING))
    table_of = np.zeros(max(len(sizes), 1), np.int16)
    table_of[own] = np.arange(1, len(own) + 1)
    return {name: np.stack(lists) for name, lists in tables.items()} | {"country_table": table_of}


def _best(counts: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.int32]:
    """Rows of the largest positive counts, 0-padded to `length` (at most the catalogue)."""
    result = np.zeros(min(length, len(counts) - 1), np.int32)
    best = np.argsort(-counts[1:], kind="stable")[: len(result)] + 1
    best = best[counts[best] > 0]
    result[: len(best)] = best
    return result


def newest(tables: Tables) -> dict[str, Array]:
    """fresh_row and fresh_time: the videos that appeared last, newest first."""
    if "publish_time" not in tables.videos:
        return {"fresh_row": np.zeros(0, np.int32), "fresh_time": np.zeros(0, np.int64)}
    time = tables.videos["publish_time"].fillna(0).to_numpy(np.int64)
    order = np.argsort(-time, kind="stable")[:FRESH]
    order = order[time[order] > 0]
    return {"fresh_row": (order + 1).astype(np.int32), "fresh_time": time[order]}


# --- pasts ---------------------------------------------------------------------------------------
def watch_flags(
    tables: Tables, histories: Histories, duration_s: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Of each watch in the histories: whether it was left unfinished, whether it was liked."""
    liked = np.ones(len(histories.video_row), bool)
    if histories.label is not None:
        liked = np.asarray(histories.label) > 0
    flags = np.where(liked, LIKED, 0).astype(np.uint8)
    if tables.contract.has_watch_time:
        watch_s = tables.watched("watch_s")["watch_s"].to_numpy(np.float64, na_value=np.nan)
        whole_s = np.asarray(duration_s, np.float64)[histories.video_row]
        with np.errstate(invalid="ignore"):
            share = watch_s / whole_s
            begun = (share >= BEGUN) & (share < DONE) & (whole_s - watch_s >= LEFT_S)
        flags[begun] |= UNFINISHED
    return flags


def watch_countries(
    tables: Tables, histories: Histories, countries: list[str]
) -> npt.NDArray[np.int16]:
    """The country of each watch: of its request where that is known, else of its user."""
    user_row = np.repeat(np.arange(len(histories.start) - 1), np.diff(histories.start))
    result: npt.NDArray[np.int16] = user_countries(tables, countries)[user_row]
    asked = tables.contract.tagged("events", "country")
    if asked is not None:
        place = {name: at for at, name in enumerate(countries, 1)}
        told = [_texts(value) for value in tables.watched(asked.name)[asked.name]]
        result = np.array(
            [place[one[0]] if one else at for one, at in zip(told, result, strict=True)], np.int16
        )
    return result


def durations(tables: Tables) -> npt.NDArray[np.float32]:
    """Seconds of each video; float32 [num_videos], NaN = not known."""
    column = tables.contract.duration
    if column is None:
        return np.full(len(tables.videos), np.nan, np.float32)
    seconds = tables.videos[column.name].to_numpy(np.float32, na_value=np.nan)
    return np.where(seconds > 0, seconds, np.float32(np.nan))


# --- likeness ------------------------------------------------------------------------------------
def diversity_axes(learned: Float32) -> Float32:
    """Directions in which videos differ most; float32 [dim + 1, DIVERSITY_DIM].

    The last row is the mean of the unit vectors: what all have in common makes nobody alike.
    """
    unit = unit_rows(learned[1:])
    mean = unit.mean(axis=0)
    _, axes = np.linalg.eigh((unit - mean).T @ (unit - mean))
    best = axes[:, ::-1][:, :DIVERSITY_DIM]
    best = np.pad(best, ((0, 0), (0, DIVERSITY_DIM - best.shape[1])))
    return np.vstack([best, mean @ best]).astype(np.float32)


def short_vectors(learned: Float32, axes: Float32) -> Float32:
    """Unit vectors that diversity is measured in; float32 [n, DIVERSITY_DIM]."""
    # In double precision: single precision may round a row by which rows are beside it.
    short = unit_rows(learned).astype(np.float64) @ axes[:-1] - axes[-1]
    return unit_rows(short).astype(np.float32)
