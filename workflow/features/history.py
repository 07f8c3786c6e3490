"""Point-in-time features: what was known strictly before each event, computed without loops.

Events arrive sorted by (user_row, timestamp). Two events of a user in the same second do not
know of each other, except under leave-last-out, which goes by the order of the log.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Positions:
    """Where each event stands in its user's past.

    Attributes:
        user_first: int64 [n], index of the user's first event.
        known_until: int64 [n], events [user_first, known_until) happened before.
    """

    user_first: Int64
    known_until: Int64


def positions(user_row: Int64, timestamp: Int64, *, by_order: bool = False) -> Positions:
    """For each event of a sorted table, the range of the user's earlier events.

    Args:
        by_order: an event knows those of its own second that the log lists before it; otherwise
            only strictly earlier seconds.
    """
    index = np.arange(len(user_row))
    new_user = np.r_[True, user_row[1:] != user_row[:-1]] if len(user_row) else np.zeros(0, bool)
    new_moment = new_user.copy()
    new_moment[1:] |= by_order | (timestamp[1:] != timestamp[:-1])
    return Positions(
        user_first=np.maximum.accumulate(np.where(new_user, index, 0)),
        known_until=np.maximum.accumulate(np.where(new_moment, index, 0)),
    )


def count_before(values: npt.NDArray[np.float64], at: Positions) -> npt.NDArray[np.float64]:
    """Sum of `values` over each event's strictly earlier events of the same user."""
    running = np.r_[0.0, np.cumsum(values)]
    total: npt.NDArray[np.float64] = running[at.known_until] - running[at.user_first]
    return total


@dataclass(frozen=True)
class Histories:
    """Watched videos of all users, one flat array sorted by (user, time).

    Attributes:
        video_row: int32 [num_watched].
        time: int64 [num_watched], unix seconds.
        start: int64 [num_users + 2]; user u owns [start[u], start[u + 1]). Row 0 is the
            unknown user and owns nothing.
        session_start: int64 [num_watched], where the session of each watch begins.
        label: int8 [num_watched], 1 where the watch was positive; None where the log cannot
            tell (no label, or only positives are watches).
    """

    video_row: npt.NDArray[np.int32]
    time: Int64
    start: Int64
    session_start: Int64
    label: npt.NDArray[np.int8] | None = None


def session_starts(user_row: Int64, time: Int64, gap_s: int) -> Int64:
    """Index at which each watch's session begins: a gap of more than `gap_s` ends a session."""
    if len(time) == 0:
        return np.zeros(0, np.int64)
    fresh = np.r_[True, (user_row[1:] != user_row[:-1]) | (np.diff(time) > gap_s)]
    result: Int64 = np.maximum.accumulate(np.where(fresh, np.arange(len(time)), 0))
    return result


def session_pointer(
    history_end: Int64, user_start: Int64, timestamp: Int64, histories: Histories, gap_s: int
) -> Int64:
    """Start of the session that is still open at each event; `history_end` when none is.

    Args:
        history_end: int64 [n], exclusive end of what the event's user had watched before.
        user_start: int64 [n], `histories.start` of the event's user.
        timestamp: int64 [n].
    """
    if len(histories.time) == 0:
        return history_end.copy()
    last = np.maximum(history_end - 1, 0)
    is_open = (history_end > user_start) & (timestamp - histories.time[last] <= gap_s)
    return np.where(is_open, histories.session_start[last], history_end)


PRIOR_EVENTS = 10.0


def smoothed_rate(
    labels: npt.NDArray[np.float64], events: npt.NDArray[np.float64], prior: float
) -> Float32:
    """Share of positive labels, pulled to `prior` as if ten more events had shown it."""
    rate: Float32 = ((labels + PRIOR_EVENTS * prior) / (events + PRIOR_EVENTS)).astype(np.float32)
    return rate
