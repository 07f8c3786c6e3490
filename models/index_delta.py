"""An index with videos added and withdrawn, without building it anew.

What the index returns is always video row - 1, whatever was removed. How a video leaves depends
on the kind:

flat: the vectors of what is left are laid out again (a copy), with their rows beside them.
ivf, ivf_fp16: the vector is taken out of its list; a new one goes into the list whose videos are
    nearest, where distance means difference of score (models/index_kinds.py).
hnsw: a graph cannot lose a node. It stays as a way to others, and the search leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from models.index_kinds import ivf_of, score_space, set_effort
from models.index_tuning import Int64, Sample, Tuned, Vectors, recall_against, tune
from workflow.config import IndexConfig

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """Which videos enter and leave; rows that were withdrawn before may enter again.

    Attributes:
        vectors: float32 [num_videos, dim], all videos after the change, by row - 1.
        is_withdrawn: bool [num_videos], after the change.
        entering, leaving: int64, positions (row - 1).
    """

    vectors: Vectors
    is_withdrawn: Flags
    entering: Int64
    leaving: Int64


class WithoutWithdrawn:
    """An HNSW index whose search leaves some positions out.

    Args:
        inner: the whole index.
        is_withdrawn: bool [inner.ntotal].
    """

    def __init__(self, inner: Any, is_withdrawn: Flags) -> None:
        self.inner, self.hnsw = inner, inner.hnsw
        self._selector = faiss.IDSelectorBitmap(np.packbits(~is_withdrawn, bitorder="little"))

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Int64]:
        """As a FAISS index does."""
        setting = faiss.SearchParametersHNSW(sel=self._selector, efSearch=self.hnsw.efSearch)
        scores, found = self.inner.search(queries, k, params=setting)
        return scores, found


def changed_index(index: Any, kind: str, change: Change, known: Vectors) -> Any:
    """`index`, or a new one in its place, with the change made.

    Args:
        index: read into memory, not mapped; it is changed.
        known: float32 [n, dim], queries that say which differences of vectors matter.
    Returns:
        what `search` is called on; `stored` gives what is to be written.
    """
    if kind == "flat":
        return flat_with_rows(change.vectors, np.flatnonzero(~change.is_withdrawn))
    if kind == "hnsw":
        if len(change.vectors) > index.ntotal:  # withdrawn ones too: position is row - 1
            index.add(np.ascontiguousarray(change.vectors[index.ntotal :]))
        return WithoutWithdrawn(index, change.is_withdrawn)
    inner = ivf_of(index)
    if len(change.leaving):
        inner.remove_ids(faiss.IDSelectorBatch(change.leaving))
    if len(change.entering):
        _add(inner, change, known)
    index.ntotal = inner.ntotal
    return index


def stored(index: Any) -> Any:
    """The FAISS index in what `changed_index` gave."""
    return getattr(index, "inner", index)


def flat_with_rows(vectors: Vectors, positions: Int64) -> Any:
    """Exact search over some of the vectors that returns their positions among all."""
    inner = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIDMap(inner)
    index.own_fields = True
    inner.this.disown()
    index.add_with_ids(np.ascontiguousarray(vectors[positions]), positions.astype(np.int64))
    return index


def _add(inner: Any, change: Change, known: Vectors) -> None:
    """Put the entering vectors into the lists whose videos score most like them."""
    vectors = np.ascontiguousarray(change.vectors[change.entering])
    forward, _ = score_space(known) if len(known) else (np.eye(vectors.shape[1], dtype="f4"), None)
    member, owner = _members(inner)
    means = _means(change.vectors, member, owner, inner.nlist) @ forward
    means[np.bincount(owner, minlength=inner.nlist) == 0] = np.inf
    search = faiss.IndexFlatL2(means.shape[1])
    search.add(np.where(np.isfinite(means), means, np.float32(1e18)))
    lists = np.ascontiguousarray(search.search(vectors @ forward, 1)[1][:, 0])
    padded = np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, inner.d - vectors.shape[1]))))
    ids = np.ascontiguousarray(change.entering)
    pointers = (faiss.swig_ptr(array) for array in (padded, ids, lists))
    inner.add_core(len(padded), *pointers)


def _members(inner: Any) -> tuple[Int64, Int64]:
    """(positions of the videos in the lists, the list of each); int64 [ntotal] each."""
    lists = inner.invlists
    sizes = [lists.list_size(number) for number in range(inner.nlist)]
    parts = [
        faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.zeros(0, np.int64)
        for number, size in enumerate(sizes)
    ]
    owner = np.repeat(np.arange(inner.nlist), sizes)
    return np.concatenate([np.zeros(0, np.int64), *parts]), owner


def _means(vectors: Vectors, member: Int64, owner: Int64, count: int) -> Vectors:
    """Mean vector of each list; float32 [count, dim], zeros for empty lists."""
    from scipy.sparse import csr_matrix

    size = np.maximum(np.bincount(owner, minlength=count), 1).astype(np.float32)
    shape = (count, len(vectors))
    matrix = csr_matrix(((1 / size)[owner], (owner, member)), shape=shape)
    means: Vectors = np.asarray(matrix @ np.asarray(vectors), np.float32)
    return means


def measured(
    index: Any,
    now: Tuned,
    change: Change,
    queries: tuple[Vectors, Vectors],
    num_candidates: int,
    config: IndexConfig,
) -> tuple[Tuned, float]:
    """(how the changed index is to be searched, its recall with the effort it had).

    The yardstick is that of the index stage: the share of the exact result over the catalogue of
    now, over requests of the test part. Where it misses the target, the smallest effort that
    reaches it is chosen, as at building.

    Args:
        now: how it is searched so far.
        queries: `known` and `asked` of models.index_tuning.Sample.
    """
    faiss.omp_set_num_threads(1)
    left = np.flatnonzero(~change.is_withdrawn)
    known, asked = queries
    found = flat_with_rows(change.vectors, left).search(asked, min(num_candidates, len(left)))[1]
    sample = Sample(known, asked, found, 0.0)
    set_effort(index, now.kind, now.effort)
    recall = recall_against(index.search(asked, found.shape[1])[1], found)
    if now.kind == "flat" or recall >= config.target_recall:
        return Tuned(now.kind, now.effort, round(recall, 5), now.search_ms), recall
    return tune(index, now.kind, sample, config.target_recall), recall
