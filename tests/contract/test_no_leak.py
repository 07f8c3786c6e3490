"""Point in time: features against plain loops, and leaks planted to see the check catch them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.fixtures import (
    DAY,
    START,
    Tables,
    differences,
    known_before,
    make_config,
    make_contract,
    make_tables,
    random_events,
)
from workflow.config import Config
from workflow.errors import DataError
from workflow.features import daily, history
from workflow.features.build import Builder
from workflow.features.daily import DailyCounts
from workflow.features.samples import build_samples, split_of

CONTRACT = make_contract()
CONFIG = make_config(features={"session_gap_s": 1800})
STATE = ["user_event_count", "user_label_rate", "video_event_count", "video_lift_7d",
         "video_lift_30d", "video_label_rate", "video_age_days"]  # fmt: skip
# Ties, both sides of the session gap, and both sides of midnight UTC.
MOMENTS = (0, 1, 600, 1800, 1801, 3601, DAY - 1, DAY, DAY + 1, 2 * DAY - 1800, 2 * DAY, 4 * DAY)


@st.composite
def logs(draw: st.DrawFn) -> Tables:
    """A few users, videos and events with many equal times."""
    event = st.tuples(
        st.integers(1, 3), st.integers(1, 4), st.sampled_from(MOMENTS), st.booleans(), st.booleans()
    )
    rows = draw(st.lists(event, min_size=3, max_size=24))
    events = pd.DataFrame(rows, columns=["user_row", "video_row", "timestamp", "watched", "label"])
    events["timestamp"] += START
    events[["user_row", "video_row"]] = events[["user_row", "video_row"]].astype(np.int32)
    events["label"] = events["label"].astype(np.float32)
    events["watch_s"], events["device"], events["slot"] = np.float32(1), "tv", 1
    events = events.sort_values(["user_row", "timestamp"], kind="stable", ignore_index=True)
    tables = make_tables(num_users=3, num_videos=4, num_events=1)
    ages = draw(st.lists(st.sampled_from((None, 0, DAY, 3 * DAY)), min_size=4, max_size=4))
    published = [None if age is None else START + age for age in ages]
    tables.videos["publish_time"] = pd.array(published, "Int64")
    return Tables(tables.users, tables.videos, events)


class InMemory(Builder):
    """The features stage's builder on frames instead of files."""

    def __init__(self, folder: Path, config: Config, tables: Tables, num_partitions: int) -> None:
        self.folder, self.config, self.contract = folder, config, CONTRACT
        self.users, self.videos = tables.users, tables.videos
        users = np.array_split(np.arange(1, len(tables.users) + 1), num_partitions)
        rows = tables.events["user_row"]
        frames = [tables.events[rows.isin(part)] for part in users]
        self.frames = [frame for frame in frames if len(frame)]  # validation writes no empty part

    def _partitions(self, *columns: str) -> Iterator[pd.DataFrame]:
        yield from self.frames

    def samples(self) -> pd.DataFrame:
        parts = [
            build_samples(
                frame, split_of(frame, self.config, self.cuts), CONTRACT, self.config, self.known
            )
            for frame in self._partitions()
        ]
        return pd.concat(parts, ignore_index=True)


def built(tables: Tables, config: Config = CONFIG) -> tuple[Builder, pd.DataFrame]:
    """The stage's own samples before encoding, in the order of the events."""
    with tempfile.TemporaryDirectory() as folder:
        builder = InMemory(Path(folder), config, tables, num_partitions=2)
        builder.scan()
        return builder, builder.samples()


def check(tables: Tables, config: Config = CONFIG) -> list[str]:
    """What the samples of a log know too much or too little of."""
    builder, samples = built(tables, config)
    keys = ["user_row", "video_row", "timestamp"]
    assert samples[keys].equals(tables.events[keys]), "samples and events are not in line"
    expected = known_before(tables, config.features.session_gap_s, builder.known.label_prior)
    return differences(samples, builder.known.histories, expected)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(logs())
def test_samples_know_exactly_what_was_known(tables: Tables) -> None:
    try:
        found = check(tables)
    except DataError:  # too few different times to be divided
        assume(False)
    assert found == []


def test_a_larger_log_with_ties() -> None:
    tables = make_tables(num_users=12, num_videos=8, num_events=500, seed=5)
    assert tables.events.duplicated(["user_row", "timestamp"]).sum() > 5
    assert check(tables) == []


# --- planted leaks: the check above has to see each of them ---------------------------------------
def _itself(user_row: Any, timestamp: Any, *, by_order: bool) -> history.Positions:
    right = ORIGINAL_POSITIONS(user_row, timestamp)
    return history.Positions(right.user_first, np.arange(len(user_row)) + 1)


def _same_second(user_row: Any, timestamp: Any, *, by_order: bool) -> history.Positions:
    """Earlier rows of the same second count as the past."""
    right = ORIGINAL_POSITIONS(user_row, timestamp)
    return history.Positions(right.user_first, np.arange(len(user_row)))


def _next_event(user_row: Any, timestamp: Any, *, by_order: bool) -> history.Positions:
    right = ORIGINAL_POSITIONS(user_row, timestamp)
    last = np.searchsorted(user_row, user_row, side="right")
    return history.Positions(right.user_first, np.minimum(right.known_until + 2, last))


def _same_day(self: Any, video_row: Any, timestamp: Any) -> Any:
    return ORIGINAL_BEFORE(self, video_row, timestamp + DAY)


def _all_days(self: Any, video_row: Any, timestamp: Any) -> Any:
    return ORIGINAL_BEFORE(self, video_row, timestamp + 1000 * DAY)


def _longer_session(end: Any, start: Any, timestamp: Any, histories: Any, gap_s: int) -> Any:
    return ORIGINAL_SESSION(end, start, timestamp, histories, gap_s + 1)


ORIGINAL_POSITIONS = history.positions
ORIGINAL_BEFORE = DailyCounts.before
ORIGINAL_SESSION = history.session_pointer


@pytest.mark.parametrize(
    ("owner", "name", "leak", "seen"),
    [
        (history, "positions", _itself, "history"),
        (history, "positions", _same_second, "user_event_count"),
        (history, "positions", _next_event, "user_label_rate"),
        (DailyCounts, "before", _same_day, "video_event_count"),
        (DailyCounts, "before", _all_days, "video_label_rate"),
        (
            daily, "RECENT_DAYS", {"video_lift_7d": 8, "video_lift_30d": 30},
            "video_lift_7d",
        ),
        (history, "session_pointer", _longer_session, "session"),
    ],
)  # fmt: skip
def test_planted_leaks_are_caught(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, leak: Any, seen: str
) -> None:
    tables = make_tables(num_users=12, num_videos=8, num_events=500, seed=5)
    rng = np.random.default_rng(0)
    late = tables.events["timestamp"] + rng.integers(0, 2, len(tables.events))
    tables.events["timestamp"] = late  # some gaps of exactly the session gap plus one second
    tables.events = tables.events.sort_values(
        ["user_row", "timestamp"], kind="stable", ignore_index=True
    )
    assert check(tables) == []
    monkeypatch.setattr(owner, name, leak)
    assert any(f": {seen} is" in problem for problem in check(tables))


# --- the same without a reference: a changed future changes no feature of the past ----------------
@pytest.mark.parametrize("seed", range(3))
def test_the_future_does_not_change_the_past(seed: int) -> None:
    tables = make_tables(num_users=10, num_videos=8, num_events=400, seed=seed)
    config = make_config(split={"protocol": "temporal"})
    builder, before = built(tables, config)
    cut = builder.cuts.test_from
    rng = np.random.default_rng(seed)
    future = random_events(rng, 10, 8, 300)
    future["timestamp"] += cut - int(future["timestamp"].min())
    past = tables.events[tables.events["timestamp"] < cut]
    changed = pd.concat([past, future]).sort_values(
        ["user_row", "timestamp"], kind="stable", ignore_index=True
    )
    other_builder, after = built(Tables(tables.users, tables.videos, changed), config)
    early = after[after["timestamp"] < cut].reset_index(drop=True)
    kept = before[before["timestamp"] < cut].reset_index(drop=True)
    assert len(kept) == len(past) > 200
    numbers = [name for name in STATE if not name.endswith("rate")]
    pd.testing.assert_frame_equal(early[numbers], kept[numbers])
    for frame, owner in ((early, other_builder), (kept, builder)):
        start = owner.known.histories.start[frame["user_row"]]
        frame["length"] = frame["history_end"] - start
        frame["session_length"] = frame["history_end"] - frame["session_start"]
    lengths = ["length", "session_length"]
    pd.testing.assert_frame_equal(early[lengths], kept[lengths])


def test_the_prior_ignores_the_test_part() -> None:
    tables = make_tables(num_users=10, num_videos=8, num_events=400)
    builder, _ = built(tables)
    seen = tables.events["timestamp"] < builder.cuts.test_from
    expected = tables.events["label"][seen].astype(float).mean()
    assert builder.known.label_prior == pytest.approx(expected, abs=1e-12)
    tables.events.loc[~seen, "label"] = 1.0
    assert built(tables)[0].known.label_prior == builder.known.label_prior
