"""Raw ids to codes while events stream by, and to rows once all ids are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, Any]


class IdTable:
    """Codes of ids in the order in which they became known, and how many events each has.

    Args:
        known: the ids of the users or videos table, unique; empty when there is no table.
    """

    def __init__(self, known: pa.Array) -> None:
        self.ids = known
        self.num_known = len(known)
        self.counts: Array = np.zeros(len(known), np.int64)

    def find(self, ids: pa.Array) -> Array:
        """int32 codes; -1 for an id that is not known."""
        codes = pc.index_in(ids, value_set=self.ids)
        found: Array = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        return found

    def find_or_add(self, ids: pa.Array) -> Array:
        """int32 codes; ids not seen before get new ones."""
        codes = self.find(ids)
        if (codes < 0).any():
            new = ids.filter(pa.array(codes < 0)).unique()
            self.ids = pa.concat_arrays([self.ids, new])
            self.counts = np.concatenate([self.counts, np.zeros(len(new), np.int64)])
            codes = self.find(ids)
        return codes

    def count(self, codes: Array) -> None:
        """Count events; an added id without any is not kept."""
        self.counts += np.bincount(codes, minlength=len(self.counts))

    @property
    def num_added(self) -> int:
        """How many ids were added to the known ones, kept or not."""
        return len(self.ids) - self.num_known

    @property
    def kept(self) -> Array:
        """Codes that get a row: all of the table's own, and added ones that have events."""
        added = np.arange(self.num_known, len(self.ids))
        return np.concatenate([np.arange(self.num_known), added[self.counts[added] > 0]])

    def order(self) -> Array:
        """Kept codes by ascending id: position i is row i + 1 of the table."""
        kept = self.kept
        ranks = pc.sort_indices(self.ids.take(pa.array(kept)))
        ordered: Array = kept[ranks.to_numpy()]
        return ordered
