"""Which videos a policy may show at an exposure, and uniform samples of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.metrics import Int64, Lists

_ABSENT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Shelves:
    """Videos by group in order of publication: what may be shown at a time is a prefix.

    Attributes:
        videos: one list of video rows per group, by publication.
        published: int64 [len(videos.values)], when each of them appeared.
        place: int32 [groups, num_videos + 1], where a video stands in its group.
    """

    videos: Lists
    published: Int64
    place: npt.NDArray[np.int32]

    @classmethod
    def arrange(cls, members: list[Int64], publish_time: Int64) -> Shelves:
        """Shelves of the given groups.

        Args:
            members: video rows of each group.
            publish_time: int64 [num_videos + 1] by video row; 0 = always there.
        """
        ordered = [rows[np.argsort(publish_time[rows], kind="stable")] for rows in members]
        place = np.full((len(members), len(publish_time)), _ABSENT, np.int32)
        for group, rows in enumerate(ordered):
            place[group, rows] = np.arange(len(rows))
        offsets = np.r_[0, np.cumsum([len(rows) for rows in ordered])].astype(np.int64)
        values = np.concatenate(ordered).astype(np.int64)
        return cls(Lists(values, offsets), publish_time[values], place)

    def until(self, group: Int64, time: Int64) -> Int64:
        """How many videos of each group were out by a time; int64 [n]."""
        result = np.zeros(len(group), np.int64)
        for number in np.unique(group):
            chosen = group == number
            first, last = self.videos.offsets[number : number + 2]
            result[chosen] = np.searchsorted(self.published[first:last], time[chosen], side="right")
        return result


@dataclass(frozen=True)
class Eligible:
    """What may be shown at each of n exposures: a prefix of a shelf less the recently shown.

    Attributes:
        shelves: the groups.
        group: int64 [n].
        until: int64 [n], length of the prefix.
        recent: recently shown videos of each exposure, distinct.
    """

    shelves: Shelves
    group: Int64
    until: Int64
    recent: Lists

    @property
    def counts(self) -> Int64:
        """How many videos are eligible; int64 [n]."""
        owner = np.repeat(np.arange(len(self.recent)), np.diff(self.recent.offsets))
        inside = self._on_shelf(owner, self.recent.values)
        return self.until - np.bincount(owner[inside], minlength=len(self.until))

    def holds(self, videos: Int64) -> npt.NDArray[np.bool_]:
        """Whether `videos`, int64 [n] or [n, m], are eligible at their exposures; same shape."""
        at = np.arange(len(videos)).reshape(-1, *[1] * (videos.ndim - 1))
        at = np.broadcast_to(at, videos.shape)
        return self._on_shelf(at, videos) & ~self._is_recent(at, videos)

    def _on_shelf(self, at: Int64, videos: Int64) -> npt.NDArray[np.bool_]:
        inside: npt.NDArray[np.bool_] = self.shelves.place[self.group[at], videos] < self.until[at]
        return inside

    def _is_recent(self, at: Int64, videos: Int64) -> npt.NDArray[np.bool_]:
        stride = self.shelves.place.shape[1]
        owner = np.repeat(np.arange(len(self.recent)), np.diff(self.recent.offsets))
        found: npt.NDArray[np.bool_] = np.isin(
            at * stride + videos, owner * stride + self.recent.values
        )
        return found

    def sample(self, rng: np.random.Generator, size: int) -> tuple[Int64, npt.NDArray[np.bool_]]:
        """Distinct eligible videos, drawn uniformly for each exposure.

        Returns:
            videos int64 [n, size] and valid bool [n, size]; rows with fewer eligible videos are
            filled up with invalid zeros.
        """
        width = 4 * size
        places = rng.integers(0, np.maximum(self.until, 1)[:, None], (len(self.until), width))
        small = np.flatnonzero(self.until <= width)  # these in random order, each place once
        places[small] = np.argsort(rng.random((len(small), width)), axis=1)
        good = (places < self.until[:, None]) & ~_repeated(places)
        offsets = self.shelves.videos.offsets[self.group]
        last = max(len(self.shelves.videos.values) - 1, 0)
        videos = self.shelves.videos.values[np.minimum(offsets[:, None] + places, last)]
        good &= self.holds(videos)
        first = np.argsort(~good, axis=1, kind="stable")[:, :size]
        valid = np.take_along_axis(good, first, axis=1)
        return np.where(valid, np.take_along_axis(videos, first, axis=1), 0), valid


def _repeated(values: Int64) -> npt.NDArray[np.bool_]:
    """Which entries of each row have come before in it; bool, same shape."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    again = np.zeros(values.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.empty_like(again)
    np.put_along_axis(result, order, again, axis=1)
    return result


def recently_shown(
    log: tuple[Int64, Int64, Int64], user: Int64, time: Int64, window_s: int
) -> Lists:
    """Distinct videos that each user was shown within `window_s` seconds strictly before a time.

    Args:
        log: (user, time, video), int64 [events] each, sorted by user and time.
        user, time: int64 [n].
    """
    log_user, log_time, log_video = log
    first = int(min(log_time.min(initial=0), time.min(initial=0)))
    span = int(max(log_time.max(initial=0), time.max(initial=0))) - first + 1
    moment = log_user * span + log_time - first  # sorts by user and time in one
    now = user * span + time - first
    begin = np.searchsorted(moment, np.maximum(now - window_s, user * span))
    end = np.searchsorted(moment, now)
    sizes = end - begin
    owner = np.repeat(np.arange(len(user)), sizes)
    where = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes - begin, sizes)
    pairs = np.unique(np.stack([owner, log_video[where]]), axis=1)
    return Lists.group(pairs[0], pairs[1], len(user))
