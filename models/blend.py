"""How much co-watch vectors and trend add to the learned towers, chosen on validation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from models.metrics import Float32, Float64
from models.queries import Queries

CHOICES = {
    "trend": (0.0, 0.5, 1.0, 1.5),
    "co_watch": (0.0, 0.25, 0.5, 1.0),
    "popularity": (0.0, 0.1, 0.2),
}
MAX_QUERIES = 1_000  # so that the choice costs seconds
DEPTH, SHOWN = 100, 10


@dataclass(frozen=True)
class Blend:
    """Weights: of the trend, of the co-watch score, and of log popularity (subtracted)."""

    trend: float = 0.0
    co_watch: float = 0.0
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


def choose_blend(parts: Parts, queries: Queries) -> tuple[Blend, float]:
    """(blend, its recall@100 on `queries`).

    One weight after another, twice: among the values whose recall is within one standard error of
    the best, the one that shows the most different videos.

    Source: the one-standard-error rule, Breiman et al., Classification and Regression Trees, 1984.
    """
    chosen, recall = Blend(), 0.0
    for _ in range(2):
        for name, values in CHOICES.items():
            tried = [replace(chosen, **{name: value}) for value in values]
            recalls, shown = zip(*(_judge(parts, blend, queries) for blend in tried), strict=True)
            best = int(np.argmax([r.mean() for r in recalls]))
            near = [i for i, r in enumerate(recalls) if _as_good(r, recalls[best])]
            pick = max(near, key=lambda i: (shown[i], recalls[i].mean()))
            chosen, recall = tried[pick], float(recalls[pick].mean())
    return chosen, recall


def _as_good(one: Float64, best: Float64) -> bool:
    loss = best - one
    return bool(loss.mean() <= loss.std() / np.sqrt(max(len(loss), 1)))


def _judge(parts: Parts, blend: Blend, queries: Queries) -> tuple[Float64, int]:
    """(recall@100 per query, distinct videos among the first ten of all queries)."""
    scores = parts.scores(blend)
    scores[:, 0] = -np.inf
    depth = min(DEPTH, scores.shape[1] - 1)
    recall, seen = np.zeros(len(queries)), []
    for i, row in enumerate(scores):
        row[queries.excluded[i]] = -np.inf
        top = np.argpartition(-row, depth - 1)[:depth]
        recall[i] = np.isin(top, queries.relevant[i]).sum() / len(queries.relevant[i])
        seen.append(top[np.argsort(-row[top])[:SHOWN]])
    return recall, len(np.unique(np.concatenate(seen)))
