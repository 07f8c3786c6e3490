"""When users come, on which device, with which intent, and what pages they ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from workflow.data.simulator_policy import PAGE_SIZE, PagePolicy, Pages, Policy
from workflow.data.simulator_random import Array, draw_rows, unit
from workflow.data.simulator_response import Context, taste_at
from workflow.data.simulator_world import DAY, LOG_END, UTC_OFFSET_S, World

MEAN_SESSION = 9  # exposures, before the cut at MAX_SESSION
MAX_SESSION = 3 * PAGE_SIZE
MAX_PACE_S = 7  # between two places of a page
SESSION_SPAN_S = 2 * (120 + 1_800) + PAGE_SIZE * 8  # no session lasts longer
WEEKEND = 1.3  # activity on Saturdays and Sundays
INTENT_SHARE = np.array([0.40, 0.25, 0.20, 0.15])  # browse, mood, continue, explore
MOOD_SHARPNESS = 6.0
ARM_SHARE = np.array([  # evergreen, trending, personal, uniform; one row per intent
    [0.30, 0.15, 0.45, 0.10],
    [0.20, 0.10, 0.60, 0.10],
    [0.20, 0.05, 0.65, 0.10],
    [0.25, 0.25, 0.30, 0.20],
])  # fmt: skip
POLICY_ERROR = 0.9  # length of the error in the policy's guess of a unit taste
MOOD_IN_QUERY = 0.7  # how far the policy follows the genre shelf a user opened
# preferred device -> device used; in the evening the tv gains
DEVICE_USED = np.array([
    [0.74, 0.10, 0.04, 0.12],
    [0.25, 0.62, 0.05, 0.08],
    [0.20, 0.12, 0.58, 0.10],
    [0.22, 0.10, 0.04, 0.64],
])  # fmt: skip
# how people in general spread over the local hours 0-23 (a broad evening peak, a small lunch one)
HOUR_SHARE = np.array([
    3, 2, 1, 1, 1, 1, 2, 3, 4, 4, 4, 5, 6, 6, 5, 5, 6, 7, 9, 11, 12, 11, 8, 5,
], dtype=np.float64)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A block's exposures before anything is shown.

    Plain names hold one value per event, `page_*` one per page, `session_*` one per session.
    """

    user: Array  # row of the user
    page: Array
    position: Array  # 0-based place on the page
    seen_in_session: Array
    timestamp: Array  # seconds: when the page showed the video
    page_session: Array
    page_time: Array  # when the page was asked for
    page_length: Array
    session_user: Array
    session_number: Array  # 0-based within the user, by time
    session_device: Array
    session_intent: Array
    session_mood: Array

    def in_order(self, order: Array) -> Plan:
        """The same plan with its events reordered."""
        per_event = ("user", "page", "position", "seen_in_session", "timestamp")
        changed: dict[str, Any] = {name: getattr(self, name)[order] for name in per_event}
        return dataclasses.replace(self, **changed)

    def context(self, repeats: Array) -> Context:
        """The circumstances of every event; nothing is marked as watched before."""
        session = self.page_session[self.page]
        return Context(
            device=self.session_device[session],
            position=self.position,
            intent=self.session_intent[session],
            mood=self.session_mood[session],
            seen_in_session=self.seen_in_session,
            repeats=repeats,
            watched_before=np.zeros(len(repeats), dtype=bool),
        )


def plan_sessions(world: World, rng: np.random.Generator, first: int, counts: Array) -> Plan:
    """Spread each user's exposures over sessions and pages.

    Args:
        first: row of the first user.
        counts: int [users], exposures of users first, first + 1, ...
    """
    user, session, within = _split_into_sessions(rng, first, counts)
    session_user = user[within == 0]
    start = _session_starts(world, rng, session_user)
    device, intent, mood = session_kinds(world, rng, session_user, start)
    page_number, position = within // PAGE_SIZE, within % PAGE_SIZE
    page = np.cumsum(position == 0) - 1
    page_session = session[position == 0]
    pause = 120 + np.minimum(rng.exponential(600, len(start)), 1_800).astype(np.int64)
    page_time = start[page_session] + page_number[position == 0] * pause[page_session]
    pace = rng.integers(2, MAX_PACE_S + 1, len(page_time))  # seconds between two places of the page
    opens = np.flatnonzero(np.diff(session_user, prepend=-1))
    per_user = np.diff(opens, append=len(session_user))
    return Plan(
        user=user,
        page=page,
        position=position,
        seen_in_session=within,
        timestamp=page_time[page] + position * pace[page],
        page_session=page_session,
        page_time=page_time,
        page_length=np.bincount(page, minlength=len(page_time)),
        session_user=session_user,
        session_number=np.arange(len(session_user)) - np.repeat(opens, per_user),
        session_device=device,
        session_intent=intent,
        session_mood=mood,
    )


def _split_into_sessions(
    rng: np.random.Generator, first: int, counts: Array
) -> tuple[Array, Array, Array]:
    """Per event: the user, the session's number in the block, the place within the session."""
    user = np.repeat(np.arange(first, first + len(counts)), counts)
    index = np.arange(len(user))
    opens = rng.random(len(user)) < 1 / MEAN_SESSION
    opens |= np.diff(user, prepend=-1) != 0
    within = index - np.maximum.accumulate(np.where(opens, index, 0))
    within %= MAX_SESSION
    return user, np.cumsum(within == 0) - 1, within


def _session_starts(world: World, rng: np.random.Generator, user: Array) -> Array:
    """Start times, ascending within each user: a day after signup, then a local hour."""
    people, size = world.users, len(user)
    signup = np.maximum(people.signup_time[user], world.start)
    days = np.arange(world.start // DAY, -(-LOG_END // DAY))
    weight = np.where((days + 3) % 7 >= 5, WEEKEND, 1.0)  # 1970-01-01 was a Thursday
    cumulative = np.cumsum(weight) / weight.sum()
    open_days = signup // DAY - days[0]
    before = np.where(open_days > 0, cumulative[np.maximum(open_days - 1, 0)], 0.0)
    target = before + rng.random(size) * (1 - before)
    day = days[np.minimum(np.searchsorted(cumulative, target, side="right"), len(days) - 1)]
    general = draw_rows(rng, np.broadcast_to(HOUR_SHARE, (size, 24))) + rng.random(size)
    own = people.peak_hour[user] + 2.0 * rng.standard_normal(size)
    hour = np.where(rng.random(size) < 0.6, own, general) % 24
    start = day * DAY + (hour * 3600).astype(np.int64)
    start -= UTC_OFFSET_S[people.country[user]].astype(np.int64)
    last = LOG_END - SESSION_SPAN_S - 1
    start = np.where(start > last, start - DAY, np.where(start < signup, start + DAY, start))
    start = np.clip(start, signup, last)
    return np.asarray(start[np.lexsort((start, user))])


def session_kinds(
    world: World, rng: np.random.Generator, user: Array, start: Array
) -> tuple[Array, Array, Array]:
    """Device, intent and mood genre (-1 = none) of each session."""
    people, size = world.users, len(user)
    chance = DEVICE_USED[people.device[user]].copy()
    hour = (start + UTC_OFFSET_S[people.country[user]]) % DAY / 3600
    chance[:, 1] *= 1 + 0.6 * np.cos((hour - 21) * (np.pi / 12))
    device = draw_rows(rng, chance)
    intent = draw_rows(rng, np.broadcast_to(INTENT_SHARE, (size, len(INTENT_SHARE))))
    liking = taste_at(world, user, start) @ world.genre_vectors.T
    mood = draw_rows(rng, np.exp(MOOD_SHARPNESS * liking))
    return device, intent, np.where(intent == 1, mood, -1)


def make_pages(
    world: World, policy: Policy, rng: np.random.Generator, plan: Plan, first: int, last: int
) -> PagePolicy:
    """What the policy knows at each page of users [first, last)."""
    error = policy_error(world, rng, last - first)
    session = plan.page_session
    user = plan.session_user[session]
    intent, mood = plan.session_intent[session], plan.session_mood[session]
    return pages_at(
        world, policy, error[user - first],
        user=user, time=plan.page_time, intent=intent, mood=mood,
    )  # fmt: skip


def policy_error(world: World, rng: np.random.Generator, count: int) -> Array:
    """Lasting errors of the policy about `count` users; float64 [count, DIMENSIONS]."""
    error = rng.standard_normal((count, world.videos.vector.shape[1]))
    return np.asarray(error * (POLICY_ERROR / np.sqrt(error.shape[1])))


def pages_at(
    world: World,
    policy: Policy,
    error: Array,
    *,
    user: Array,
    time: Array,
    intent: Array,
    mood: Array,
) -> PagePolicy:
    """The policy at pages asked for by users at times: a taste with an error, and the intent.

    Args:
        error: [pages, DIMENSIONS], of each page's user.
        user, time, intent, mood: int [pages]; mood -1 = none.
    """
    guess = unit(taste_at(world, user, time) + error)
    shelf = np.where(mood[:, None] >= 0, world.genre_vectors[mood], 0)
    return policy.at(Pages(
        country=world.users.country[user],
        maturity_limit=world.users.maturity_limit[user],
        refresh=policy.refresh_of(time),
        query=unit(guess + MOOD_IN_QUERY * shelf),
        arm_share=ARM_SHARE[intent],
    ))  # fmt: skip
