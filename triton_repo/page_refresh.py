"""The page stage's files changed to another catalogue: new videos, and withdrawn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from triton_repo import page_tables
from triton_repo.catalogue import Catalogue
from triton_repo.page_tables import Tables
from workflow.config import Config
from workflow.run import Run, read_json
from workflow.schema import Contract

Arrays = dict[str, npt.NDArray[Any]]
ONE_PER_VIDEO = (
    "maturity", "group", "candidate_vector", "neighbour", "diversity_vector", "video_id",
    "duration_s",
)  # fmt: skip


def changed_page(
    run: Run, folder: Path, contract: Contract, config: Config, before: Catalogue, after: Catalogue
) -> Arrays:
    """What of the page stage's arrays is another one after a change of the catalogue.

    A new video has no neighbours, and is in no list of popular videos, until the next export; it
    is found by the two towers and among what is new. A country or a rating that the bundle does
    not know counts as unknown.

    Args:
        folder: the stage's, with the arrays of `before`.
        after: with the vectors of all that was added.
    """
    changed: Arrays = {}
    if after.num_added > before.num_added:
        changed = _extended(folder, contract, config, before, after)
    window = page_tables.windows(Tables.read(contract, run.data))
    if after.added is not None:
        added = Tables(contract, pd.DataFrame(), after.added.to_pandas(), ())
        window = np.concatenate([window, page_tables.windows(added)[:, 1:]], axis=1)
    window[1, np.r_[False, after.is_withdrawn]] = 0
    return changed | {"window": window}


def _extended(
    folder: Path, contract: Contract, config: Config, before: Catalogue, after: Catalogue
) -> Arrays:
    arrays: Arrays = {
        path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")
    }
    settings = read_json(folder / "stage.json")
    assert after.added is not None
    videos = after.added.slice(before.num_added).to_pandas()
    tables = Tables(contract, videos[:0], videos, ())
    new = _rows_of(tables, settings, arrays)
    vectors = after.vectors[before.num_added :]
    learned = vectors[:, : config.retriever.embedding_dim]
    new["candidate_vector"] = vectors
    new["diversity_vector"] = page_tables.short_vectors(learned, arrays["diversity_axis"])
    new["neighbour"] = np.zeros((len(videos), arrays["neighbour"].shape[1]), np.int32)
    new["video_id"] = after.ids[len(before.ids) :]
    changed = {name: np.concatenate([arrays[name], new[name]]) for name in ONE_PER_VIDEO}
    changed["countries"] = np.concatenate([arrays["countries"], new["countries"]], axis=1)
    changed["title_text"] = np.concatenate([arrays["title_text"], new["title_text"]])
    ends = arrays["title_start"][-1] + new["title_start"][2:]
    changed["title_start"] = np.concatenate([arrays["title_start"], ends])
    time = np.concatenate([new["fresh_time"], arrays["fresh_time"]])
    rows = np.concatenate([len(before.ids) + new["fresh_row"], arrays["fresh_row"]])
    order = np.argsort(-time, kind="stable")[: page_tables.FRESH]
    return changed | {"fresh_row": rows[order].astype(np.int32), "fresh_time": time[order]}


def _rows_of(tables: Tables, settings: dict[str, Any], arrays: Arrays) -> Arrays:
    """What the export would write for these videos alone, without a row 0."""
    new: Arrays = {
        "maturity": page_tables.video_ratings(tables, settings["ratings"])[1:],
        "countries": page_tables.country_bits(tables, settings["countries"])[:, 1:],
    }
    width = arrays["group"].shape[1]
    new["group"] = page_tables.places_of(tables, settings["groups"], width)[1:]
    new["duration_s"] = page_tables.durations(tables)
    new["title_text"], new["title_start"] = page_tables.titles(tables)
    return new | page_tables.newest(tables)
