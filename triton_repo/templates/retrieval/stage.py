"""Retrieval: query vector in, the best candidates that the user has not watched out.

Files: stage.json, index.faiss (what it calls i is video row i + 1), watched_row.npy and
watched_start.npy (what each user has watched), withdrawn.npy (what an HNSW index calls videos that
it is not to return, if any; other kinds do not have them).
"""

import json

import faiss
import numpy as np

# Few of the best candidates were watched before, so a few more than needed are asked for first,
# and all that could be needed only where that was not enough. The answer is the same. (How many
# are asked for hardly changes what a search costs; a second search does.)
OVER_FETCH = 48


def open_array(path):
    """A memory-mapped array; as a plain ndarray it is cheaper to index than a memmap."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def without(path, effort):
    """Search parameters that leave out the positions in a file; None where there is none."""
    if not path.exists():
        return None
    gone = np.load(path, allow_pickle=False)
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(gone))
    return faiss.SearchParametersHNSW(sel=selector, efSearch=effort)


class Stage:
    """Searches the index and leaves out what was watched."""

    def __init__(self, folder):
        settings = json.loads((folder / "stage.json").read_text())
        self.num_candidates = settings["num_candidates"]
        self.exclude_watched = settings["exclude_watched"]
        faiss.omp_set_num_threads(1)
        # Mapped: ready at once, and only pages that are searched become resident. (FAISS before
        # 1.11, as in the Merlin container, reads the file.)
        mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        self.index = faiss.read_index(str(folder / "index.faiss"), mapped)
        if settings["kind"].startswith("ivf"):
            faiss.extract_index_ivf(self.index).nprobe = settings["effort"]
        if settings["kind"] == "hnsw":
            self.index.hnsw.efSearch = settings["effort"]
        self.search = without(folder / "withdrawn.npy", settings["effort"])
        self.watched_row = open_array(folder / "watched_row.npy")
        self.watched_start = open_array(folder / "watched_start.npy")
        self.num_indexed = self.index.ntotal
        self.is_watched = np.zeros(settings["num_videos"] + 1, bool)

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: rows and pointers that do not exist."""
        refused, start = {}, 0
        rows, until = inputs["user_row"][:, 0], inputs["watched_until"][:, 0]
        inside = (rows >= 0) & (rows < len(self.watched_start) - 1)
        rows[~inside] = 0
        online = inputs["online_row"]
        inside &= ((online >= 0) & (online < len(self.is_watched))).all(axis=1)
        online[~inside] = 0
        inside &= (until >= self.watched_start[rows]) & (until <= self.watched_start[rows + 1])
        until[~inside] = self.watched_start[0]
        for position, size in enumerate(sizes):
            if not inside[start : start + size].all():
                refused[position] = (
                    "user_row, watched_until or online_row is outside the bundle's tables"
                )
            start += size
        return refused

    def run(self, inputs):
        rows, until = inputs["user_row"][:, 0], inputs["watched_until"][:, 0]
        first = self.watched_start[rows] if self.exclude_watched else until
        online = inputs["online_row"]
        if not self.exclude_watched or not online.any():
            online = online[:, :0]
        # Of what is found, at most so many were watched.
        most = (until - first + (online > 0).sum(axis=1)).tolist()
        first, until = first.tolist(), until.tolist()
        vectors = np.ascontiguousarray(inputs["query_vector"])
        candidates = np.zeros((len(rows), self.num_candidates), np.int32)
        scores = np.full((len(rows), self.num_candidates), -np.inf, np.float32)
        unfilled, extra = list(range(len(rows))), min(OVER_FETCH, max(most))
        while unfilled:
            wanted = min(self.num_candidates + extra, self.num_indexed)
            asked = vectors if len(unfilled) == len(rows) else vectors[unfilled]
            found_scores, found = self.index.search(asked, wanted, params=self.search)
            found += 1  # FAISS says -1 for "no more": becomes row 0, which is padding
            short = []
            for at, i in enumerate(unfilled):
                keep = self.keep(found[at], self.watched_row[first[i] : until[i]], online[i])
                candidates[i, : len(keep)] = found[at].take(keep)
                scores[i, : len(keep)] = found_scores[at].take(keep)
                all_of_them = min(self.num_candidates + most[i], self.num_indexed)
                if len(keep) < self.num_candidates and wanted < all_of_them:
                    short.append(i)
            unfilled = short
            extra = max((most[i] for i in short), default=0)
        return {"candidate_row": candidates, "candidate_score": scores}

    def finish(self, answer):
        return answer

    def keep(self, found, watched, online):
        """Positions of the first `num_candidates` rows that are neither padding nor watched."""
        self.is_watched[online] = True
        self.is_watched[watched] = True
        self.is_watched[0] = True
        keep = np.flatnonzero(~self.is_watched[found])[: self.num_candidates]
        self.is_watched[online] = False
        self.is_watched[watched] = False
        return keep
