"""What a user watched before the request, newest first.

Files: watched_row.npy (all users' watches, by time), watched_start.npy (where each user's begin),
watched_flag.npy (by watch: UNFINISHED, LIKED), duration_s.npy (by video row, NaN = not known).
"""

from typing import Any, NamedTuple

import numpy as np

UNFINISHED, LIKED = 1, 2
BEGUN, DONE, LEFT_S = 0.05, 0.9, 60.0  # shares of a video and seconds left: what is unfinished
RECENT = 50  # how far back unfinished videos and reasons for rows are looked for


class Past(NamedTuple):
    """Video rows; of `seeds` and `unfinished` lists, newest first, each video once.

    The first `num_now` seeds were watched in the session that is still open.
    """

    watched: Any
    seeds: Any
    unfinished: Any
    num_now: int


class History:
    """Looks pasts up.

    Args:
        num_seeds: of how many watches neighbours are looked for.
    """

    def __init__(self, folder, open_array, num_seeds):
        self.num_seeds = num_seeds
        for name in ("watched_row", "watched_start", "watched_flag", "duration_s"):
            setattr(self, name, open_array(folder / f"{name}.npy"))

    def past(self, user_row, until, online, watch_s, session_size):
        """The Past of one user.

        Args:
            until: end of the user's watches in the bundle before the request.
            online: int32, rows of what was watched since the export, oldest first.
            watch_s: float32, the seconds of these watches; NaN where not known.
            session_size: how many of the last watches are of the open session.
        """
        first = int(self.watched_start[user_row])
        recent = slice(max(first, until - RECENT), until)
        rows, flags = self.watched_row[recent].tolist(), self.watched_flag[recent].tolist()
        if len(online):
            rows += online.tolist()
            flags += self.online_flags(online, watch_s).tolist()
        newest, latest = rows[::-1], {}
        for row, flag in zip(newest, reversed(flags), strict=True):
            latest.setdefault(row, flag)
        now = set(newest[:session_size])
        liked = [row for row, flag in latest.items() if flag & LIKED]
        unfinished = [row for row, flag in latest.items() if flag & UNFINISHED]
        watched = np.concatenate([self.watched_row[first:until], online])
        seeds = liked[: self.num_seeds]
        return Past(watched, seeds, unfinished, sum(row in now for row in seeds))

    def online_flags(self, rows, watch_s):
        """Flags of watches since the export: liked, and unfinished as those of the log are."""
        whole_s = self.duration_s[rows]
        begun = (watch_s >= BEGUN * whole_s) & (watch_s < DONE * whole_s)  # never where NaN
        return LIKED | UNFINISHED * (begun & (whole_s - watch_s >= LEFT_S))
