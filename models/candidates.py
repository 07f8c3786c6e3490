"""Candidate lists: what retrieval returns for requests of the past, and what was watched of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.inputs import FeatureTables, sample_columns
from models.retriever import load_two_tower
from models.two_tower import query_vectors
from workflow.config import Config, RankerConfig
from workflow.features.encoded import FeatureStore
from workflow.features.history import Histories
from workflow.frames import read_frame
from workflow.run import Run

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
BATCH = 512
MAX_HORIZON = 1_000


@dataclass(frozen=True)
class CandidateLists:
    """n requests with the videos that retrieval returned and those that were watched later.

    Attributes:
        samples: column -> array [n], the requests: pointers, timestamp, per-event features.
        rows: int32 [n, num_candidates], best first, 0 where fewer were found.
        scores: float32 [n, num_candidates], the retriever's.
        later: int32 [n, horizon], the user's watches from then on, 0-padded.
        later_gain: float32 [n, horizon], what each of them is worth (RankerConfig), 0 = padding.
    """

    samples: dict[str, npt.NDArray[Any]]
    rows: Int32
    scores: npt.NDArray[np.float32]
    later: Int32
    later_gain: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Int64) -> CandidateLists:
        """The lists at positions `chosen`."""
        samples = {name: values[chosen] for name, values in self.samples.items()}
        return CandidateLists(
            samples,
            self.rows[chosen],
            self.scores[chosen],
            self.later[chosen],
            self.later_gain[chosen],
        )

    def gains(self) -> npt.NDArray[np.float32]:
        """What each candidate turned out to be worth, 0 if not watched; float32, as `rows`."""
        result = np.zeros(self.rows.shape, np.float32)
        for start in range(0, len(self), BATCH):
            part = slice(start, start + BATCH)
            same = self.rows[part, :, None] == self.later[part, None, :]
            result[part] = np.where(same, self.later_gain[part, None, :], 0.0).max(axis=2)
        return result


@dataclass(frozen=True)
class Retrieval:
    """The retriever of one phase, ready to make lists.

    Attributes:
        phase: "search" for the model that has seen the training part only.
    """

    run: Run
    config: Config
    store: FeatureStore
    tables: FeatureTables
    phase: Literal["final", "search"]

    def search(self, samples: dict[str, npt.NDArray[Any]]) -> tuple[Int32, npt.NDArray[np.float32]]:
        """(rows, scores) of the best unwatched candidates of each request, by exact search."""
        prefix = "" if self.phase == "final" else "search_"
        vectors = np.load(self.run.retriever / f"{prefix}candidate_vectors.npy", allow_pickle=False)
        model = load_two_tower(self.run, self.config, self.tables, phase=self.phase)
        columns = sample_columns(self.tables.spec, ranker=False)
        queries = query_vectors(model, self.tables, {name: samples[name] for name in columns})
        count = min(self.config.serving.num_candidates, len(vectors) - 1)
        rows = np.zeros((len(queries), count), np.int32)
        scores = np.zeros((len(queries), count), np.float32)
        hide = self.config.serving.exclude_watched
        histories = self.store.histories()
        for start in range(0, len(queries), BATCH):
            part = slice(start, start + BATCH)
            every = queries[part] @ vectors.T
            every[:, 0] = -np.inf
            if hide:
                every[_watched_before(samples, histories, part)] = -np.inf
            rows[part], scores[part] = _best(every, count)
        return rows, scores


def _watched_before(
    samples: dict[str, npt.NDArray[Any]], histories: Histories, part: slice
) -> tuple[Int64, Int64]:
    """(position in the part, video row) of everything watched before each request."""
    end = samples["history_end"][part].astype(np.int64)
    start = np.asarray(histories.start)[samples["user_row"][part]]
    owner = np.repeat(np.arange(len(end)), end - start)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(end - start) - (end - start), end - start)
    rows = np.asarray(histories.video_row)[np.repeat(start, end - start) + offset]
    return owner, rows.astype(np.int64)


def _best(scores: npt.NDArray[np.float32], count: int) -> tuple[Int32, npt.NDArray[np.float32]]:
    found = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    best = np.take_along_axis(scores, found, axis=1)
    return np.where(np.isfinite(best), found, 0).astype(np.int32), np.maximum(best, -1e9)


def past_lists(
    retrieval: Retrieval, parts: tuple[str, ...], count: int, *, first_only: bool = False
) -> CandidateLists:
    """Lists for requests at watches of `parts`, with what the user watched from then on in `parts`.

    Args:
        count: at most so many requests, drawn at random.
        first_only: each user's first watch of the parts and all that follow it, as an evaluation
            asks; otherwise any watch and the next `list_horizon`.
    """
    settings = retrieval.config.ranker
    frame = _watches(retrieval, retrieval.store.samples(*parts))
    user = frame["user_row"].to_numpy()
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])[: len(user)]
    end = np.searchsorted(user, user, side="right")
    asked = first if first_only else np.arange(len(user))
    chosen = np.random.default_rng(retrieval.config.seed).permutation(len(asked))[:count]
    asked = np.sort(asked[chosen])
    horizon = MAX_HORIZON if first_only else settings.list_horizon
    horizon = min(horizon, int((end - np.arange(len(end)))[asked].max(initial=1)))
    at = asked[:, None] + np.arange(horizon)
    inside = at < end[asked, None]
    at = np.where(inside, at, 0)
    samples = {str(name): frame[name].to_numpy()[asked] for name in frame.columns}
    return CandidateLists(
        samples,
        *retrieval.search(samples),
        later=frame["video_row"].to_numpy(np.int32)[at] * inside,
        later_gain=_gains(frame, settings)[at] * inside,
    )


def _gains(frame: pd.DataFrame, settings: RankerConfig) -> npt.NDArray[np.float32]:
    gains = np.ones(len(frame), np.float32) + settings.label_gain * frame["label"].to_numpy()
    if "log_watch" in frame:
        gains += settings.watch_time_gain * np.nan_to_num(frame["log_watch"].to_numpy())
    return gains.astype(np.float32)


def _watches(retrieval: Retrieval, files: list[Path]) -> pd.DataFrame:
    columns = [*sample_columns(retrieval.tables.spec, ranker=True), "timestamp"]
    frames = [read_frame(path, columns=columns) for path in files]
    frame = pd.concat(frames, ignore_index=True).query("watched == 1")
    return frame.sort_values(["user_row", "timestamp"], kind="stable", ignore_index=True)


def sampled(
    lists: CandidateLists, rng: np.random.Generator, config: Config, num_videos: int
) -> CandidateLists:
    """A few candidates of each list and a few of the whole catalogue, drawn anew.

    Returns:
        lists whose rows are int32 [n, list_retrieved + list_uniform]; their scores mean nothing.
    """
    settings = config.ranker
    count = min(settings.list_retrieved, lists.rows.shape[1])
    order = np.argpartition(rng.random(lists.rows.shape), count - 1, axis=1)[:, :count]
    drawn = np.take_along_axis(lists.rows, order, axis=1)
    uniform = rng.integers(1, num_videos + 1, (len(lists), settings.list_uniform), dtype=np.int32)
    rows = np.concatenate([drawn, uniform], axis=1)
    return replace(lists, rows=rows, scores=np.zeros(rows.shape, np.float32))
