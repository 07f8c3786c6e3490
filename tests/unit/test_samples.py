"""Samples: time context, video age, what is left out, and data without labels."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import DAY, START, make_config, make_contract, make_tables
from workflow.features.daily import DailyCounter
from workflow.features.history import Histories, session_starts
from workflow.features.samples import (
    Cuts,
    Known,
    build_samples,
    split_of,
    time_context,
    video_age_days,
)
from workflow.features.split import TRAIN, UNUSED


@given(st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=20))
def test_time_context(moments: list[int]) -> None:
    got = time_context(np.array(moments, np.int64))
    clock = [datetime.fromtimestamp(moment, UTC) for moment in moments]
    assert got["hour"].tolist() == [moment.hour for moment in clock]
    assert got["weekday"].tolist() == [moment.weekday() for moment in clock]


def test_video_age() -> None:
    published = np.array([0, START, START + DAY, START - 3 * DAY // 2])
    got = video_age_days(published, np.full(4, START, np.int64))
    assert got.dtype == np.float32
    assert np.isnan(got[0]) and got[1:].tolist() == [0.0, 0.0, 1.5]  # not yet out: age 0


def known(events: pd.DataFrame, num_users: int) -> Known:
    watched = events[events["watched"]]
    user, time = watched["user_row"].to_numpy(), watched["timestamp"].to_numpy()
    start = np.searchsorted(user, np.arange(num_users + 2)).astype(np.int64)
    video = watched["video_row"].to_numpy()
    histories = Histories(video, time, start, session_starts(user, time, 1800))
    daily = DailyCounter()
    daily.add(events["video_row"].to_numpy(), events["timestamp"].to_numpy(), np.ones(len(events)))
    return Known(histories, daily.finish(), None, 0.5)


def test_propensity_goes_with_its_exposure() -> None:
    tables = make_tables(num_users=10, num_videos=50, num_events=300)
    part, lookup = np.zeros(300, np.int8), known(tables.events, 10)
    contract = make_contract(publish_time=False, propensity=True)
    samples = build_samples(tables.events, part, contract, make_config(), lookup)
    assert samples["propensity"].tolist() == tables.events["propensity"].tolist()
    assert samples["propensity"].dtype == np.float32
    without = build_samples(
        tables.events, part, make_contract(publish_time=False), make_config(), lookup
    )
    assert "propensity" not in without


def test_without_labels_every_watch_is_positive() -> None:
    contract = make_contract(label=False, publish_time=False)
    tables = make_tables(num_users=10, num_videos=50, num_events=300)
    events = tables.events.drop(columns="label").assign(watched=True)
    part = np.zeros(300, np.int8)
    samples = build_samples(events, part, contract, make_config(), known(events, 10))
    assert len(samples) == 300 and (samples["label"] == 1).all() and (samples["watched"] == 1).all()
    assert "video_label_rate" not in samples and "user_label_rate" not in samples


def test_unused_events_are_left_out() -> None:
    contract = make_contract(publish_time=False)
    tables = make_tables(num_users=10, num_videos=50, num_events=300)
    part = np.full(300, TRAIN, np.int8)
    part[::3] = UNUSED
    lookup = known(tables.events, 10)
    samples = build_samples(tables.events, part, contract, make_config(), lookup)
    kept = tables.events[part != UNUSED]
    assert samples["timestamp"].tolist() == kept["timestamp"].tolist()


def test_split_of_follows_the_protocol() -> None:
    events = make_tables(num_events=200).events
    middle = START + 5 * DAY
    part = split_of(events, make_config(), Cuts(middle, middle + DAY))
    times = events["timestamp"].to_numpy()
    assert part.tolist() == [int(t >= middle) + int(t >= middle + DAY) for t in times]
    out = split_of(events, make_config(split={"protocol": "leave_last_out"}), Cuts(0, 0))
    assert (out == 2).sum() == (out == 1).sum() > 10
