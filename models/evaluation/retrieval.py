"""Retrieval metrics of one model on one protocol: values per user and per segment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.metrics import Float64, Int64, Scorer, hits, ranking_metrics, top_lists
from models.queries import Queries
from models.watches import VIDEO_SEGMENTS, Catalogue

LIST_LENGTH = 500
USER_SEGMENTS = ("new", "light", "heavy")
SEGMENT_METRICS = ("recall@10", "recall@100", "ndcg@10", "mrr")


@dataclass(frozen=True)
class Judged:
    """What one model did on one protocol.

    Attributes:
        values: metric -> float64 [users with a history], whose mean is the metric.
        segments: segment -> {"users" or "events": count, metric: mean}.
    """

    values: dict[str, Float64]
    segments: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Bench:
    """The queries of a protocol and what is needed to judge lists for them.

    Users are those whose requests come with a history; `new` users are a segment only. A user
    with several requests (rolling) counts once, with the mean over the requests.
    """

    queries: Queries
    catalogue: Catalogue

    @property
    def user_row(self) -> Int64:
        """Ascending rows of the users with a history; int64 [users]."""
        rows: Int64 = np.unique(self.queries.user_row[self.queries.has_history])
        return rows

    def judge(self, scorer: Scorer) -> Judged:
        """Metrics of the best 500 videos by `scorer`, watched ones left out."""
        width = self.catalogue.num_videos + 1
        return self.judge_lists(top_lists(scorer, width, self.queries.excluded, LIST_LENGTH))

    def judge_lists(self, lists: Int64) -> Judged:
        """Metrics of one list of rows per query; int64 [queries, k], best first, 0 = nothing."""
        per_query = query_metrics(lists, self.queries, self.catalogue)
        known = np.flatnonzero(self.queries.has_history)
        owner = np.searchsorted(self.user_row, self.queries.user_row[known])
        values = {name: means_by(owner, v[known]) for name, v in per_query.items()}
        top = lists[known, :10]
        values["coverage@10"] = coverage_values(top, owner, self.catalogue.num_videos)
        segments = self._user_segments(per_query) | self._video_segments(lists[:, :100])
        return Judged(values, segments)

    def _user_segments(self, per_query: dict[str, Float64]) -> dict[str, dict[str, float]]:
        """Means over the users of each segment.

        New: nothing watched at the request. Light and heavy: at most, and more than, the median
        number of watched videos over the requests that have any.
        """
        sizes = self.queries.excluded.sizes
        median = np.median(sizes[sizes > 0]) if (sizes > 0).any() else 0
        segment = np.where(sizes == 0, 0, np.where(sizes <= median, 1, 2))
        result: dict[str, dict[str, float]] = {}
        for number, name in enumerate(USER_SEGMENTS):
            chosen = np.flatnonzero(segment == number)
            users, owner = np.unique(self.queries.user_row[chosen], return_inverse=True)
            result[name] = {"users": len(users)}
            for metric in SEGMENT_METRICS if len(users) else ():
                means = means_by(owner, per_query[metric][chosen])
                result[name][metric] = float(means.mean())
        return result

    def _video_segments(self, lists: Int64) -> dict[str, dict[str, float]]:
        """Share of the relevant videos of each segment that are among the first 100."""
        relevant = self.queries.relevant
        stride = self.catalogue.num_videos + 1
        shown = np.unique(lists + np.arange(len(lists))[:, None] * stride)
        found = np.isin(relevant.owner * stride + relevant.values, shown)
        segment = self.catalogue.segments[relevant.values]
        result: dict[str, dict[str, float]] = {}
        for number, name in enumerate(VIDEO_SEGMENTS):
            chosen = segment == number
            recall = {"recall@100": float(found[chosen].mean())} if chosen.any() else {}
            result[name] = {"events": int(chosen.sum()), **recall}
        return result


def query_metrics(lists: Int64, queries: Queries, catalogue: Catalogue) -> dict[str, Float64]:
    """ranking_metrics, novelty@10 and popularity_lift@10 of each query; float64 [n] each.

    Novelty is the mean self-information of the list in bits: -log2 of each video's share of the
    training watches (Vargas & Castells, RecSys 2011, with one watch added to every video).
    Popularity lift is the mean training popularity of the list over that of the average training
    watch, so 1 is what people watch anyway (after Abdollahpouri et al., RecSys 2020, with all
    users as the group: one's own short history is too noisy a denominator).
    """
    top = lists[:, :10]
    return {
        **ranking_metrics(lists, queries.relevant),
        "novelty@10": _mean_of(catalogue.self_information, top),
        "popularity_lift@10": _mean_of(catalogue.relative_popularity, top),
    }


def _mean_of(by_video: Float64, lists: Int64) -> Float64:
    """Mean over the filled places of each list; 0 for an empty list."""
    filled = lists > 0
    total = np.where(filled, by_video[lists], 0.0).sum(axis=1)
    result: Float64 = total / np.maximum(filled.sum(axis=1), 1)
    return result


def means_by(owner: Int64, values: Float64) -> Float64:
    """Mean of the values of each owner 0..max; every owner has at least one."""
    result: Float64 = np.bincount(owner, values) / np.bincount(owner)
    return result


def coverage_values(lists: Int64, owner: Int64, num_videos: int) -> Float64:
    """Per user, values whose mean is the share of the catalogue that the lists show.

    Coverage is no mean over users, and users drawn twice would make a resample's coverage too
    small. So each user's value is the coverage plus the centred change that leaving the user out
    makes (jackknife pseudo-values): the videos that nobody else is shown.

    Args:
        lists: int64 [n, 10]; 0 = nothing.
        owner: int64 [n], position of the list's user.
    Returns:
        float64 [users].
    """
    count = int(owner.max(initial=-1)) + 1
    pairs = np.unique(lists * np.int64(max(count, 1)) + owner[:, None])
    video, user = np.divmod(pairs[pairs >= count], max(count, 1))
    shown, first, times = np.unique(video, return_index=True, return_counts=True)
    only_here = np.bincount(user[first[times == 1]], minlength=count) / num_videos
    values: Float64 = len(shown) / num_videos + (count - 1) * (only_here - only_here.mean())
    return values


def stacked(judged: list[Judged]) -> dict[str, Float64]:
    """Values of one model's seeds; metric -> float64 [seeds, users]."""
    return {m: np.stack([one.values[m] for one in judged]) for m in judged[0].values}


def segment_means(judged: list[Judged]) -> dict[str, dict[str, float]]:
    """Segments averaged over seeds."""
    first = judged[0].segments
    return {
        segment: {
            name: value
            if name in ("users", "events")
            else float(np.mean([one.segments[segment][name] for one in judged]))
            for name, value in entries.items()
        }
        for segment, entries in first.items()
    }


def hits_within(lists: Int64, queries: Queries) -> Float64:
    """Share of each query's relevant videos anywhere in its list; float64 [n]."""
    found = hits(lists, queries.relevant).sum(axis=1)
    result: Float64 = found / np.maximum(queries.relevant.sizes, 1)
    return result
