"""What users had watched before a moment: the bundle's histories joined with online events.

Files: video_id.npy (raw ids, sorted), video_row.npy (0, then the video row of each of them),
video_index.npy (vocabulary index by video row), watched_row.npy and watched_time.npy (all users'
watches), watched_start.npy (where each user's begin), watched_label.npy (encoded labels, where they
differ).
"""

import json
from typing import Any, NamedTuple

import numpy as np

NO_ROWS, NO_SECONDS = np.zeros(0, np.int32), np.zeros(0, np.float32)
FIRST_LABEL = 3  # the encoded label 0; 0 is padding, 1 null, 2 out of vocabulary


def open_array(path):
    """A memory-mapped array; as a plain ndarray it is cheaper to index than a memmap."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def rows_of(table, ids):
    """Position + 1 of each raw id in the sorted `table`; 0 when it is not there.

    Args:
        ids: int64 [n], or bytes objects [n] for a table of byte strings.
    """
    fits = True
    if table.dtype.kind == "S":
        # In the table's own dtype; otherwise numpy would copy the whole table to compare.
        width = table.dtype.itemsize
        fits = np.array([len(one) <= width and one[-1:] != b"\0" for one in ids], bool)
        ids = np.where(fits, ids, b"").astype(table.dtype)
    at = np.minimum(table.searchsorted(ids), len(table) - 1)
    return (fits & (table[at] == ids)) * (at + 1).astype(np.int32)


class Events(NamedTuple):
    """Watches of one user, oldest first; `label` is encoded.

    `label` and `watch_s` (seconds watched, NaN = not known) are None where none are kept.
    """

    row: Any
    time: Any
    label: Any
    watch_s: Any = None

    def where(self, chosen):
        return Events(*(None if values is None else values[chosen] for values in self))

    def then(self, other):
        """Both by time; those of `other` come after those of the same second here."""
        time = np.concatenate([self.time, other.time])
        order = np.argsort(time, kind="stable")
        label = None
        if self.label is not None:
            label = np.concatenate([self.label, other.label])[order]
        return Events(np.concatenate([self.row, other.row])[order], time[order], label)


class Past(NamedTuple):
    """The last watches of one user (`video` is the vocabulary index).

    And of the online ones the rows and the seconds watched.
    """

    video: Any
    time: Any
    label: Any
    online_row: Any
    online_watch_s: Any


class Histories:
    """Looks users' pasts up.

    Args:
        longest: how many watches any feature reads at most.
        graded: whether watches have labels.
    """

    def __init__(self, folder, longest, graded):
        self.longest, self.graded = longest, graded
        for name in (
            "video_id", "video_row", "video_index", "watched_row", "watched_time", "watched_start",
        ):  # fmt: skip
            setattr(self, name, open_array(folder / f"{name}.npy"))
        if graded:
            self.watched_label = open_array(folder / "watched_label.npy")
        self.id_type = str if self.video_id.dtype.kind == "S" else int

    def parse(self, record):
        """Events from a store's record; those of videos without a row here are left out.

        Raises:
            ValueError: the record is damaged.
        """
        events = [event for event in json.loads(record) if type(event[1]) is self.id_type]
        ids = [video.encode() if self.id_type is str else video for _, video, *_ in events]
        ids = np.array(ids, object if self.id_type is str else np.int64)
        rows = self.video_row[rows_of(self.video_id, ids)]
        label = None
        if self.graded:  # an unknown label counts as not positive
            label = np.array([FIRST_LABEL + (one or 0) for _, _, one, _ in events], np.int32)
        times = np.array([event[0] for event in events], np.int64)
        watch_s = np.array([event[3] for event in events], np.float32)  # None becomes NaN
        return Events(rows, times, label, watch_s).where(rows > 0)

    def until(self, row, moment):
        """End of what each user had watched before the request, in the bundle's arrays."""
        until = np.empty(len(row), np.int64)
        for i, (user, at) in enumerate(zip(row.tolist(), moment.tolist(), strict=True)):
            start, end = self.watched_start[user : user + 2].tolist()
            until[i] = start + self.watched_time[start:end].searchsorted(at)
        return until

    def before(self, user, until, online, online_until):
        """The Past of one user.

        Args:
            user: row of the user.
            until: what `until` gave.
            online: Events since the export, or None.
            online_until: only online events before this second count.
        """
        first = max(self.watched_start[user], until - self.longest)
        label = self.watched_label[first:until] if self.graded else None
        events = Events(self.watched_row[first:until], self.watched_time[first:until], label)
        online_row, online_watch_s = NO_ROWS, NO_SECONDS
        if online is not None:
            new = online.where(self._is_new(user, online) & (online.time < online_until))
            if len(new.row):
                online_row, online_watch_s = new.row, new.watch_s
                events = events.then(new).where(slice(-self.longest, None))
        index = self.video_index[events.row]
        return Past(index, events.time, events.label, online_row, online_watch_s)

    def _is_new(self, user, online):
        """False where the bundle's histories have the same video in the same second."""
        mine = slice(self.watched_start[user], self.watched_start[user + 1])
        rows, times = self.watched_row[mine], self.watched_time[mine]
        first, end = (np.searchsorted(times, online.time, side) for side in ("left", "right"))
        is_new = np.ones(len(online.row), bool)
        for i in np.flatnonzero(end > first):
            is_new[i] = online.row[i] not in rows[first[i] : end[i]]
        return is_new
