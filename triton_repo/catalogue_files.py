"""A bundle's files changed to another catalogue: what differs is written anew, the rest is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from triton_repo.catalogue import Catalogue, Vectors
from triton_repo.page_tensors import PAGE_STAGE
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.errors import DataError
from workflow.features.encoded import FeatureStore
from workflow.features.new_videos import encode_new_videos
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json, write_json
from workflow.schema import Contract

if TYPE_CHECKING:
    from models.index_delta import Change


@dataclass(frozen=True)
class NewRows:
    """What new videos are in a bundle's tables; all arrays [n, ...], in row order."""

    vectors: Vectors
    video_index: npt.NDArray[np.int32]
    ranker_vector: npt.NDArray[np.float32]
    ranker_value: npt.NDArray[np.float32]
    publish_time: npt.NDArray[np.int64] | None


class CatalogueFiles:
    """Changes the stages in a folder that is not sealed yet.

    Args:
        folder: where the stages are; files may be links to those of another bundle.
        before: the catalogue that they are made for.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        contract: Contract,
        folder: Path,
        version: int,
        before: Catalogue,
    ) -> None:
        self.run, self.config, self.contract = run, config, contract
        self.folder, self.version, self.before = folder, version, before
        self.changed: set[str] = set()

    def change_to(
        self, after: Catalogue, report: Report = no_report
    ) -> tuple[Catalogue, dict[str, Any]]:
        """Carry the change out; new videos must come after those of `before`.

        Returns:
            (`after` with all its vectors, {"kind", "effort", "effort_before", "recall_vs_exact",
            "recall_before", "num_candidates", "num_videos"}); num_videos are those that can be
            returned, recall_before is the recall with the effort that there was before.
        """
        after = replace(after, vectors=self.before.vectors, boost=self.before.boost)
        if after.num_added > self.before.num_added:
            report(0, 3, "new videos")
            new, boost = self._new_rows(after)
            vectors = np.concatenate([after.vectors.reshape(-1, new.vectors.shape[1]), new.vectors])
            after = replace(after, vectors=vectors, boost=boost)
            report(1, 3, "tables")
            self._extend_tables(after, new)
        report(2, 3, "index")
        self._change_page(after)
        return after, self._change_index(after)

    # --- tables ----------------------------------------------------------------------------------
    def _new_rows(self, after: Catalogue) -> tuple[NewRows, float]:
        from models.index_tuning import sample_queries
        from models.new_videos import NewVideos

        assert after.added is not None
        store = FeatureStore(self.run)
        spec = FeatureSpec.load(store.root / "spec.json")
        videos = after.added.slice(self.before.num_added)
        self._check_columns(videos.column_names)
        encoded = encode_new_videos(videos, store, spec, self.contract)
        models = NewVideos(self.run, self.config)
        vectors, boost = models.vectors(encoded), self.before.boost
        if not self.before.num_added:
            _, asked = sample_queries(self.run, self.config)
            boost = float(models.boost(vectors, self._known_vectors(), asked))
        vectors[:, -1] += np.float32(boost)
        folded = models.ranker_rows(encoded)
        publish_time = encoded.get("publish_time")
        return NewRows(vectors, encoded["video_index"], *folded, publish_time), boost

    def _check_columns(self, names: list[str]) -> None:
        """Those that an earlier contract had may lack some of today's."""
        wanted = [column.name for column in self.contract.features("video_feature")]
        wanted += ["publish_time"] if self.contract.has_publish_time else []
        videos = self.contract.videos
        wanted += [column.name for column in videos.of_role("page")] if videos else []
        missing = [name for name in wanted if name not in names]
        if missing:
            raise DataError(
                f"videos that marquee refresh added have no column {missing[0]}",
                expected=", ".join(wanted),
                next_step=f"remove {self.run.catalogue}, and give them to marquee refresh anew",
            )

    def _known_vectors(self) -> Vectors:
        """Those of the videos that training knew; float32 [known, dim], mapped."""
        path = self.run.retriever / "candidate_vectors.npy"
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)[1:]
        return vectors

    def _extend_tables(self, after: Catalogue, new: NewRows) -> None:
        order = np.argsort(after.ids, kind="stable")
        self._save("query_tower", "video_id", after.ids[order])
        self._save("query_tower", "video_row", np.r_[0, order + 1].astype(np.int32))
        self._append("query_tower", "video_index", new.video_index)
        self._save("ranker", "video_id", np.concatenate([np.zeros(1, after.ids.dtype), after.ids]))
        self._append("ranker", "video_vector", new.ranker_vector)
        self._append("ranker", "video_value", new.ranker_value)
        if self._path("ranker", "publish_time.npy").exists():
            assert new.publish_time is not None
            self._append("ranker", "publish_time", new.publish_time)
        if self._path("ranker", "duration_s.npy").exists():
            self._append("ranker", "duration_s", self._durations(after))

    def _durations(self, after: Catalogue) -> npt.NDArray[np.float32]:
        """Seconds that the new videos last, NaN where not known; float32 [n]."""
        assert after.added is not None
        new, column = after.added.slice(self.before.num_added), self.contract.duration
        if column is None:
            return np.full(new.num_rows, np.nan, np.float32)
        durations: npt.NDArray[np.float32] = new[column.name].to_pandas().to_numpy(np.float32)
        return durations

    def _change_page(self, after: Catalogue) -> None:
        from triton_repo.page_refresh import changed_page

        folder = self.folder / PAGE_STAGE / str(self.version)
        if not folder.exists():  # a bundle from before there were pages
            return
        changed = changed_page(self.run, folder, self.contract, self.config, self.before, after)
        for name, values in changed.items():
            self._save(PAGE_STAGE, name, values)

    # --- index -----------------------------------------------------------------------------------
    def _change_index(self, after: Catalogue) -> dict[str, Any]:
        import faiss

        from models.index_delta import changed_index, measured, stored
        from models.index_tuning import Tuned, sample_queries

        queries = sample_queries(self.run, self.config)
        path = self._path("retrieval", "index.faiss")
        settings = read_json(self._path("retrieval", "stage.json"))
        kind, effort = settings["kind"], settings["effort"]
        change = self._index_change(after)
        index = changed_index(faiss.read_index(str(path)), kind, change, queries[0])
        wanted, config = settings["num_candidates"], self.config.index
        tuned, before = measured(
            index, Tuned(kind, effort, 0.0, 0.0), change, queries, wanted, config
        )
        faiss.write_index(stored(index), str(self._fresh("retrieval", "index.faiss")))
        if kind == "hnsw":  # the others have no withdrawn video in them
            self._save("retrieval", "withdrawn", np.flatnonzero(change.is_withdrawn))
        settings |= {"effort": tuned.effort, "num_videos": len(change.vectors)}
        write_json(self._fresh("retrieval", "stage.json"), settings)
        return {
            "kind": kind,
            "effort": tuned.effort,
            "effort_before": effort,
            "recall_vs_exact": tuned.recall_vs_exact,
            "recall_before": round(before, 5),
            "num_candidates": wanted,
            "num_videos": int((~change.is_withdrawn).sum()),
        }

    def _index_change(self, after: Catalogue) -> Change:
        from models.index_delta import Change

        vectors = self._known_vectors()
        if after.num_added:
            vectors = np.concatenate([vectors, after.vectors])
        gone = after.is_withdrawn
        was_there = np.zeros(len(gone), bool)
        was_there[: len(self.before.ids)] = ~self.before.is_withdrawn
        entering, leaving = np.flatnonzero(~gone & ~was_there), np.flatnonzero(gone & was_there)
        return Change(vectors, gone, entering, leaving)

    # --- files -----------------------------------------------------------------------------------
    def _path(self, stage: str, name: str) -> Path:
        return self.folder / stage / str(self.version) / name

    def _fresh(self, stage: str, name: str) -> Path:
        """A path to write to; what is there may be a link to another bundle's file."""
        path = self._path(stage, name)
        path.unlink(missing_ok=True)
        self.changed.add(path.relative_to(self.folder).as_posix())
        return path

    def _save(self, stage: str, name: str, values: npt.NDArray[Any]) -> None:
        path = self._fresh(stage, f"{name}.npy")
        np.save(path, np.ascontiguousarray(values), allow_pickle=False)

    def _append(self, stage: str, name: str, rows: npt.NDArray[Any]) -> None:
        path = self._path(stage, f"{name}.npy")
        old = np.load(path, mmap_mode="r", allow_pickle=False)
        self._save(stage, name, np.concatenate([old, rows.astype(old.dtype)]))
