"""Evaluation queries: requests, what was watched next, and what to leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.metrics import Int64, Lists
from workflow.features.encoded import FeatureStore
from workflow.features.history import Histories
from workflow.frames import read_frame

_LATER_PARTS = {"train": ("valid", "test"), "valid": ("test",), "test": ()}


@dataclass(frozen=True)
class Queries:
    """Requests at moments of held-out watches.

    Attributes:
        samples: column -> array [n]; the sample rows of those watches (what was known then).
        relevant: watches that should be found and that the user had not watched before.
        excluded: videos that the user had watched before.
        user_row: int64 [n], who asks.
    """

    samples: dict[str, npt.NDArray[Any]]
    relevant: Lists
    excluded: Lists
    user_row: Int64

    def __len__(self) -> int:
        return len(self.excluded)

    @property
    def has_history(self) -> npt.NDArray[np.bool_]:
        """Whether the user had watched anything before; bool [n]."""
        return self.excluded.sizes > 0

    def take(self, chosen: Int64) -> Queries:
        """The queries at positions `chosen`."""
        return Queries(
            {name: values[chosen] for name, values in self.samples.items()},
            self.relevant.take(chosen),
            self.excluded.take(chosen),
            self.user_row[chosen],
        )

    def sample(self, max_queries: int, seed: int) -> Queries:
        """At most `max_queries` of them, drawn at random, in the same order."""
        if len(self) <= max_queries:
            return self
        chosen = np.random.default_rng(seed).permutation(len(self))[:max_queries]
        return self.take(np.sort(chosen))


def held_out_queries(store: FeatureStore, part: str, columns: list[str]) -> Queries:
    """One query per user of the "valid" or "test" part, at the first watch held out in it.

    That watch gives history and context; later ones of the part only count as relevant. What
    the user watched in earlier parts is left out, also where it carries the same second. Users
    whose held-out watches are all repeats drop out.
    """
    frame = _watches(store, part, columns)
    first = frame.drop_duplicates("user_row").reset_index(drop=True)
    histories = store.histories()
    user = first["user_row"].to_numpy(np.int64)
    held_out = _watches_per_user(store, (part, *_LATER_PARTS[part]), len(histories.start))
    known_until = histories.start[user + 1] - held_out[user]
    excluded = Lists.ranges(histories.video_row, histories.start[user], known_until)
    owner = np.searchsorted(user, frame["user_row"].to_numpy())
    relevant = _relevant(owner, frame["video_row"].to_numpy(np.int64), excluded)
    return _queries(first, columns, relevant, excluded)


def rolling_queries(
    store: FeatureStore, columns: list[str], *, per_user: int, max_queries: int, seed: int
) -> Queries:
    """Requests all through the test part, each knowing what was watched before its moment.

    Every moment at which a user watches something new is a possible request; what was watched
    in that second is relevant. Each user has at most `per_user` requests, fewer where all users
    together would have more than `max_queries`, drawn at random.
    """
    frame = _watches(store, "test", columns)
    histories = store.histories()
    user, video = (frame[n].to_numpy(np.int64) for n in ("user_row", "video_row"))
    is_new = _first_watched(histories, user, video) >= frame["history_end"].to_numpy(np.int64)
    frame = frame[is_new].reset_index(drop=True)
    moments = frame.drop_duplicates(["user_row", "timestamp"])
    users = moments["user_row"].to_numpy(np.int64)
    limit = max(1, min(per_user, max_queries // max(len(np.unique(users)), 1)))
    moments = moments[_at_most(users, limit, seed)].reset_index(drop=True)
    moments = moments.assign(query=np.arange(len(moments)))
    pairs = frame[["user_row", "timestamp", "video_row"]].merge(
        moments[["user_row", "timestamp", "query"]], on=["user_row", "timestamp"]
    )
    start = histories.start[moments["user_row"].to_numpy(np.int64)]
    end = moments["history_end"].to_numpy(np.int64)
    excluded = Lists.ranges(histories.video_row, start, end)
    relevant = _relevant(
        pairs["query"].to_numpy(np.int64), pairs["video_row"].to_numpy(np.int64), excluded
    )
    return _queries(moments, columns, relevant, excluded).sample(max_queries, seed)


def _watches(store: FeatureStore, part: str, columns: list[str]) -> pd.DataFrame:
    """Watches of a part by user and time."""
    needed = ["user_row", "video_row", "timestamp", "history_end", "watched"]
    names = [*dict.fromkeys([*columns, *needed])]
    frames = [read_frame(path, columns=names) for path in store.samples(part)]
    empty = pd.DataFrame({name: np.zeros(0, np.int64) for name in names})
    frame = pd.concat(frames, ignore_index=True) if frames else empty
    frame = frame[frame["watched"] == 1]
    return frame.sort_values(["user_row", "timestamp"], kind="stable", ignore_index=True)


def _watches_per_user(store: FeatureStore, parts: tuple[str, ...], size: int) -> Int64:
    counts = np.zeros(size, np.int64)
    for path in store.samples(*parts):
        frame = read_frame(path, columns=["user_row", "watched"])
        users = frame["user_row"].to_numpy()[frame["watched"].to_numpy() == 1]
        counts += np.bincount(users, minlength=size)
    return counts


def _first_watched(histories: Histories, user: Int64, video: Int64) -> Int64:
    """Position in the histories at which each user watched each video first; int64 [n]."""
    stride = int(max(histories.video_row.max(initial=0), video.max(initial=0))) + 1
    owner = np.repeat(np.arange(len(histories.start) - 1), np.diff(histories.start))
    pairs, first = np.unique(owner * stride + histories.video_row, return_index=True)
    result: Int64 = first[np.searchsorted(pairs, user * stride + video)]
    return result


def _at_most(user: Int64, limit: int, seed: int) -> npt.NDArray[np.bool_]:
    """Mark `limit` random rows of each user (all where there are fewer); bool [n]."""
    order = np.lexsort((np.random.default_rng(seed).random(len(user)), user))
    new_user = np.r_[True, np.diff(user[order]) != 0][: len(user)]
    start = np.maximum.accumulate(np.where(new_user, np.arange(len(user)), 0))
    chosen = np.zeros(len(user), bool)
    chosen[order] = np.arange(len(user)) - start < limit
    return chosen


def _relevant(owner: Int64, video: Int64, excluded: Lists) -> Lists:
    """Distinct (query, video) pairs that are not excluded, as one list per query."""
    pairs = np.unique(np.stack([owner, video]), axis=1)
    stride = int(max(video.max(initial=0), excluded.values.max(initial=0))) + 1
    seen = excluded.owner * stride + excluded.values
    fresh = ~np.isin(pairs[0] * stride + pairs[1], seen)
    return Lists.group(pairs[0][fresh], pairs[1][fresh], len(excluded))


def _queries(
    moments: pd.DataFrame, columns: list[str], relevant: Lists, excluded: Lists
) -> Queries:
    samples = {name: moments[name].to_numpy() for name in columns}
    user = moments["user_row"].to_numpy(np.int64)
    keep = np.flatnonzero(relevant.sizes > 0)
    return Queries(samples, relevant, excluded, user).take(keep)
