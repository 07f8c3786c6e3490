"""Choice of a baseline's settings on validation data; the test part stays closed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from models.evaluation.baselines import Baseline
from models.metrics import Scorer, list_quality, top_lists
from models.queries import Queries
from models.watches import Watches, history_matrix


def best_on_validation(candidates: Sequence[Baseline], train: Watches, valid: Queries) -> Baseline:
    """The candidate, not fitted, that has the best lists for `valid` when fitted on `train`.

    Best is the highest `list_quality`, the mean of the two headline metrics. A single candidate is
    returned as it is, and without any query the middle one. Queries without a history are left
    out, as in the headline.
    """
    valid = valid.take(np.flatnonzero(valid.has_history))
    if len(candidates) == 1 or len(valid) == 0:
        return candidates[len(candidates) // 2]
    # Copies, so that one fitted model at a time is in memory.
    qualities = [_quality(copy(one).fit(train), valid, train.num_videos) for one in candidates]
    return candidates[int(np.argmax(qualities))]


def _quality(model: Baseline, queries: Queries, num_videos: int) -> float:
    scorer = baseline_scorer(model, queries, num_videos)
    lists = top_lists(scorer, num_videos + 1, queries.excluded, 100)
    return float(list_quality(lists, queries.relevant).mean())


def baseline_scorer(model: Baseline, queries: Queries, num_videos: int) -> Scorer:
    """Scores of a fitted baseline by query position."""
    histories = history_matrix(queries.excluded, num_videos)
    return lambda at: model.scores(histories[at])
