"""Guess what a column of an unknown file means: its role, kind, dtype and unit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from workflow.data.sniff import Sample
from workflow.data.times import iso_times, plausible_unit
from workflow.data.values import NULL_WORDS
from workflow.roles import FIXED_NAME_ROLES, RESERVED_NAMES

USER_IDS = (
    "user_id userid user uid member_id customer_id viewer_id account_id profile_id visitor_id"
)
VIDEO_IDS = (
    "video_id videoid item_id itemid movie_id movieid iid content_id film_id show_id asset_id"
    " program_id media_id photo_id product_id article_id track_id title_id item video movie"
)
_TIMES = "timestamp time ts event_time datetime date created_at time_ms watched_at rated_at"
_TITLES = "title movie_title name video_title item_title"
_PUBLISHED = "publish_time published_at release_date upload_time upload_dt publish_date created_at"
_DURATIONS_S = "duration_s duration_seconds length_s length_seconds video_duration_s"
_DURATIONS = "duration length runtime video_duration video_length"
_WATCHED_S = "watch_s watch_time watch_seconds watch_time_s play_time playtime dwell_time"
_LABELS = "label click clicked is_click like liked is_like rating ratings stars"
_CONTEXTS = (
    "device platform os country region city language browser network tab page surface placement"
    " channel app device_type user_agent"
)
_AMOUNTS = re.compile(r"year|count|duration|length|views|likes|price|age|num|size|amount|score")
_MANY_VALUES = 1_000


@dataclass
class Guess:
    """One column line of a drafted contract, and why."""

    name: str
    source: str
    values: dict[str, Any] = field(default_factory=dict)  # role, kind, dtype, unit, ...
    comment: str = ""
    is_todo: bool = False

    @property
    def role(self) -> str:
        return str(self.values.get("role", "ignore"))

    def become(self, role: str, comment: str = "", todo: bool = False, **values: Any) -> Guess:
        self.values = {"role": role, **values}
        self.comment, self.is_todo = comment, todo
        return self


def base_name(source: str) -> str:
    """A column's name without RecBole's type, in snake case."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", source.split(":", maxsplit=1)[0])
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "column"


def is_one_of(source: str, names: str) -> bool:
    """Whether a column's base name is among the space-separated `names`."""
    return base_name(source) in names.split()


class ColumnView:
    """A sampled column with the statistics that guesses need."""

    def __init__(self, sample: Sample, source: str) -> None:
        array = sample.rows[source]
        self.source = source
        self.is_text = sample.is_text
        self.is_sequence = source.endswith((":token_seq", ":float_seq"))
        self.is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        self.is_time = pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)
        self.list_type = str(array.type.value_type) if self.is_list else ""
        plain = array.to_pandas()
        if self.is_text:
            plain = plain.where(~plain.str.strip().str.lower().isin(NULL_WORDS))
        self.series = plain.dropna()
        self.numbers = self._numbers()

    def _numbers(self) -> pd.Series[float] | None:
        if self.is_list or self.is_time or self.series.empty:
            return None
        if not self.is_text and self.series.dtype == object:
            return None  # a Parquet string stays a string
        numbers: pd.Series[float] = pd.to_numeric(self.series, errors="coerce").astype(float)
        return numbers

    @property
    def share_numeric(self) -> float:
        return 0.0 if self.numbers is None else float(self.numbers.notna().mean())

    @property
    def is_numeric(self) -> bool:
        return self.share_numeric == 1.0

    @property
    def is_whole(self) -> bool:
        return self.is_numeric and self.numbers is not None and bool((self.numbers % 1 == 0).all())

    @property
    def dtype(self) -> str:
        """int64, float32 or string. Numbers with leading zeros are codes, so strings."""
        if self.is_whole and not self._has_leading_zeros() and self._fits_int64():
            return "int64"
        return "float32" if self.is_numeric and not self.is_whole else "string"

    @property
    def num_distinct(self) -> int:
        return int(self.series.nunique()) if not self.is_list else 0

    @property
    def largest(self) -> float:
        return float(self.numbers.max()) if self.numbers is not None and len(self.numbers) else 0.0

    def unit(self) -> str | None:
        """The time unit in which all values are plausible dates."""
        if self.is_time:
            return "us"
        if self.is_numeric and self.numbers is not None:
            units = {plausible_unit(self.numbers.min()), plausible_unit(self.numbers.max())}
            return units.pop() if len(units) == 1 else None
        if self.dtype == "string" and not self.is_list and len(self.series):
            head = self.series.head(1_000).astype(str)
            return "iso" if iso_times(head).notna().all() else None
        return None

    def not_numbers(self) -> list[str]:
        """The few values that keep a mostly numeric column from being one."""
        if self.numbers is None or not 0.9 <= self.share_numeric < 1:
            return []
        return [str(value) for value in self.series[self.numbers.isna()].unique()[:3]]

    def _has_leading_zeros(self) -> bool:
        return self.is_text and bool(self.series.str.match(r"0\d").any())

    def _fits_int64(self) -> bool:
        return self.numbers is not None and bool((self.numbers.abs() < 2**62).all())


def guess_event_column(view: ColumnView, guess: Guess, taken: set[str]) -> Guess:
    """A column of the events table; `taken` are the roles that other columns have."""
    unit = view.unit()
    if "timestamp" not in taken and (is_one_of(view.source, _TIMES) or _headerless_time(view)):
        return time_column(guess, "timestamp", unit)
    if "label" not in taken and view.is_numeric and is_one_of(view.source, _LABELS):
        return _label(view, guess)
    if "watch_s" not in taken and view.is_numeric and is_one_of(view.source, _WATCHED_S):
        return guess.become(
            "watch_s", "guessed from the name: are these seconds?", True, dtype="float32"
        )
    if "propensity" not in taken and is_one_of(view.source, "propensity"):
        return guess.become("propensity", dtype="float32")
    if is_one_of(view.source, _CONTEXTS) and view.num_distinct <= _MANY_VALUES:
        return guess.become(
            "context", "guessed: known when a page is asked for", False,
            kind="categorical", dtype=view.dtype,
        )  # fmt: skip
    return guess.become(
        "ignore", 'if this is known when a page is asked for, use role = "context"', True,
        dtype=_readable(view),
    )  # fmt: skip


def guess_feature_column(view: ColumnView, guess: Guess, role: str, taken: set[str]) -> Guess:
    """A column of the users or videos table."""
    if role == "video_feature" and _guess_description(view, guess, taken):
        return guess
    if role == "video_feature" and "duration_s" not in taken and _is_duration(view):
        unsure = not is_one_of(view.source, _DURATIONS_S)
        comment = "guessed from the name: are these seconds?" if unsure else ""
        return guess.become(
            "duration_s", comment, unsure, kind="continuous", dtype="float32", log=True
        )
    if view.is_list or view.is_sequence or _split_at(view):
        return _multi_hot(view, guess, role)
    if view.dtype == "string":
        return _words(view, guess, role)
    if view.dtype == "float32" or _AMOUNTS.search(base_name(view.source)) or _is_spread(view):
        skewed = view.numbers is not None and view.numbers.min() >= 0 and _is_skewed(view.numbers)
        more = {"log": True} if skewed else {}
        return guess.become(
            role, "guessed: an amount" + (", spread widely" if skewed else ""),
            kind="continuous", dtype="float32", **more,
        )  # fmt: skip
    return guess.become(role, "guessed: a code", kind="categorical", dtype="int64")


def _guess_description(view: ColumnView, guess: Guess, taken: set[str]) -> bool:
    """Whether it is a video's title or publish time, which are no plain features."""
    if "title" not in taken and is_one_of(view.source, _TITLES) and not view.is_list:
        _named(guess.become("title", dtype="string"))
    elif "title" not in taken and _looks_like_titles(view):
        comment = "guessed from the position and the values"
        _named(guess.become("title", comment, True, dtype="string"))
    elif "publish_time" not in taken and is_one_of(view.source, _PUBLISHED) and view.unit():
        time_column(guess, "publish_time", view.unit())
    return guess.role in ("title", "publish_time")


def _is_duration(view: ColumnView) -> bool:
    has_name = is_one_of(view.source, f"{_DURATIONS_S} {_DURATIONS}")
    numbers = view.numbers
    return has_name and view.is_numeric and numbers is not None and bool(numbers.min() >= 0)


def id_column(view: ColumnView, guess: Guess, role: str) -> Guess:
    """A raw id."""
    guess.name = role
    return guess.become(role, dtype="string" if view.dtype == "string" else "int64")


def time_column(guess: Guess, role: str, unit: str | None) -> Guess:
    """A time; without a plausible unit the user has to say it."""
    comment = f"guessed: plausible dates in {unit}" if unit else "no unit gives plausible dates"
    dtype = "string" if unit == "iso" else "int64"
    return _named(guess.become(role, comment, unit is None, dtype=dtype, unit=unit or "s"))


def free_name(guess: Guess, prefix: str, used: set[str]) -> None:
    """Rename a column whose name Marquee or another column already has."""
    taken_by_role = guess.name in FIXED_NAME_ROLES and guess.name != guess.role
    if (
        guess.name[0].isdigit()
        or guess.name in RESERVED_NAMES
        or taken_by_role
        or guess.name in used
    ):
        guess.name = f"{prefix}_{guess.name}"
    while guess.name in used:
        guess.name += "_2"
    used.add(guess.name)


def _label(view: ColumnView, guess: Guess) -> Guess:
    if set(view.series.astype(float).unique()) <= {0.0, 1.0}:
        return guess.become("label", "guessed: yes or no", dtype=view.dtype)
    top = view.largest
    least = 4 if top <= 5 else 7 if top <= 10 else round(0.7 * top)
    return guess.become(
        "label", f"guessed: a rating up to {top:g}; what counts as liked?", True,
        dtype="float32", positive_at_least=least,
    )  # fmt: skip


def _multi_hot(view: ColumnView, guess: Guess, role: str) -> Guess:
    if view.is_list:
        dtype = "int64" if "int" in view.list_type else "string"
        return guess.become(role, kind="multi_hot", dtype=dtype)
    separator = " " if view.is_sequence else _split_at(view)
    return guess.become(
        role, f"guessed: lists, divided by {separator!r}",
        kind="multi_hot", dtype="string", separator=separator,
    )  # fmt: skip


def _words(view: ColumnView, guess: Guess, role: str) -> Guess:
    if view.num_distinct > 100 and view.num_distinct > 0.5 * len(view.series):
        comment = "most rows have their own value: not a useful feature"
        return guess.become("ignore", comment, True, dtype="string")
    bad = view.not_numbers()
    if bad:
        comment = f"numbers, but for {', '.join(map(repr, bad))}: continuous once these are gone"
        return guess.become(role, comment, True, kind="categorical", dtype="string")
    return guess.become(role, kind="categorical", dtype="string")


def _split_at(view: ColumnView) -> str | None:
    """The character at which many values divide into lists."""
    if view.dtype != "string" or view.is_list or view.is_time or view.series.empty:
        return None
    text = view.series.astype(str)
    for separator in ("|", ";"):
        if float(text.str.contains(separator, regex=False).mean()) > 0.2:
            return separator
    return None


def _named(guess: Guess) -> Guess:
    guess.name = guess.role
    return guess


def _looks_like_titles(view: ColumnView) -> bool:
    nameless = bool(re.fullmatch(r"c\d+", view.source))
    return nameless and view.dtype == "string" and view.num_distinct > 0.9 * len(view.series)


def _headerless_time(view: ColumnView) -> bool:
    return bool(re.fullmatch(r"c\d+", view.source)) and view.unit() in ("s", "ms")


def _is_spread(view: ColumnView) -> bool:
    return view.num_distinct > 50


def _is_skewed(numbers: pd.Series[float]) -> bool:
    return bool(numbers.max() > 100 * max(float(numbers.median()), 1.0))


def _readable(view: ColumnView) -> str:
    return "string" if view.is_list or view.is_time else view.dtype
