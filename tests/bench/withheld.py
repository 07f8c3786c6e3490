"""Bars: users and videos that training has never seen, on MovieLens-1M.

    PYTHONPATH=. .venv/bin/python tests/bench/withheld.py SOURCE [section.key=value ...]

SOURCE is an unpacked copy of MovieLens-1M; what follows overrides settings. The real stages run in
a temporary folder, on leave-last-out: each user's last rating is to be found. Exit status 1 when a
bar is missed.

Users: 10% of them are withheld. None of their events is in the training or validation samples, so
vocabularies, statistics, towers and co-watch vectors know nothing of them; their histories are
read when they ask. Their Recall@100 must be within 5% of that of users who were trained on and
have as long a history: both means are taken per bin of the history's length and weighted by the
withheld users of each bin. Intervals are over users resampled within bins.

Videos: 10% of them are cold. All events with them are taken out of the log, except last ratings
of users, which are what is to be found (they do reach the daily counts that the ranker reads).
Recall@100 of those among all videos must be three times that of a random 100, and the pages of 20
that the ranker makes must hold some. The users' bar counts warm videos only.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.evaluation.end_to_end import ranked_lists
from models.evaluation.learned import Trained
from models.index import build_index
from models.metrics import Float64, Int64, hits, top_k
from models.queries import Queries, held_out_queries
from models.ranker import train_ranker
from models.retriever import train_retriever
from workflow import pipeline
from workflow.config import Config, load_config
from workflow.console import Output
from workflow.features import build
from workflow.features.samples import Cuts, split_of
from workflow.features.split import TEST, UNUSED
from workflow.job import Job
from workflow.run import Run

SHARE, SEED = 0.1, 11
BINS, RESAMPLES = 8, 2_000
DEPTH, PAGE, PAGES = 100, 20, 1_000
BAR_USERS, BAR_COLD = 0.95, 3.0
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Withheld:
    """Rows that training must not see, int64 each."""

    users: Int64
    videos: Int64

    @classmethod
    def draw(cls, num_users: int, num_videos: int) -> Withheld:
        rng = np.random.default_rng(SEED)
        users = rng.permutation(num_users)[: round(SHARE * num_users)] + 1
        videos = rng.permutation(num_videos)[: round(SHARE * num_videos)] + 1
        return cls(np.sort(users), np.sort(videos))

    def split_of(self, events: pd.DataFrame, config: Config, cuts: Cuts) -> npt.NDArray[np.int8]:
        """As workflow.features.samples.split_of, with only test events of withheld users."""
        part = split_of(events, config, cuts)
        hidden = np.isin(events["user_row"], self.users) & (part != TEST)
        return np.where(hidden, np.int8(UNUSED), part)

    def is_cold(self, video_row: Int64) -> Mask:
        found: Mask = np.isin(video_row, self.videos)
        return found


def prepare(job: Job) -> Withheld:
    """Validated data without events of cold videos, and features without withheld users."""
    pipeline.run_stages(job, Output(as_json=True), ("validate",))
    counts = [
        len(pd.read_parquet(job.run.data / f"{name}.parquet")) for name in ("users", "videos")
    ]
    withheld = Withheld.draw(*counts)
    for path in sorted((job.run.data / "events").glob("*.parquet")):
        events = pd.read_parquet(path)
        is_last = events["user_row"].ne(events["user_row"].shift(-1))
        cold = withheld.is_cold(events["video_row"].to_numpy())
        events[is_last | ~cold].to_parquet(path, index=False)
    with patch.object(build, "split_of", withheld.split_of):
        build.build_features(job.run, job.config, job.contract)
    return withheld


def check_nothing_seen(trained: Trained, withheld: Withheld) -> None:
    """Fail if a training or validation sample is of a withheld user or a cold video."""
    for path in trained.store.samples("train", "valid"):
        samples = pd.read_parquet(path, columns=["user_row", "video_row"])
        assert not np.isin(samples["user_row"], withheld.users).any(), path.name
        assert not withheld.is_cold(samples["video_row"].to_numpy()).any(), path.name


# --- users ---------------------------------------------------------------------------------------
def judge_users(queries: Queries, found: Mask, is_withheld: Mask) -> float:
    """Recall@100 of withheld users over that of seen ones with as long a history."""
    length = queries.excluded.sizes
    edges = np.quantile(length[is_withheld], np.linspace(0, 1, BINS + 1)[1:-1])
    place = np.searchsorted(edges, length, side="right")
    rng = np.random.default_rng(0)
    ours, theirs = (resampled(found, place, group, rng) for group in (is_withheld, ~is_withheld))
    weights = np.bincount(place[is_withheld], minlength=BINS) / is_withheld.sum()
    withheld, seen = ours @ weights, theirs @ weights
    ratio = withheld / seen
    low, high = np.quantile(ratio[1:], [0.025, 0.975])
    print(
        f"users: {is_withheld.sum()} withheld, Recall@{DEPTH} {withheld[0]:.4f}; "
        f"{(~is_withheld).sum()} seen, as long histories, {seen[0]:.4f}; "
        f"ratio {ratio[0]:.3f} (95% interval {low:.3f} to {high:.3f})"
    )
    return float(ratio[0])


def resampled(found: Mask, place: Int64, group: Mask, rng: np.random.Generator) -> Float64:
    """Means per bin; float64 [1 + RESAMPLES, BINS], the first row without resampling."""
    columns = []
    for number in range(BINS):
        values = found[group & (place == number)].astype(np.float64)
        hit = rng.binomial(len(values), values.mean(), RESAMPLES) / len(values)
        columns.append(np.r_[values.mean(), hit])
    return np.stack(columns, axis=1)


# --- videos --------------------------------------------------------------------------------------
def judge_cold(queries: Queries, found: Mask, cold: Mask, num_videos: int) -> float:
    """Recall@100 of cold videos over that of a random choice among the unwatched."""
    chance = np.minimum(DEPTH / (num_videos - queries.excluded.sizes), 1)[cold].mean()
    recall, times = found[cold].mean(), found[cold].mean() / chance
    print(
        f"videos: {cold.sum()} last ratings are of cold videos, Recall@{DEPTH} {recall:.4f}, "
        f"{times:.2f} times random ({chance:.4f}); of warm videos {found[~cold].mean():.4f}"
    )
    return float(times)


def judge_pages(trained: Trained, queries: Queries, withheld: Withheld) -> float:
    """Share of cold videos on the pages that are served."""
    some = queries.sample(PAGES, SEED)
    _, candidates = trained.candidates(some)
    pages = ranked_lists(candidates, trained.candidate_scores(some, candidates))[:, :PAGE]
    cold = withheld.is_cold(pages)
    retrieved = withheld.is_cold(candidates)
    print(
        f"pages: {cold.mean():.4f} of {pages.size} places are cold videos "
        f"({retrieved.mean():.4f} of the candidates), {cold.any(axis=1).mean():.3f} of the pages "
        f"have one"
    )
    return float(cold.mean())


def main(source: str, overrides: list[str]) -> int:
    settings = ["split.protocol=leave_last_out", "retriever.refit=false", "ranker.refit=false"]
    config = load_config("movielens-1m", overrides=[*settings, *overrides])
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        job = Job(Run(folder), config, source=Path(source))
        withheld = prepare(job)
        trained = Trained(job.run, config)
        check_nothing_seen(trained, withheld)
        print("retriever:", train_retriever(job.run, config), flush=True)
        queries = held_out_queries(trained.store, "test", trained.query_columns)
        vectors, candidates = trained.query_vectors(queries), trained.candidate_vectors
        lists = top_k(vectors, candidates, queries.excluded, DEPTH)
        found = hits(lists, queries.relevant).any(axis=1)  # each query has one relevant video
        cold = withheld.is_cold(queries.relevant.values)
        is_withheld = np.isin(queries.user_row, withheld.users)
        warm = np.flatnonzero(~cold)
        users = judge_users(queries.take(warm), found[warm], is_withheld[warm])
        times = judge_cold(queries, found, cold, trained.spec.num_videos)
        print("ranker:", train_ranker(job.run, config), flush=True)
        build_index(job.run, config)
        share = judge_pages(trained, queries, withheld)
    bars = [
        ("withheld users against seen ones", users, users >= BAR_USERS, f"at least {BAR_USERS}"),
        ("cold videos against random", times, times >= BAR_COLD, f"at least {BAR_COLD}"),
        ("cold videos on pages", share, share > 0, "above 0"),
    ]
    for name, value, good, bar in bars:
        print(f"{'ok    ' if good else 'MISSED'} {name}: {value:.4g} (bar: {bar})")
    return 0 if all(good for *_, good, _ in bars) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
