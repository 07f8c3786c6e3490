"""Videos that came and went after training: kept by raw id, so that they outlive an export.

`<run>/catalogue/<version>/` belongs to the bundle of that version and is written before it, so a
process that is killed in between leaves the earlier bundle with its own catalogue.

added.parquet    canonical rows (workflow/data/entities.py); row i is video row num_videos + 1 + i
vectors.npy      their candidate vectors, float32 [added, dim]
withdrawn.npy    raw ids of videos that are not to be returned
report.json      what the refresh did
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from triton_repo.bundle import read_bundle
from workflow.errors import BundleError
from workflow.features.encoded import FeatureStore
from workflow.run import Run, read_json, replaced_folder, write_json

Ids = npt.NDArray[Any]  # int64, or bytes of fixed width
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """How the videos differ from those that the run was trained with.

    Attributes:
        known: raw ids of the features stage, sorted; position i is video row i + 1.
        added: canonical rows, None where nothing was added.
        vectors: float32 [added, dim].
        withdrawn: raw ids, distinct.
        boost: added to the last column of new vectors (models.new_videos.NewVideos.boost).
    """

    known: Ids
    added: pa.Table | None
    vectors: Vectors
    withdrawn: Ids
    boost: float = 0.0

    @classmethod
    def untouched(cls, run: Run) -> Catalogue:
        """The videos of the features stage, all of them."""
        known = np.asarray(FeatureStore(run).video("video_id"))
        return cls(known, None, np.zeros((0, 0), np.float32), known[:0])

    @classmethod
    def of(cls, run: Run) -> Catalogue:
        """That of the run's exported bundle; of the newest one if the bundle cannot be read."""
        folder, untouched = _folder_of(run), cls.untouched(run)
        if folder is None:
            return untouched
        report, added = read_json(folder / "report.json"), pq.read_table(folder / "added.parquet")
        return replace(
            untouched,
            added=added if added.num_rows else None,
            vectors=np.load(folder / "vectors.npy", allow_pickle=False),
            withdrawn=np.load(folder / "withdrawn.npy", allow_pickle=False),
            boost=report["boost"],
        )

    def save(self, run: Run, version: int, report: dict[str, Any]) -> None:
        """Write the folder of a bundle that is about to take its place."""
        with replaced_folder(run.catalogue / str(version)) as folder:
            added = pa.table({"video_id": []}) if self.added is None else self.added
            pq.write_table(added, folder / "added.parquet")
            np.save(folder / "vectors.npy", self.vectors, allow_pickle=False)
            np.save(folder / "withdrawn.npy", self.withdrawn, allow_pickle=False)
            write_json(folder / "report.json", report | {"boost": float(self.boost)})

    @property
    def ids(self) -> Ids:
        """Raw ids of all videos, withdrawn ones too; position i is video row i + 1."""
        return np.concatenate([self.known, self.added_ids])

    @property
    def added_ids(self) -> Ids:
        return self.known[:0] if self.added is None else id_array(self.added["video_id"])

    @property
    def num_added(self) -> int:
        return 0 if self.added is None else int(self.added.num_rows)

    @property
    def is_withdrawn(self) -> npt.NDArray[np.bool_]:
        """By row - 1; bool [num_videos]."""
        return np.isin(self.ids, self.withdrawn)

    @property
    def is_untouched(self) -> bool:
        return self.num_added == 0 and len(self.withdrawn) == 0

    def with_videos(self, videos: pa.Table) -> Catalogue:
        """Unknown ones are added, withdrawn ones return, others are left as they are."""
        ids = id_array(videos["video_id"])
        new = videos.filter(pa.array(~np.isin(ids, self.ids)))
        added = new if not self.num_added else pa.concat_tables([self.added, new])
        back = np.isin(self.withdrawn, ids)
        return replace(
            self, added=added if added.num_rows else None, withdrawn=self.withdrawn[~back]
        )

    def without(self, ids: Ids) -> Catalogue:
        """These are withdrawn."""
        return replace(self, withdrawn=np.unique(np.concatenate([self.withdrawn, ids])))

    def on(self, other: Catalogue) -> Catalogue:
        """The same changes where `other` has the videos of a new training."""
        result = other if self.added is None else other.with_videos(self.added)
        return result.without(self.withdrawn[np.isin(self.withdrawn, result.ids)])


def id_array(column: Any) -> Ids:
    """An Arrow column of raw ids as the features stage keeps them."""
    if pa.types.is_string(column.type):
        return np.array([one.encode() for one in column.to_pylist()], np.bytes_)
    return np.asarray(column.to_numpy(), np.int64)


def added_titles(run: Run, ids: list[Any]) -> dict[Any, str]:
    """Titles of those of the raw ids that were added after training."""
    folder = _folder_of(run)
    if folder is None:
        return {}
    table = pq.read_table(folder / "added.parquet").to_pydict()
    if "title" not in table:
        return {}
    wanted = set(ids)
    pairs = zip(table["video_id"], table["title"], strict=True)
    return {video: title or "" for video, title in pairs if video in wanted}


def prune(run: Run) -> None:
    """Remove the catalogues of bundles that are gone."""
    kept = _folder_of(run)
    for folder in run.catalogue.glob("*"):
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(run: Run) -> Path | None:
    with suppress(BundleError):
        folder = run.catalogue / str(read_bundle(run.repository).version)
        return folder if folder.exists() else None
    made = [path for path in run.catalogue.glob("*") if path.name.isdigit()]
    return max(made, key=lambda path: int(path.name), default=None)
