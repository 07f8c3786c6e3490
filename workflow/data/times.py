"""Times to microseconds since 1970, with a plausibility check that catches a wrong unit."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from workflow.data.values import Place, bad_value, parse, wrong_type
from workflow.errors import DataError
from workflow.schema import Column

UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY_S = 86_400
_YEAR_S = 31_556_952
EARLIEST_EVENT_S = 631_152_000  # 1990-01-01
EARLIEST_PUBLISH_S = -2_840_140_800  # 1880-01-01: a catalogue may hold old films
LATEST_WINDOW_S = 253_402_300_799  # the end of 9999: some catalogues write so for "for ever"
_WINDOW_ROLES = ("available_from", "available_until")
_ISO = (
    r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d([.]\d+)?)?)?( ?(Z|[+-]\d\d(:?\d\d)?))?)?)?)?"
    r"|\d{8}([T ]\d{2}(\d\d(\d\d([.]\d+)?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?"
)


def to_microseconds(array: pa.Array, column: Column, place: Place) -> pa.Array:
    """Times in the column's unit as int64 microseconds; null and NaN stay null.

    Arrow timestamps and dates carry their own unit. Fractions of a microsecond are cut off.

    Raises:
        ContractError: neither numbers, text nor timestamps, as the unit asks for.
        DataError: a value is no time, lies in the future (more than a day from now; a window may)
            or before 1990 (events) or 1880 (videos).
    """
    unit = column.unit or "s"
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return _checked(micros, 10**6, column, place, None)
    if unit == "iso":
        return _checked(_parse_iso(array, column, place), 10**6, column, place, None)
    if pa.types.is_string(kind) and place.is_text:
        array = parse(array, column, place)
        kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.int64())
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise wrong_type(column, str(kind), place)
    if not pa.types.is_integer(kind):
        array = array.cast(pa.float64())
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
    return _checked(array, UNITS_PER_SECOND[unit], column, place, unit)


def iso_times(text: pd.Series[str]) -> pd.Series[Any]:
    """UTC times of ISO 8601 texts; NaT where there is none."""
    if int(pd.__version__.partition(".")[0]) < 2:
        return iso_times_by_pattern(text)
    return pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")


def iso_times_by_pattern(text: pd.Series[str]) -> pd.Series[Any]:
    """The same on pandas 1.5 (the Merlin container's), which takes other forms for times too."""
    is_iso = text.astype("string").str.fullmatch(_ISO).fillna(False).astype(bool)
    return pd.to_datetime(text.where(is_iso), utc=True, errors="coerce")


def _parse_iso(array: pa.Array, column: Column, place: Place) -> pa.Array:
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.int64())
    if not pa.types.is_string(array.type):
        raise wrong_type(column, str(array.type), place)
    text = array.to_pandas()
    parsed = iso_times(text)
    missing = text.isna().to_numpy() | (text == "").to_numpy()
    bad = parsed.isna().to_numpy() & ~missing
    if bad.any():
        raise bad_value(column, place, int(np.argmax(bad)), array, "a time (ISO 8601)")
    micros = parsed.dt.tz_convert(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    return pa.array(micros, mask=missing)


def _checked(
    array: pa.Array, per_second: int, column: Column, place: Place, unit: str | None
) -> pa.Array:
    """`array` in microseconds, after every value was found plausible.

    `unit` is the unit of plain numbers: then another one can be suggested.
    """
    missing = pc.is_null(array).to_numpy(zero_copy_only=False)
    raw = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    seconds = raw.astype(np.float64) / per_second
    latest = LATEST_WINDOW_S if column.role in _WINDOW_ROLES else time.time() + DAY_S
    earliest = EARLIEST_EVENT_S if column.role == "timestamp" else EARLIEST_PUBLISH_S
    bad = ~missing & ~((seconds >= earliest) & (seconds <= latest))
    if column.role != "timestamp" and _all_in_early_1970(seconds[~missing]):
        bad = ~missing  # seconds read as milliseconds: every date falls into January 1970
    if bad.any():
        index = int(np.argmax(bad))
        raise _implausible(raw[index], per_second, column, place.of(column, index), unit)
    if raw.dtype.kind == "f":
        micros = np.floor(raw * (10**6 / per_second)).astype(np.int64)
    elif per_second <= 10**6:
        micros = raw.astype(np.int64) * (10**6 // per_second)
    else:
        micros = raw.astype(np.int64) // (per_second // 10**6)
    return pa.array(micros, mask=missing)


def _all_in_early_1970(seconds: np.ndarray[Any, Any]) -> bool:
    return len(seconds) > 1 and bool(seconds.min() > 0 and seconds.max() < 45 * DAY_S)


def _implausible(
    raw: float, per_second: int, column: Column, place: str, unit: str | None
) -> DataError:
    seconds = float(raw) / per_second
    other = plausible_unit(float(raw)) if unit else None
    if other and other != unit:
        found = f"read in {unit} it is {_date(seconds)}; in {other} it would be " + _date(
            raw / UNITS_PER_SECOND[other]
        )
        next_step = f'set unit = "{other}" for {column.name} in the contract'
    else:
        found = _date(seconds)
        next_step = f"remove such rows, or correct unit of {column.name} in the contract"
    future = seconds > time.time() + DAY_S
    since = "1990" if column.role == "timestamp" else "1880"
    value = f" {raw:.15g}" if unit else ""
    return DataError(
        f"{place}: time{value} is {'in the future' if future else 'too early'}",
        expected=f"a time from {since} until {'9999' if column.role in _WINDOW_ROLES else 'now'}",
        found=found,
        next_step=next_step,
    )


def plausible_unit(value: float) -> str | None:
    """The unit in which `value` is a time between 1990 and tomorrow, if there is one."""
    for unit, per_second in UNITS_PER_SECOND.items():
        if EARLIEST_EVENT_S <= value / per_second <= time.time() + DAY_S:
            return unit
    return None


def _date(seconds: float) -> str:
    """A date, or a year for what a calendar does not hold."""
    if not np.isfinite(seconds):
        return "not finite"
    if abs(seconds) < 8_000 * _YEAR_S and seconds > -1_900 * _YEAR_S:
        return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))
    return f"the year {1970 + seconds / _YEAR_S:,.0f}"
