"""Videos like a video: what "Because you watched X" shows."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from models.co_watch import CoWatch
from models.metrics import Float32

# Of log popularity in the co-watch score, which alone would have 0.5. Less of it gives lists that
# differ more from one video to the next, for a little less recall of what is watched next.
POPULARITY = 0.35
SAMPLE, PROBES = 256, 32
EXACT_UP_TO = 50_000  # videos


def neighbours(
    learned: Float32,
    co_watch: CoWatch,
    counts: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int16],
    how_many: int,
) -> npt.NDArray[np.int32]:
    """The most similar videos of each video, best first.

    Similarity is the cosine of the learned vectors, which new videos have too, plus the co-watch
    score with less popularity, plus the cosine of the groups (genres and the like); each in
    standard deviations over the catalogue.

    Args:
        learned: float32 [num_videos + 1, dim], the candidate tower's part of the vectors.
        counts: watches by video row.
        groups: int16 [num_videos + 1, width], 1-based groups of each video, 0-padded.
        how_many: neighbours per video.
    Returns:
        int32 [num_videos + 1, how_many], video rows, 0-padded; row 0 has none.
    """
    degree = np.maximum(counts[:, None] + 1.0, 1.0)
    told = (co_watch.video * degree ** (POPULARITY - 0.5)).astype(np.float32)
    unit, member = unit_rows(learned), _member(groups)
    parts = ((unit, unit), (co_watch.history, told), (member, member))
    asking = np.hstack([_in_deviations(*part) for part in parts])
    found = _search(np.hstack([unit, told, member])[1:], asking[1:], how_many + 1) + 1
    rows = np.arange(1, len(learned))[:, None]
    # Itself last, then the others as they came.
    order = np.argsort((found == rows) | (found == 0), axis=1, kind="stable")[:, :how_many]
    best = np.take_along_axis(found, order, axis=1)
    best[best == rows] = 0
    result = np.zeros((len(learned), how_many), np.int32)
    result[1:, : best.shape[1]] = best
    return result


def unit_rows(vectors: Float32) -> Float32:
    """Rows of length one (those of zeros stay)."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Float32 = (vectors / np.maximum(length, 1e-9)).astype(np.float32)
    return result


def _member(groups: npt.NDArray[np.int16]) -> Float32:
    """Unit vectors with equal parts for each group of a video; zeros for a video of none."""
    member = np.zeros((len(groups), int(groups.max(initial=0)) + 1), np.float32)
    np.put_along_axis(member, groups.astype(np.int64), np.float32(1), axis=1)
    member[:, 0] = 0
    return unit_rows(member)


def _in_deviations(asking: Float32, told: Float32) -> Float32:
    """`asking` scaled so that its products with `told` have a standard deviation of one a row."""
    sample = told[np.random.default_rng(0).permutation(np.arange(1, len(told)))[:SAMPLE]]
    spread = (asking @ sample.T).std(axis=1, keepdims=True)
    result: Float32 = (asking / np.maximum(spread, 1e-9)).astype(np.float32)
    return result


def _search(vectors: Float32, asking: Float32, how_many: int) -> npt.NDArray[np.int64]:
    """Positions of the largest inner products; int64 [n, how_many], -1 where there are no more."""
    vectors, asking = np.ascontiguousarray(vectors), np.ascontiguousarray(asking)
    count, dim = vectors.shape
    flat = faiss.IndexFlatIP(dim)
    if count <= EXACT_UP_TO:
        flat.add(vectors)
        index = flat
    else:
        index = faiss.IndexIVFFlat(flat, dim, int(np.sqrt(count)), faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: max(1, count // 100_000)])
        index.add(vectors)
        index.nprobe = PROBES
    found: npt.NDArray[np.int64] = index.search(asking, min(how_many, count))[1]
    return found
