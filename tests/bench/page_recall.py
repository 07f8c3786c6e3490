"""Recall of pages against single lists of the same length, on a run's test part.

    python tests/bench/page_recall.py runs/movielens-1m

One page per user at the moment of the first held-out watch, by the exported stages in this process.
Relevant: what the user watched in the test part (with a label where there is one) and had not
watched before. The list: as many candidates as the page has, all of the two towers, in the ranker's
order. Both at the same lengths: the first row, two, five, ten and all rows of the page, each row as
long as the page has it; Continue watching is left out. So that nothing is known too early, numbers
of users and videos, popularity, trends and neighbours are those of before the test part.

Intervals are bootstrapped over users, paired. The exit status is 1 where the page is below the list
with its whole interval.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models.compat  # noqa: F401

from models.co_watch import co_watch_vectors
from models.evaluation.bootstrap import paired_interval
from models.neighbours import neighbours
from models.watches import Watches
from triton_repo import page_tables
from triton_repo.frontier_quality import Judge, _typed
from triton_repo.local import LocalPage
from triton_repo.page_export import NEIGHBOURS
from triton_repo.page_tables import SECONDS_PER_DAY, Tables
from workflow.config import Config
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.job import Job
from workflow.run import Run
from workflow.schema import Contract

ROWS = (1, 2, 5, 10, 1_000)


def turn_back(sources: Any, run: Run, config: Config, contract: Contract, countries: Any) -> None:
    """Give the page's sources the neighbours and the popularity of before the test part."""
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    watches = Watches.read(store, spec, "train", "valid")
    vectors = np.load(run.retriever / "candidate_vectors.npy", allow_pickle=False)
    sources.neighbour = neighbours(
        vectors[:, : config.retriever.embedding_dim],
        co_watch_vectors(watches, config.retriever.co_watch_dim),
        watches.counts,
        sources.group,
        NEIGHBOURS,
    )
    histories, tables = store.histories(), Tables.read(contract, run.data)
    where = page_tables.watch_countries(tables, histories, countries)
    before = np.flatnonzero(histories.time < (spec.test_from or np.inf))
    known = replace(histories, video_row=histories.video_row[before], time=histories.time[before])
    half_life_s = config.page.trending_half_life_days * SECONDS_PER_DAY
    counted = page_tables.popularity(known, where[before], len(tables.videos), half_life_s)
    sources.popular_row, sources.trending_row = counted["popular_row"], counted["trending_row"]
    sources.country_table = np.zeros(len(countries) + 1, np.int16)
    sources.country_table[: len(counted["country_table"])] = counted["country_table"]


class Study:
    """Pages and lists for the test part's requests."""

    def __init__(self, run: Run) -> None:
        job = Job.load(run)
        self.judge = Judge(run, job.config, job.contract)
        self.stage = LocalPage(run).stage
        self.judge._turn_back(SimpleNamespace(fused=self.stage))  # type: ignore[arg-type]
        page = self.stage.page
        page.sources.group = page.group
        turn_back(page.sources, run, job.config, job.contract, page.settings["countries"])

    def requests(self, count: int, device: str) -> list[tuple[int, dict[str, Any]]]:
        """(position of the query, tensors) of at most `count` users with a history."""
        queries = self.judge.bench.queries
        usable = np.flatnonzero(queries.has_history & (queries.relevant.sizes > 0))
        chosen = np.random.default_rng(0).permutation(usable)[:count]
        name = self.stage.page.context["device"]
        return [(int(at), self._tensors(int(at)) | _text(name, device)) for at in chosen]

    def _tensors(self, at: int) -> dict[str, Any]:
        given = {name: values[[at]][:, None] for name, values in self.judge.requests.items()}
        return {n: _typed(values) for n, values in given.items() if values[0, 0] is not None}

    def page(self, tensors: dict[str, Any]) -> list[Any]:
        """Video rows of each of the page's rows."""
        page = self.stage.run(tensors)["page"][0, 0]
        parts = np.split(page.rows, np.cumsum(page.sizes)[:-1]) if page.sizes else []
        return [rows for kind, rows in zip(page.kinds, parts, strict=True) if kind != b"continue"]

    def ranked(self, tensors: dict[str, Any]) -> Any:
        """Video rows of the single list, best first."""
        known, total = dict(tensors), self.stage.page.sources.total
        for step in ("query_tower", "retrieval"):
            known |= self.stage.run_step(step, known)
        for name in ("candidate_row", "candidate_score"):
            known[name] = known[name][:, :total]
        rows, scores = known["candidate_row"][0], self.stage.scores(known)[0]
        return rows[np.argsort(np.where(rows > 0, -scores, np.inf), kind="stable")]

    def recalls(self, at: int, tensors: dict[str, Any]) -> Any:
        """float64 [2, lengths]: of the page, of the list."""
        relevant = self.judge.bench.queries.relevant[at]
        rows, ranked = self.page(tensors), self.ranked(tensors)
        shown = np.concatenate([np.zeros(0, np.int32), *rows])
        ends = np.cumsum([0, *map(len, rows)])
        lengths = [ends[min(count, len(rows))] for count in ROWS]
        found = [[np.isin(relevant, one[:n]).mean() for n in lengths] for one in (shown, ranked)]
        return np.array(found)


def _text(name: str, value: str) -> dict[str, Any]:
    return {name: np.array([[value.encode()]], object)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--devices", nargs="+", default=["web", "phone"])
    options = parser.parse_args()
    study, is_below = Study(Run(options.run)), False
    for device in options.devices:
        asked = study.requests(options.users, device)
        found = np.array([study.recalls(*one) for one in asked])
        for number, rows in enumerate(ROWS):
            page, ranked = found[:, 0, number], found[:, 1, number]
            difference = paired_interval(page, ranked)
            is_below |= difference["high"] < 0
            values = {"page": page.mean(), "list": ranked.mean(), **difference}
            line = {name: round(float(value), 4) for name, value in values.items()}
            print(json.dumps({"device": device, "users": len(asked), "rows": rows, **line}))
    sys.exit(1 if is_below else 0)


if __name__ == "__main__":
    main()
