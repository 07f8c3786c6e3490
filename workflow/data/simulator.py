"""A simulated video service: pages shown, clicks and seconds watched, at any size.

Reads top-down: `simulate` makes the world, sets the click level, then works through blocks of
users. A block is the unit of randomness (its own seed) and of memory; a file holds whole blocks.
What it models, where its numbers come from and what it is not: SIMULATOR.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workflow.config import SimConfig
from workflow.console import Report, no_report
from workflow.data.simulator_policy import Policy
from workflow.data.simulator_random import Array, generator, rank_in_group, sigmoid
from workflow.data.simulator_response import (
    WATCH_SPREAD,
    WATCHED_PENALTY,
    Context,
    Truth,
    click_logit,
    log_watch,
    mean_watch_s,
    save_world,
)
from workflow.data.simulator_sessions import Plan, make_pages, plan_sessions
from workflow.data.simulator_world import (
    DEVICES,
    LOG_END,
    World,
    make_world,
    visible_users,
    visible_videos,
)

__all__ = ["Context", "Truth", "simulate"]

CLICK_RATE = 0.20
EVENTS_PER_BLOCK = 65_536
EVENTS_PER_FILE = 2_000_000
_COUNTS, _LEVEL, _BLOCK = 4, 5, 6  # random streams; the world uses 0 to 3 and 7


def simulate(
    config: SimConfig,
    folder: Path,
    report: Report = no_report,
    *,
    events_per_file: int = EVENTS_PER_FILE,
) -> dict[str, Any]:
    """Write a simulated dataset: users, videos, events, and its ground truth.

    The same `config` gives the same bytes with the same library versions on the same kind of
    machine; the rows and their order do not depend on `events_per_file`.

    Args:
        config: size, length and seed; exactly `config.num_events` events are written.
        folder: an existing folder to write into; the caller makes it atomic.
        report: told of the progress, in events.
        events_per_file: about how many events go into one file.
    Returns:
        users, videos, events, click_rate, watch_hours, files.
    """
    report(0, config.num_events, "world")
    world = make_world(config)
    pq.write_table(visible_users(world.users), folder / "users.parquet")
    pq.write_table(visible_videos(world.videos, config.seed), folder / "videos.parquet")
    policy = Policy(world)
    counts = event_counts(world)
    world = with_click_level(world, policy, counts)
    save_world(world, folder)
    totals = {"events": 0, "clicks": 0, "watch_s": 0.0}
    with _Files(folder, events_per_file) as files:
        for block, (first, last) in enumerate(blocks(counts)):
            visible, hidden = simulate_block(world, policy, counts, block, first, last)
            files.write(visible, hidden)
            totals["events"] += visible.num_rows
            totals["clicks"] += int(visible["clicked"].to_numpy().sum())
            totals["watch_s"] += float(visible["watch_s"].to_numpy().sum(dtype=np.float64))
            report(totals["events"], config.num_events, "events")
    return {
        "users": config.num_users,
        "videos": config.num_videos,
        "events": int(totals["events"]),
        "click_rate": round(totals["clicks"] / totals["events"], 4),
        "watch_hours": round(totals["watch_s"] / 3600, 1),
        "files": files.count,
    }


def event_counts(world: World) -> Array:
    """Exposures of each user; int64 [users] that sum to exactly `num_events`."""
    since = np.maximum(world.users.signup_time, world.start)
    weight = world.users.activity.astype(np.float64) * (LOG_END - since)
    rng = generator(world.config.seed, _COUNTS)
    return rng.multinomial(world.config.num_events, weight / weight.sum())


def blocks(counts: Array) -> Iterator[tuple[int, int]]:
    """Ranges of users with about EVENTS_PER_BLOCK events each; only `counts` decides."""
    total = np.cumsum(counts)
    inner = np.searchsorted(total, np.arange(EVENTS_PER_BLOCK, total[-1], EVENTS_PER_BLOCK)) + 1
    edges = np.unique(np.concatenate([[0], inner, [len(counts)]]))
    for first, last in itertools.pairwise(edges):
        if counts[first:last].any():
            yield int(first), int(last)


def with_click_level(world: World, policy: Policy, counts: Array) -> World:
    """Choose the intercept that gives a sample of exposures the mean click rate CLICK_RATE."""
    last = int(np.searchsorted(np.cumsum(counts), EVENTS_PER_BLOCK // 2)) + 1
    rng = generator(world.config.seed, _LEVEL)
    plan, video, _, repeats = _exposures(world, policy, rng, counts, 0, last)
    logit = click_logit(world, plan.user, video, plan.timestamp, plan.context(repeats))
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        if sigmoid(logit + middle).mean() < CLICK_RATE:
            low = middle
        else:
            high = middle
    return dataclasses.replace(world, base_logit=round(low, 6))


def simulate_block(
    world: World, policy: Policy, counts: Array, block: int, first: int, last: int
) -> tuple[pa.Table, pa.Table]:
    """All events of users [first, last) by user and time: the visible columns, and the truth."""
    rng = generator(world.config.seed, _BLOCK, block)
    plan, video, propensity, repeats = _exposures(world, policy, rng, counts, first, last)
    context = plan.context(repeats)
    clicked, chance, watched_before = _clicks(world, rng, plan, video, context)
    log_mean = log_watch(world, plan.user, video, plan.timestamp, context)
    duration = world.videos.duration_s[video]
    endless = np.exp(log_mean + WATCH_SPREAD * rng.standard_normal(len(video)))
    watch_s = np.where(clicked, np.minimum(endless, duration), 0)
    truth = pa.table({
        "click_probability": chance.astype(np.float32),
        "expected_watch_s": mean_watch_s(log_mean, duration).astype(np.float32),
        "intent": np.asarray(context.intent, dtype=np.int8),
        "mood": np.asarray(context.mood, dtype=np.int8),
        "seen_in_session": plan.seen_in_session.astype(np.int16),
        "repeats": repeats.astype(np.int32),
        "watched_before": watched_before,
    })  # fmt: skip
    return _visible(world, plan, video, propensity, clicked, watch_s), truth


def _exposures(
    world: World, policy: Policy, rng: np.random.Generator, counts: Array, first: int, last: int
) -> tuple[Plan, Array, Array, Array]:
    """What is shown to users [first, last): the plan, and per event the video (row), its
    propensity, and how often this user was shown it before. Events by user and time."""
    plan = plan_sessions(world, rng, first, counts[first:last])
    pages = make_pages(world, policy, rng, plan, first, last)
    shown, chance = pages.fill(rng, plan.page_length)
    order = np.lexsort((plan.page, plan.timestamp, plan.user))
    plan = plan.in_order(order)
    video = shown[plan.page, plan.position]
    return plan, video, chance[plan.page, plan.position], rank_in_group(_pair(plan.user, video))


def _pair(user: Array, video: Array) -> Array:
    return np.asarray(user.astype(np.int64) << 32 | video.astype(np.int64))


def _clicks(
    world: World, rng: np.random.Generator, plan: Plan, video: Array, context: Context
) -> tuple[Array, Array, Array]:
    """Per event: whether clicked, with which probability, and whether watched before.

    A click lowers the chance of the next one on the same video. So the n-th exposures of all
    (user, video) pairs are decided together, for n = 0, 1, 2, ...
    """
    logit = click_logit(world, plan.user, video, plan.timestamp, context)
    luck = rng.random(len(video))
    order = np.argsort(_pair(plan.user, video), kind="stable")  # exposures of a pair side by side
    repeats = np.append(np.asarray(context.repeats)[order], 0)
    clicked, watched = np.zeros((2, len(video)), dtype=bool)
    chance = np.empty(len(video))
    rows = np.flatnonzero(repeats[:-1] == 0)
    while len(rows):
        event = order[rows]
        chance[event] = sigmoid(logit[event] + WATCHED_PENALTY * watched[event])
        clicked[event] = luck[event] < chance[event]
        rows = rows[repeats[rows + 1] > 0] + 1
        before = order[rows - 1]
        watched[order[rows]] = watched[before] | clicked[before]
    return clicked, chance, watched


def _visible(
    world: World, plan: Plan, video: Array, propensity: Array, clicked: Array, watch_s: Array
) -> pa.Table:
    session = plan.page_session[plan.page]
    user_id = world.users.user_id[plan.user]
    return pa.table({
        "user_id": user_id,
        "video_id": world.videos.video_id[video],
        "timestamp": plan.timestamp,
        "clicked": clicked.astype(np.int64),
        "watch_s": watch_s.astype(np.float32),
        "propensity": propensity.astype(np.float32),
        "device": pa.array(DEVICES).take(pa.array(plan.session_device[session])),
        "position": plan.position,
        "session_id": user_id * 1_000_000 + plan.session_number[session],
    })  # fmt: skip


class _Files:
    """Event files and their truth files, row for row; a new pair begins at a block's edge."""

    def __init__(self, folder: Path, events_per_file: int) -> None:
        self.count = 0
        self._folders = (folder / "events", folder / "truth" / "events")
        self._events_per_file = events_per_file
        self._rows = 0
        self._writers: list[pq.ParquetWriter] = []
        for place in self._folders:
            place.mkdir(parents=True)

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def write(self, visible: pa.Table, hidden: pa.Table) -> None:
        if not self._writers:
            name = f"part-{self.count:05d}.parquet"
            for place, table in zip(self._folders, (visible, hidden), strict=True):
                self._writers.append(pq.ParquetWriter(place / name, table.schema))
            self.count += 1
        for writer, table in zip(self._writers, (visible, hidden), strict=True):
            writer.write_table(table)
        self._rows += visible.num_rows
        if self._rows >= self._events_per_file:
            self._close()

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers, self._rows = [], 0
