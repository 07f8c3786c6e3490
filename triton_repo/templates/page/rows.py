"""Which rows a page has and what is in them, chosen stage by stage.

All positions are into the page's candidates in their diverse order (diversity.py): position 0 is
the best.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

HALF_LIFE = 50  # positions after which a video is worth half as much to a row
NOW = 100.0  # how much more a row counts that answers what is being watched
PROMISED = ("trending", "new")  # what every page should have


class Kind(NamedTuple):
    """A row that the page may have: what it is, and of what (a video's row, a genre's number)."""

    name: str
    subject: int = 0


class Row(NamedTuple):
    """A row of the page: positions of its videos, best first."""

    kind: Kind
    positions: Any  # int64 [videos]


@lru_cache
def worth(count):
    """What a video at each of `count` positions is worth to a row; not to be changed."""
    return np.exp2(np.arange(count, dtype=np.float32) / np.float32(-HALF_LIFE))


class Board:
    """The kinds of rows that compete, and which candidates belong to each.

    Args:
        kinds: [k] kinds.
        member: bool [k, n], whether a candidate belongs to a kind.
        vectors: float32 [n, dim], unit vectors.
        strength: 0 to 1, how much a row that is like those above it loses.
        row_worth: name of a kind -> how much its rows count.
    """

    def __init__(self, kinds, member, vectors, strength, row_worth):
        self.kinds = kinds
        count = member.shape[1]
        self.value = member * worth(count)  # [k, n]
        centre = self.value @ vectors
        likeness = centre @ centre.T
        length = np.sqrt(likeness.diagonal()) + np.float32(1e-9)
        likeness /= length
        likeness /= length[:, None]
        self.room = 1 - np.float32(strength) * likeness  # [k, k]
        self.prior = np.array([row_worth[kind.name] for kind in kinds], np.float32)
        self.member, self.free = member, np.ones(count, bool)
        self.weight = np.ones(count, np.float32)  # `free` as a factor
        self.kept = {}  # promised kind -> positions that no other row shows

    def take(self, positions):
        """Mark candidates as shown; rows that could have shown them lose their worth."""
        self.free[positions] = False
        self.weight[positions] = 0

    def promise(self, kind, columns, least):
        """Keep the last `columns` candidates of a kind for its own row, unless it has too few.

        So the rows above cannot use up what it needs, and lose what they would miss least.
        """
        positions = self.free_of(kind, len(self.free))[-columns:]
        if len(positions) >= least:
            self.take(positions)
            self.kept[kind] = positions

    def top(self, columns):
        """The row of the best that are not shown yet."""
        positions = self.rest()[:columns]
        self.take(positions)
        return Row(Kind("top"), positions)

    def place(self, kind, positions, least):
        """A list of the row of a kind, which then competes no more; empty if it is too short."""
        if len(positions) < least:
            return []
        self.take(positions)
        self.prior[kind] = 0
        return [Row(self.kinds[kind], positions)]

    def free_of(self, kind, columns):
        """The best `columns` members of a kind that are not shown yet."""
        return (self.member[kind] & self.free).nonzero()[0][:columns]

    def choose(self, wanted, columns, least, changes=None):
        """Up to `wanted` rows, each time the one that adds most to the page.

        What a row adds is the worth of its videos that are not shown yet, times a prior of its
        kind, less what it has in common with the rows above. Promised rows are the last ones at
        the latest.

        Args:
            least: a row with fewer videos is left out.
            changes: kind -> (positions -> positions), what becomes of a row before it is placed.
        """
        rows, changes = [], changes or {}
        value, weight, free, kept = self.value, self.weight, self.free, self.kept
        # What a row's worth is multiplied with: its prior times its room, the least so far.
        factor, after = self.prior.copy(), list(self.prior * self.room)
        total = np.empty_like(factor)
        while len(rows) < wanted and len(factor):
            np.dot(value, weight, out=total)
            np.multiply(total, factor, out=total)
            best = int(total.argmax())
            if total.item(best) <= 0 or wanted - len(rows) <= len(kept):
                best = next(iter(kept), None)
                if best is None:
                    break
            if best in kept:
                free[kept.pop(best)] = True
            positions = self.free_of(best, columns)
            if len(positions) >= least:
                if best in changes:
                    positions = changes[best](positions)
                free[positions] = False
                weight[positions] = 0
                np.minimum(factor, after[best], out=factor)
                rows.append(Row(self.kinds[best], positions))
            factor[best] = 0
        return rows

    def rest(self):
        """Positions that no row shows, best first."""
        return self.free.nonzero()[0]


def by_turns(near, free, groups, columns):
    """At most `columns` positions like a video, as many for each of its groups as for the others.

    One watch does not tell which of its groups the viewer came for: a row of the nearest alone
    shows the most frequent one and may lack the others (Steck, Calibrated recommendations, RecSys
    2018).

    Args:
        near: bool [n], the video's neighbours; they come before others of the same group.
        free: bool [n], what may be shown.
        groups: bool [g, n], whether a candidate is of each of the video's groups.
    """
    near, of = near & free, groups & free
    queues = [
        iter((near & mine).nonzero()[0].tolist() + (mine & ~near).nonzero()[0].tolist())
        for mine in of
    ]
    counts, chosen = [0] * len(queues), {}
    while len(chosen) < columns and queues:
        turn = counts.index(min(counts))
        position = next((one for one in queues[turn] if one not in chosen), None)
        if position is None:
            counts[turn] = columns + 1  # it has no more
            if min(counts) > columns:
                break
            continue
        chosen[position] = True
        for group, mine in enumerate(of):
            counts[group] += int(mine[position])
    rest = near.nonzero()[0].tolist()
    filled = dict.fromkeys([*chosen, *rest])
    return np.array(list(filled)[:columns], np.int64)


def chunks(values, wanted, columns, least):
    """At most `wanted` parts of `columns`; a last one with fewer than `least` is left out."""
    parts = [values[at : at + columns] for at in range(0, len(values), columns)][:wanted]
    return [part for part in parts if len(part) >= least]


def membership(source, groups, num_seeds, num_groups, bits):
    """bool [num_seeds + 2 + num_groups, n]: neighbours of each seed, trending, fresh, each group.

    Args:
        source: int32 [n] bits; groups: int [n, width], 1-based, 0 = none.
        bits: the module with the sources' bits.
    """
    count = len(source)
    member = np.zeros((num_seeds + 2 + num_groups, count), bool)
    places = (groups + np.int64(num_seeds + 1)) * count + np.arange(count)[:, None]
    member.reshape(-1)[places] = True  # "none" is where the fresh ones go, below
    asked = [1 << (bits.SEED + seed) for seed in range(num_seeds)] + [bits.TRENDING, bits.FRESH]
    member[: len(asked)] = source & np.array(asked, np.int32)[:, None]
    return member


def kinds_of(seeds, num_groups) -> list[Any]:
    """The kinds of `membership`, in its order."""
    return [
        *(Kind("because", row) for row in seeds),
        Kind("trending"),
        Kind("new"),
        *(Kind("genre", group) for group in range(num_groups)),
    ]
