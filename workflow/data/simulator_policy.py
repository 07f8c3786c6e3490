"""The logging policy: which videos a page shows, and with which exactly known probability.

The policy mixes four arms, each a draw in proportion to a weight over the eligible videos:
  evergreen  popularity in the country
  trending   the same among videos of the last `TRENDING_DAYS` (evergreen where there are none)
  personal   popularity**PERSONAL_POWER * exp(SHARPNESS * query . centroid of the taste cell)
  uniform    every eligible video alike
Eligible means: available in the country, rated within the profile's limit, and published before
the policy's last refresh. A page is filled from the top without repeats.

Eligible videos are stored per group (country x limit) in order of publish time, so that "eligible
at a refresh" is a prefix, and each arm's draw is one binary search in a running sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workflow.data.simulator_random import Array
from workflow.data.simulator_world import COUNTRIES, DAY, LOG_END, RATINGS, Videos, World

ARMS = ("evergreen", "trending", "personal", "uniform")
PAGE_SIZE = 10
TRENDING_DAYS = 14
SHARPNESS = 4.0
PERSONAL_POWER = 0.7  # below 1: the personal arm reaches further into the long tail
MIN_REFRESH_S = 6 * 3600
MAX_REFRESHES = 400  # bounds the tables of long logs
_FAR = np.int64(1 << 34)  # more than any publish time, so that cell * _FAR + time sorts by both


@dataclass(frozen=True)
class Pages:
    """What the policy knows when it fills pages. Every array has one row per page."""

    country: Array  # int8
    maturity_limit: Array  # int8
    refresh: Array  # int64: index of the last refresh before the page was asked for
    query: Array  # float32 [pages, DIMENSIONS]: the policy's guess of the current taste
    arm_share: Array  # float64 [pages, ARMS], rows sum to 1


@dataclass(frozen=True)
class _Shelf:
    """Videos in some order with a running sum of a weight: draws from any range of it."""

    video: Array  # int32 [entries]
    cumulative: Array  # float64 [entries + 1]

    def mass(self, low: Array, high: Array) -> Array:
        return np.asarray(self.cumulative[high] - self.cumulative[low])

    def draw(self, low: Array, high: Array, uniform: Array) -> Array:
        target = self.cumulative[low] + uniform * self.mass(low, high)
        place = np.searchsorted(self.cumulative, target, side="right") - 1
        return np.asarray(self.video[np.clip(place, low, high - 1)])


class Policy:
    """The logging policy over a world's catalogue, refreshed every `refresh_s` seconds."""

    def __init__(self, world: World) -> None:
        self.start = world.start
        span = LOG_END - world.start
        self.refresh_s = max(MIN_REFRESH_S, -(-span // MAX_REFRESHES))
        self.refresh_times = np.arange(world.start, LOG_END, self.refresh_s)
        self._videos = world.videos
        self.weight = np.exp(world.videos.popularity.astype(np.float64))  # [countries, videos]
        self.cell, self.centroids = _cells(world)
        self._fill_shelves()

    def refresh_of(self, time: Array) -> Array:
        """Index of the last refresh at or before each time."""
        return np.asarray((np.asarray(time) - self.start) // self.refresh_s, dtype=np.int64)

    # --- tables ------------------------------------------------------------------------------
    def _fill_shelves(self) -> None:
        """Lay out every group's videos twice: by time, and by taste cell and time."""
        by_publish = np.argsort(self._videos.publish_time, kind="stable")
        groups = [(c, limit) for c in range(len(COUNTRIES)) for limit in range(len(RATINGS))]
        members = [by_publish[_allowed(self._videos, c, m)[by_publish]] for c, m in groups]
        in_cells = [m[np.argsort(self.cell[m], kind="stable")] for m in members]
        self._first = np.concatenate([[0], np.cumsum([len(m) for m in members])])[:-1]
        rows = [self.weight[country] for country, _ in groups]
        plain = [row[m] for row, m in zip(rows, members, strict=True)]
        flatter = [row[m] ** PERSONAL_POWER for row, m in zip(rows, in_cells, strict=True)]
        self._by_time, self._by_cell = _shelf(members, plain), _shelf(in_cells, flatter)
        self._high = np.stack([self._until(m, self.refresh_times) for m in members])
        since = self.refresh_times - TRENDING_DAYS * DAY
        self._recent = np.stack([self._until(m, since) for m in members])
        self._high += self._first[:, None]
        self._recent += self._first[:, None]
        self._fill_cells(in_cells)

    def _until(self, members: Array, times: Array) -> Array:
        published = self._videos.publish_time[members]
        return np.asarray(np.searchsorted(published, times, side="right"))

    def _fill_cells(self, in_cells: list[Array]) -> None:
        cells = np.arange(len(self.centroids), dtype=np.int64)[:, None] * _FAR
        low, high = [], []
        for first, members in zip(self._first, in_cells, strict=True):
            key = self.cell[members].astype(np.int64) * _FAR + self._videos.publish_time[members]
            low.append(first + np.searchsorted(key, cells[:, 0] - _FAR // 2))
            high.append(first + np.searchsorted(key, cells + self.refresh_times, side="right").T)
        self._cell_low = np.stack(low)  # [groups, cells]
        self._cell_high = np.stack(high)  # [groups, refreshes, cells]

    # --- the policy --------------------------------------------------------------------------
    def at(self, pages: Pages) -> PagePolicy:
        """The policy with its tables looked up for these pages."""
        return PagePolicy(self, pages)


class PagePolicy:
    """The policy for given pages: exact probabilities and draws.

    Args:
        policy: the catalogue's tables.
        pages: what is known at each page.
    """

    def __init__(self, policy: Policy, pages: Pages) -> None:
        self._policy = policy
        self._pages = pages
        group = pages.country.astype(np.int64) * len(RATINGS) + pages.maturity_limit
        self._low = policy._first[group]
        self._high = policy._high[group, pages.refresh]
        self._recent = policy._recent[group, pages.refresh]
        self._recent = np.where(self._recent < self._high, self._recent, self._low)
        self._all_mass = policy._by_time.mass(self._low, self._high)
        self._recent_mass = policy._by_time.mass(self._recent, self._high)
        self._published = policy.refresh_times[pages.refresh]
        self._cell_low = policy._cell_low[group]
        self._cell_high = policy._cell_high[group, pages.refresh]
        self._make_cell_table()
        self._arm_cumulative = np.cumsum(pages.arm_share, axis=1)

    def _make_cell_table(self) -> None:
        """`_cell_density[p, k]` x weight ** PERSONAL_POWER = probability in the personal arm."""
        mass = self._policy._by_cell.mass(self._cell_low, self._cell_high)
        logit = SHARPNESS * (self._pages.query @ self._policy.centroids.T)
        density = np.exp(logit - logit.max(axis=1, keepdims=True)).astype(np.float64)
        total = np.einsum("ij,ij->i", density, mass)
        self._cell_density = density / total[:, None]
        cumulative = np.cumsum(density * mass, axis=1)
        cumulative /= cumulative[:, -1:]
        # Row r occupies [r, r + 1): one binary search then serves all rows.
        self._cell_cumulative = (cumulative + np.arange(len(mass))[:, None]).ravel()

    @property
    def num_eligible(self) -> Array:
        """How many videos each page may show; int64 [pages]."""
        return np.asarray(self._high - self._low)

    def probability(self, rows: Array, videos: Array) -> Array:
        """P(policy picks the video for the first place of the page); 0 where not eligible.

        Args:
            rows: int [n], which page.
            videos: int [n], which video (row number).
        Returns:
            float64 [n]. Over all videos of a page it sums to 1.
        """
        catalogue = self._policy._videos
        country, limit = self._pages.country[rows], self._pages.maturity_limit[rows]
        share = self._pages.arm_share[rows]
        published = catalogue.publish_time[videos]
        weight = self._policy.weight[country, videos]
        since = self._published[rows] - TRENDING_DAYS * DAY
        trending = (published > since) | (self._recent[rows] == self._low[rows])
        density = self._cell_density[rows, self._policy.cell[videos]]
        total = (
            share[:, 0] * weight / self._all_mass[rows]
            + share[:, 1] * np.where(trending, weight / self._recent_mass[rows], 0)
            + share[:, 2] * density * weight**PERSONAL_POWER
            + share[:, 3] / self.num_eligible[rows]
        )
        eligible = catalogue.available[videos, country] & (catalogue.maturity[videos] <= limit)
        return np.where(eligible & (published <= self._published[rows]), total, 0.0)

    def draw(self, rng: np.random.Generator, rows: Array) -> Array:
        """One video for each page in `rows`, from the whole mixture; int32 [n]."""
        pick, place = rng.random(len(rows)), rng.random(len(rows))
        arm = (self._arm_cumulative[rows] <= pick[:, None]).sum(axis=1)
        low, high = self._low[rows], self._high[rows]
        videos = np.empty(len(rows), dtype=np.int32)
        shelf = self._policy._by_time
        for number, first in ((0, low), (1, self._recent[rows])):
            at = np.flatnonzero(arm == number)
            videos[at] = shelf.draw(first[at], high[at], place[at])
        at = np.flatnonzero(arm == 2)
        videos[at] = self._draw_personal(rng, rows[at], place[at])
        at = np.flatnonzero(arm >= 3)
        offset = (place[at] * (high[at] - low[at])).astype(np.int64)
        videos[at] = shelf.video[low[at] + offset]
        return videos

    def _draw_personal(self, rng: np.random.Generator, rows: Array, place: Array) -> Array:
        num_cells = len(self._policy.centroids)
        target = np.minimum(rows + place, np.nextafter(rows + 1.0, 0))  # stay inside the row
        found = np.searchsorted(self._cell_cumulative, target, side="right")
        cell = np.clip(found - rows * num_cells, 0, num_cells - 1)
        low, high = self._cell_low[rows, cell], self._cell_high[rows, cell]
        return self._policy._by_cell.draw(low, high, rng.random(len(rows)))

    def fill(self, rng: np.random.Generator, lengths: Array) -> tuple[Array, Array]:
        """Fill every page from the top; a repeated video is drawn again.

        Args:
            lengths: int [pages], how many places each page has (at most PAGE_SIZE).
        Returns:
            videos int32 [pages, PAGE_SIZE] (-1 beyond the length) and propensity float64 of the
            same shape: the probability of that video at that place given the places above it,
            p(v) / (1 - sum of p over the places above), which is what drawing again gives.
        """
        shown = np.full((len(lengths), PAGE_SIZE), -1, dtype=np.int32)
        propensity = np.zeros(shown.shape)
        used = np.zeros(len(lengths))
        for place in range(PAGE_SIZE):
            rows = np.flatnonzero(lengths > place)
            todo = rows
            while len(todo):
                shown[todo, place] = self.draw(rng, todo)
                repeated = shown[todo, :place] == shown[todo, place][:, None]
                todo = todo[repeated.any(axis=1)]
            chance = self.probability(rows, shown[rows, place])
            propensity[rows, place] = chance / (1.0 - used[rows])
            used[rows] += chance
        return shown, propensity


def _allowed(videos: Videos, country: int, limit: int) -> Array:
    return np.asarray(videos.available[:, country] & (videos.maturity <= limit))


def _shelf(members: list[Array], weights: list[Array]) -> _Shelf:
    total = np.concatenate([[0.0], np.cumsum(np.concatenate(weights))])
    return _Shelf(np.concatenate(members).astype(np.int32), total)


def _cells(world: World) -> tuple[Array, Array]:
    """Taste cells: every video goes to the nearest of some videos picked at even steps.

    Returns:
        cell int16 [videos], centroids float32 [cells, DIMENSIONS].
    """
    vectors = world.videos.vector
    count = int(np.clip(len(vectors) // 64, 16, 256))
    centroids = np.array(vectors[np.linspace(0, len(vectors) - 1, count).astype(np.int64)])
    cell = np.empty(len(vectors), dtype=np.int16)
    for first in range(0, len(vectors), 65_536):
        part = slice(first, first + 65_536)
        cell[part] = np.argmax(vectors[part] @ centroids.T, axis=1)
    return cell, centroids
