"""Evaluation queries: one request per user, what they watched next, and what to leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.metrics import Lists
from workflow.features.encoded import FeatureStore
from workflow.frames import read_frame


@dataclass(frozen=True)
class Queries:
    """One request per user at the moment of the first held-out watch.

    Attributes:
        samples: column -> array [n]; the sample rows of those watches (what was known then).
        relevant: held-out videos that the user had not watched before.
        excluded: videos that the user had watched before.
        has_history: bool [n], whether the user watched anything before.
    """

    samples: dict[str, npt.NDArray[Any]]
    relevant: Lists
    excluded: Lists
    has_history: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.excluded)

    def take(self, chosen: npt.NDArray[np.int64]) -> Queries:
        """The queries at positions `chosen`."""
        return Queries(
            {name: values[chosen] for name, values in self.samples.items()},
            _take(self.relevant, chosen),
            _take(self.excluded, chosen),
            self.has_history[chosen],
        )


def _take(lists: Lists, chosen: npt.NDArray[np.int64]) -> Lists:
    parts = [lists[int(i)] for i in chosen]
    offsets = np.r_[0, np.cumsum([len(part) for part in parts])].astype(np.int64)
    return Lists(np.concatenate([*parts, np.zeros(0, np.int64)]), offsets)


def held_out_queries(store: FeatureStore, part: str, columns: list[str]) -> Queries:
    """Queries of the "valid" or "test" part; users whose held-out watches are all repeats drop out.

    The first held-out watch gives history and context; later ones only count as relevant.
    """
    names = [
        *dict.fromkeys([*columns, "user_row", "video_row", "timestamp", "history_end", "watched"])
    ]
    frames = [read_frame(path, columns=names) for path in store.samples(part)]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=names)
    frame = frame[frame["watched"] == 1].sort_values(["user_row", "timestamp"], kind="stable")
    first = frame.drop_duplicates("user_row").reset_index(drop=True)
    histories = store.histories()
    start = histories.start[first["user_row"].to_numpy(np.int64)]
    end = first["history_end"].to_numpy(np.int64)
    excluded = _ranges(np.asarray(histories.video_row), start, end)
    relevant = _relevant(frame, first, excluded)
    keep = np.flatnonzero(np.diff(relevant.offsets) > 0)
    samples = {name: first[name].to_numpy() for name in columns}
    return Queries(samples, relevant, excluded, end > start).take(keep)


def _ranges(flat: npt.NDArray[np.int32], start: npt.NDArray[Any], end: npt.NDArray[Any]) -> Lists:
    offsets = np.r_[0, np.cumsum(end - start)].astype(np.int64)
    at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start, end - start)
    return Lists(flat[at].astype(np.int64), offsets)


def _relevant(frame: pd.DataFrame, first: pd.DataFrame, excluded: Lists) -> Lists:
    """Distinct held-out watches that were not watched before, per query."""
    owner = np.searchsorted(first["user_row"].to_numpy(), frame["user_row"].to_numpy())
    pairs = np.unique(np.stack([owner, frame["video_row"].to_numpy(np.int64)]), axis=1)
    stride = int(max(pairs[1].max(initial=0), excluded.values.max(initial=0))) + 1
    seen_owner = np.repeat(np.arange(len(excluded)), np.diff(excluded.offsets))
    seen = seen_owner * stride + excluded.values
    fresh = ~np.isin(pairs[0] * stride + pairs[1], seen)
    return Lists.group(pairs[0][fresh], pairs[1][fresh], len(first))
