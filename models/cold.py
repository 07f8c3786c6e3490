"""New videos among the candidates: how much to add to videos that nobody has watched yet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.metrics import Float32, Lists

DEPTH = 100


def cold_boost(
    scores: Float32, cold: npt.NDArray[np.bool_], excluded: Lists, share: float
) -> float:
    """What to add to cold videos' scores so that they make up a share of the first hundred.

    A softmax over what was watched teaches that a video without a watch is unlikely; it is only
    unknown. Their contents still say whom a new video suits, so the share goes where it fits best.

    Args:
        scores: float32 [n, num_videos + 1] of requests; column 0 is padding.
        cold: bool [num_videos + 1], videos without a training watch.
        excluded: what request i must not show.
        share: of the first hundred, on average over the requests; at most the cold videos' share
            of the catalogue is given.
    Returns:
        At least 0; 0 when they have their share already, or when there are none.
    """
    known = ~cold
    known[0] = False
    share = min(share, float(cold[1:].mean()))
    depth = min(DEPTH, int(known.sum()))
    wanted = int(share * depth * len(scores))
    if wanted == 0:
        return 0.0
    allowed = scores.copy()
    for row in range(len(allowed)):
        allowed[row, excluded[row]] = -np.inf
    best = _descending(allowed[:, known], depth)
    new = _descending(allowed[:, cold & (np.arange(len(cold)) > 0)], depth)
    # A request's j-th best cold video pushes out its j-th last known one.
    needed = (best[:, ::-1][:, : new.shape[1]] - new).ravel()
    needed = np.sort(needed[np.isfinite(needed)])
    return max(0.0, float(needed[min(wanted, len(needed)) - 1])) if len(needed) else 0.0


def _descending(scores: Float32, depth: int) -> Float32:
    """The `depth` highest scores of each row, best first."""
    depth = min(depth, scores.shape[1])
    smallest: Float32 = np.sort(np.partition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
    return -smallest
