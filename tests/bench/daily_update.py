"""Bars of `marquee update`: 14 days appended one by one, against full trainings and no update.

    .venv/bin/python tests/bench/daily_update.py [FOLDER [SEED]]

A simulated log is cut by time: the base run knows the days before the first cut, then come 14
days with their new users and videos, then three days that nobody has seen, on which the served
lists (retrieve, then rank) of all runs are judged for the same requests: the first watch of each
user in these days, with all watches up to then as its history, as the online state would tell it.
The same is done after 7 days. Runs:

update      the base run after that many `marquee update`
full        `marquee run` on the same log up to that day
no update   the base run, its catalogue and counts as they were exported
refreshed   the same with all videos of that day, as `marquee refresh` adds them

Every run holds out 2% of its log (split.test_fraction), so that full trainings know the last days,
too. CPU seconds are of whole processes. Exit status 1 when a bar is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.dlrm import Ranker
from models.evaluation.bootstrap import paired_interval
from models.evaluation.end_to_end import ranked_lists
from models.growth import load_grown
from models.inputs import FeatureTables, sample_columns
from models.metrics import ranking_metrics, top_lists
from models.queries import Queries, held_out_queries
from models.ranker import build_ranker
from models.ranker_predict import Predictor, combined
from models.retriever import build_two_tower
from models.scoring import Scoring
from models.training import read_weights
from models.two_tower import TwoTower, candidate_vectors, query_vectors
from models.update import RecentStore
from models.watch_time import WatchTime
from workflow.config import CONFIG_FOLDER, SimConfig
from workflow.data.append import append_events
from workflow.data.simulator import simulate
from workflow.data.simulator_world import LOG_END
from workflow.features.encoded import FeatureStore
from workflow.features.extend import extend_features
from workflow.features.spec import FeatureSpec
from workflow.job import Job
from workflow.run import Run

CONTRACT = CONFIG_FOLDER / "sim.contract.toml"
DAY, DAYS, JUDGED_DAYS = 86_400, 14, 3
CHECKED = (7, 14)
SIZE = {"num_users": 6_000, "num_videos": 5_000, "num_events": 300_000, "num_days": 60}
SETTINGS = ["split.test_fraction=0.02", "split.valid_fraction=0.1"]
BAR_CPU, BAR_GAP = 0.15, 0.02


# --- the log, cut by days ------------------------------------------------------------------------
@dataclass(frozen=True)
class Log:
    """A simulated service.

    Attributes:
        cut: unix second at which the base run's log ends; day n ends n days later.
    """

    events: pa.Table
    users: pa.Table
    videos: pa.Table
    cut: int

    @classmethod
    def simulated(cls, folder: Path, seed: int) -> Log:
        folder.mkdir(parents=True)
        simulate(SimConfig(seed=seed, **SIZE), folder)
        tables = (pq.read_table(folder / f) for f in ("events", "users.parquet", "videos.parquet"))
        return cls(*tables, LOG_END - (DAYS + JUDGED_DAYS) * DAY)

    def write(self, folder: Path, first_day: int, last_day: int) -> Path:
        """Events, users and videos that came in these days; day 0 is all that was before.

        A table without rows is not written: on some days nobody signs up.
        """
        since = 0 if first_day == 0 else self.cut + (first_day - 1) * DAY
        until = self.cut + last_day * DAY
        (folder / "events").mkdir(parents=True)
        for table, column, path in (
            (self.events, "timestamp", "events/part-00000.parquet"),
            (self.users, "signup_time", "users.parquet"),
            (self.videos, "publish_time", "videos.parquet"),
        ):
            time = table[column]
            chosen = pc.and_(pc.greater_equal(time, since), pc.less(time, until))
            if table is not self.events and first_day == 0:
                chosen = pc.less(time, until)
            found = table.filter(chosen)
            if len(found):
                pq.write_table(found, folder / path)
        return folder


def tables_of(folder: Path) -> dict[str, Path]:
    """What `Log.write` wrote: "events", and "users" and "videos" where there are any."""
    files = {name: folder / f"{name}.parquet" for name in ("users", "videos")}
    return {"events": folder / "events"} | {n: path for n, path in files.items() if path.exists()}


# --- what it costs -------------------------------------------------------------------------------
def cpu_of(*words: Any) -> float:
    """CPU seconds of a Python process."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, *map(str, words)], env=environment)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, words
    return used.ru_utime + used.ru_stime


FULL = """
import sys
from pathlib import Path
from workflow.config import load_config
from workflow.console import Output
from workflow.job import Job
from workflow.pipeline import run_all
from workflow.run import Run
run, source, contract = map(Path, sys.argv[1:4])
run_all(Job(Run(run), load_config("custom", None, sys.argv[4:]), source, contract), Output())
"""


def full(run: Path, source: Path) -> float:
    """Everything of `marquee run` but serving."""
    return cpu_of("-c", FULL, run, source, CONTRACT, *SETTINGS)


def update(run: Path, day: Path) -> float:
    return cpu_of(
        "-c", "from workflow.cli import main; main()", "update", "--run", run,
        *(word for name, path in tables_of(day).items() for word in (f"--{name}", path)),
    )  # fmt: skip


# --- what is served ------------------------------------------------------------------------------
def served(run: Run, later: Path, since: int, *, refreshed: bool = False) -> dict[int, float]:
    """NDCG@10 of each user's served list at the first watch from `since` on, by raw user id.

    Args:
        later: all events, users and videos that the run does not have, those to be judged too.
        refreshed: all videos published before `since` may be served; else the run's own.
    """
    job = Job.load(run)
    with tempfile.TemporaryDirectory() as place:
        target = Run(Path(place) / "later")
        append_events(run, target, job.config, job.contract, tables_of(later))
        extend_features(run, target, job.config, job.contract, grows=False)
        store = RecentStore(target, Path(place) / "recent", since)
        before = FeatureStore(run)
        allowed = np.append(False, np.isin(store.video("video_id"), before.video("video_id")))
        if refreshed:
            allowed = np.asarray(store.video("publish_time")) < since
        judge = _Judge(job, store, before)
        queries = judge.queries()
        ranked = judge.ranked(queries, allowed)
        values = ranking_metrics(ranked, queries.relevant)["ndcg@10"][queries.has_history]
        users = np.asarray(store.user("user_id"))[queries.user_row[queries.has_history] - 1]
    return dict(zip(users.tolist(), values.tolist(), strict=True))


class _Judge:
    """The models of a run over a log that goes further than theirs."""

    def __init__(self, job: Job, store: FeatureStore, before: FeatureStore) -> None:
        self.job, self.store, self.before = job, store, before
        self.spec = FeatureSpec.load(store.root / "spec.json")
        self.tables = FeatureTables(store, self.spec)
        self.columns = sample_columns(self.spec, ranker=False)

    def queries(self) -> Queries:
        names = [*self.columns, *sample_columns(self.spec, ranker=True), "timestamp"]
        return held_out_queries(self.store, "test", [*dict.fromkeys(names)])

    def ranked(self, queries: Queries, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The served list of each query: rows, best first."""
        tower, hidden = self._tower(), np.where(allowed, np.float32(0), np.float32(-np.inf))
        asked = query_vectors(tower, self.tables, {n: queries.samples[n] for n in self.columns})
        vectors = candidate_vectors(tower, self.tables)
        lists = top_lists(
            lambda at: asked[at] @ vectors.T + hidden, len(vectors), queries.excluded,
            self.job.config.serving.num_candidates,
        )  # fmt: skip
        ranker = self._ranker()
        # Counts are those that the bundle has.
        exported = FeatureSpec.load(self.before.root / "spec.json").last_event + DAY
        moment = np.full(len(queries), exported, np.int64)
        predictor = Predictor(ranker, self.tables, self.store)
        out = predictor.lists(queries.samples, lists.astype(np.int32), moment)
        retrieval = np.einsum("qd,qkd->qk", asked, vectors[lists])
        return ranked_lists(lists, combined(ranker, out, retrieval)[0])

    def _tower(self) -> TwoTower:
        """The retriever, its offsets at the rows that videos have here."""
        tower, run = build_two_tower(self.tables, self.job.config), self.job.run
        load_grown(tower, run.retriever / "weights.npz")
        names = [weight.name.split("/")[-1] for weight in tower.weights]
        place = next(at for at, name in enumerate(names) if name.startswith("offset"))
        offset = read_weights(run.retriever / "weights.npz", len(names))[place]
        known, ids = (np.asarray(one.video("video_id")) for one in (self.before, self.store))
        moved = np.full(len(ids) + 1, offset[0], np.float32)
        moved[np.append(0, 1 + np.searchsorted(ids, known))] = offset
        tower.offset.assign(moved)
        return tower

    def _ranker(self) -> Ranker:
        ranker, folder = build_ranker(self.tables, self.job.config), self.job.run.ranker
        load_grown(ranker, folder / "weights.npz")
        ranker.scoring = Scoring.load(folder / "scoring.json")
        ranker.watch_time = WatchTime.load(folder / "watch_time.npz")
        return ranker


def judged(log: Log, work: Path, runs: dict[str, tuple[Run, int]], day: int) -> dict[str, Any]:
    """NDCG@10 per user of each run on the three days after `day`.

    Args:
        runs: name -> (run, its last day).
    """
    found = {}
    for name, (run, last) in runs.items():
        later = work / f"later-{day}-{last}"
        if not later.exists():
            log.write(later, last + 1, day + JUDGED_DAYS)
        values = served(run, later, log.cut + day * DAY, refreshed=name == "refreshed")
        found[name] = values
        print(f"day {day} {name}: {np.mean(list(values.values())):.4f}", flush=True)
    return found


def main() -> int:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 11
    log = Log.simulated(work / "simulated", seed)
    base, run = work / "base", work / "updated"
    costs = {"base": full(base, log.write(work / "day-0", 0, 0))}
    shutil.copytree(base, run)
    each, values = [], {}
    for day in range(1, DAYS + 1):
        each.append(update(run, log.write(work / f"day-{day}", day, day)))
        print(f"update {day}: {each[-1]:.1f} CPU s", flush=True)
        if day in CHECKED:
            fresh = work / f"full-{day}"
            costs[f"full {day}"] = full(fresh, log.write(work / f"log-{day}", 0, day))
            print(f"full {day}: {costs[f'full {day}']:.1f} CPU s", flush=True)
            runs = {
                "update": (Run(run), day), "full": (Run(fresh), day),
                "no update": (Run(base), 0), "refreshed": (Run(base), 0),
            }  # fmt: skip
            for name, found in judged(log, work, runs, day).items():
                values.setdefault(name, {}).update({(day, u): v for u, v in found.items()})
    return report(each, costs, values)


def report(each: list[float], costs: dict[str, float], values: dict[str, Any]) -> int:
    result: dict[str, Any] = {"cpu_s": {**costs, "update": each}}
    result["cpu_share"] = {"highest": max(each) / costs[f"full {DAYS}"]}
    result["cpu_share"]["mean"] = float(np.mean(each)) / costs[f"full {DAYS}"]
    good = result["cpu_share"]["highest"] <= BAR_CPU
    for day in CHECKED:
        asked = sorted(key for key in values["update"] if key[0] == day)
        arrays = {n: np.array([v[key] for key in asked]) for n, v in values.items()}
        means = {name: float(a.mean()) for name, a in arrays.items()}
        found = {"users": len(asked), "ndcg@10": means, "gap": 1 - means["update"] / means["full"]}
        for other in ("full", "no update", "refreshed"):
            found[f"update - {other}"] = paired_interval(arrays["update"], arrays[other])
        result[f"day {day}"] = found
    last = result[f"day {DAYS}"]
    good = good and last["gap"] <= BAR_GAP and last["update - no update"]["low"] > 0
    print(json.dumps(result, indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
