"""Candidates of several sources, merged with quotas before ranking; each keeps its sources.

Files: candidate_vector.npy (what the index searches, by video row), neighbour.npy (similar videos
by video row, best first, 0-padded), trending_row.npy and popular_row.npy (by table, best first,
0-padded; table 0 is everywhere), country_table.npy (the table of each country), fresh_row.npy and
fresh_time.npy (videos by publish time, newest first).
"""

import numpy as np

# Bits of a candidate's source; from SEED on, one bit for each watch that it is a neighbour of.
TWO_TOWER, NEIGHBOUR, TRENDING, FRESH, POPULAR, CONTINUE, EXPLORE = (1 << bit for bit in range(7))
SEED = 8
NAMES = ("two_tower", "neighbour", "trending", "fresh", "popular", "continue", "explore")
SECONDS_PER_DAY = 86_400


def neighbour_shares(quota, num_seeds, num_now):
    """How many neighbours each seed brings: as many each, but half of all the one just watched."""
    if num_now == 0 or num_seeds == 1:
        return [quota // max(num_seeds, 1)] * num_seeds
    return [quota // 2] + [quota // 2 // (num_seeds - 1)] * (num_seeds - 1)


class Sources:
    """Gathers the candidates of one request.

    Args:
        rules: what may be shown.
        settings: "quotas", "fresh_days".
    """

    def __init__(self, folder, open_array, rules, settings):
        self.rules, self.quotas = rules, settings["quotas"]
        self.total = sum(self.quotas.values())
        self.fresh_s = settings["fresh_days"] * SECONDS_PER_DAY
        for name in (
            "candidate_vector", "neighbour", "trending_row", "popular_row", "country_table",
            "fresh_row", "fresh_time",
        ):  # fmt: skip
            setattr(self, name, open_array(folder / f"{name}.npy"))
        size = len(self.candidate_vector)
        self.bits, self.place = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.score = np.zeros(size, np.float32)

    def table(self, country):
        """The table of a country; 0, that of everywhere, where it has none of its own."""
        return int(self.country_table[country])

    def fresh(self, moment):
        """Rows published in the last days before `moment`, newest first."""
        # fresh_time falls, so that searching wants it the other way round.
        rising = self.fresh_time[::-1]
        first = len(rising) - np.searchsorted(rising, moment, side="right")
        end = len(rising) - np.searchsorted(rising, moment - self.fresh_s, side="left")
        return self.fresh_row[first:end]

    def gather(self, vector, found, found_score, viewer, past):
        """(rows, retrieval scores, source bits) of at most `total` videos, each [total].

        Where rules and repeats leave a quota unfilled, more of retrieval's list takes the places,
        then what is popular. What is hidden by `rules` is left out.

        Args:
            vector: float32 [dim], of the request.
            found: int32 [k], retrieval's rows, more than its quota; found_score: float32 [k].
            past: whose seeds are the watches to find neighbours of.
        """
        table = self.table(viewer.country)
        quotas = self.quotas
        pools = [(found, TWO_TOWER, quotas["two_tower"])]
        shares = neighbour_shares(quotas["neighbours"], len(past.seeds), past.num_now)
        pools += [
            (self.neighbour[row], NEIGHBOUR | 1 << (SEED + i), share)
            for i, (row, share) in enumerate(zip(past.seeds, shares, strict=True))
        ]
        pools.append((self.trending_row[table], TRENDING, quotas["trending"]))
        pools.append((self.fresh(viewer.moment), FRESH, quotas["fresh"]))
        picked, rest = self._pick(pools, viewer)
        rows = self._first_of_each(np.concatenate([*picked, rest]))[: self.total]
        if len(rows) < self.total:
            popular = self.popular(viewer)
            rows = self._first_of_each(np.concatenate([rows, popular]))[: self.total]
        self.score[found] = found_score
        known = (self.bits[rows] & TWO_TOWER) != 0
        scores = self.score[rows]
        others = np.flatnonzero(~known)
        scores[others] = self.candidate_vector.take(rows[others], axis=0) @ vector
        source = np.where(self.bits[rows] == 0, POPULAR, self.bits[rows])
        for pool, _, _ in pools:
            self.bits[pool] = 0
        return self._padded(rows), self._padded(scores), self._padded(source)

    def _pick(self, pools, viewer):
        """(the rows within each pool's quota, what retrieval has beyond its own); sets `bits`."""
        ok = self.rules.allowed(np.concatenate([rows for rows, _, _ in pools]), viewer)
        picked, rest, start = [], None, 0
        for rows, bits, quota in pools:
            good = rows[ok[start : start + len(rows)]]
            self.bits[good] |= bits
            picked.append(good[:quota])
            rest = good[quota:] if rest is None else rest
            start += len(rows)
        return picked, rest

    def popular(self, viewer):
        """The fallback: what is popular in the viewer's country, then everywhere."""
        tables = dict.fromkeys((self.table(viewer.country), 0))
        rows = np.concatenate([self.popular_row[table] for table in tables])
        return self._first_of_each(rows[self.rules.allowed(rows, viewer)])

    def _first_of_each(self, rows):
        """`rows` without repeats, in the order of their first places."""
        return rows[self.first_places(rows, np.arange(len(rows)))]

    def first_places(self, rows, places):
        """Those of `places` (ascending) at which `rows` has a video for the first time."""
        some = rows[places]
        at = np.arange(len(some), dtype=np.int32)
        self.place[some[::-1]] = at[::-1]
        return places[self.place[some] == at]

    def _padded(self, values):
        result = np.zeros(self.total, values.dtype)
        result[: len(values)] = values
        return result
