"""How much co-watch vectors and trend add to the learned towers, chosen on validation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from models.metrics import Float32, Float64, list_quality, top_lists
from models.queries import Queries

CHOICES = {
    "trend": (0.0, 0.5, 1.0, 1.5),
    "popularity": (-0.1, 0.0, 0.1),
}
MAX_QUERIES = 1_000  # so that the choice costs seconds
DEPTH, SHOWN = 100, 10


@dataclass(frozen=True)
class Blend:
    """Weights: of the co-watch score, of the trend, and of log popularity (subtracted)."""

    co_watch: float = 0.0
    trend: float = 0.0
    popularity: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Parts:
    """What is blended, over the catalogue.

    Attributes:
        learned: float32 [n, num_videos + 1] scores of the towers.
        co_watch: float32 [n, num_videos + 1].
        trend, log_popularity: float32 [num_videos + 1].
    """

    learned: Float32
    co_watch: Float32
    trend: Float32
    log_popularity: Float32

    def scores(self, blend: Blend) -> Float32:
        """float32 [n, num_videos + 1]."""
        offset: Float32 = (
            np.float32(blend.trend) * self.trend
            - np.float32(blend.popularity) * self.log_popularity
        )
        total = self.learned + np.float32(blend.co_watch) * self.co_watch
        result: Float32 = total + offset
        return result


def choose_blend(parts: Parts, queries: Queries, co_watch: float) -> Blend:
    """Trend and popularity weights for a given weight of the co-watch score.

    Of the weights whose `list_quality` is within one standard error of the best: the largest of the
    trend, since it goes on after the validation part, and that of popularity which shows the most
    videos. Twice: each depends on the other.

    Source: the one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984.
    """
    chosen = Blend(co_watch)
    for _ in range(2):
        for name, values in CHOICES.items():
            tried = [replace(chosen, **{name: value}) for value in values]
            quality, shown = zip(*(_judge(parts, blend, queries) for blend in tried), strict=True)
            best = int(np.argmax([one.mean() for one in quality]))
            near = [i for i, one in enumerate(quality) if _as_good(one, quality[best])]
            chosen = tried[max(near, key=shown.__getitem__) if name == "popularity" else near[-1]]
    return chosen


def _as_good(one: Float64, best: Float64) -> bool:
    loss = best - one
    return bool(loss.mean() <= loss.std() / np.sqrt(max(len(loss), 1)))


def _judge(parts: Parts, blend: Blend, queries: Queries) -> tuple[Float64, int]:
    """(quality per query, distinct videos among the first ten of all queries)."""
    scores = parts.scores(blend)
    lists = top_lists(lambda at: scores[at], scores.shape[1], queries.excluded, DEPTH)
    return list_quality(lists, queries.relevant), len(np.unique(lists[:, :SHOWN]))
