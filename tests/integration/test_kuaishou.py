"""KuaiRand and KuaiRec by the real command: published files in, features and a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.kuai_files import (
    APRIL_9_MS,
    JULY_5_S,
    day,
    play,
    user,
    video,
    view,
    write_kuairand,
    write_kuairec,
)
from workflow.features.encoded import FeatureStore
from workflow.run import Run

NUM_USERS, NUM_VIDEOS, NUM_EVENTS = 60, 40, 3_000
LENGTHS_S = np.arange(NUM_VIDEOS) + 5  # by video id
SHORT = [
    f"--set={model}.{setting}"
    for model in ("retriever", "ranker")
    for setting in ("max_epochs=1", "refit=false")
]


def made(marquee: Any, dataset: str, source: Path, run: Path) -> pd.DataFrame:
    """Samples of a dataset in order of time, after validation that found nothing wrong."""
    words = ("--dataset", dataset, "--source", source, "--run", run)
    summary = marquee.json("validate", *words)
    assert {column["result"] for column in summary["columns"]} == {"PASS"}
    assert summary["num_events"] == NUM_EVENTS and summary["num_watched"] > 0
    assert (summary["num_users"], summary["num_videos"]) == (NUM_USERS, NUM_VIDEOS)
    marquee.json("features", "--run", run)
    parts = FeatureStore(Run(run)).samples("train", "valid", "test")
    samples = pd.concat([pd.read_parquet(part) for part in parts])
    return samples.sort_values("timestamp", ignore_index=True)


def check(samples: pd.DataFrame, run: Path, events: pd.DataFrame) -> None:
    """Samples and videos against `events` (user, video, label, watch_s), one by one in time."""
    assert (samples["user_row"] - 1).tolist() == events["user"].tolist()
    assert (samples["video_row"] - 1).tolist() == events["video"].tolist()
    assert samples["label"].tolist() == events["label"].tolist()
    np.testing.assert_allclose(np.expm1(samples["log_watch"]), events["watch_s"], rtol=1e-5)
    store = FeatureStore(Run(run))
    known = samples["history_end"] - store.histories().start[samples["user_row"]]
    before = events.groupby("user")["label"].cumsum() - events["label"]
    assert known.tolist() == before.tolist()
    logs = np.log1p(LENGTHS_S)
    expected = (logs - logs.mean()) / logs.std()
    np.testing.assert_allclose(store.video("duration_s")[1:], expected, rtol=0.02, atol=0.02)
    assert len(np.unique(store.video("author_id")[1:])) == 9


def test_kuairand(marquee: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = [
        play(
            int(random.integers(NUM_USERS)), int(random.integers(NUM_VIDEOS)),
            APRIL_9_MS + number * 800_000, is_click=int(random.random() < 0.4),
            play_time_ms=int(random.integers(60_000)), tab=int(random.integers(3)),
            is_rand=int(number >= 2_000),
        )
        for number in range(NUM_EVENTS)
    ]  # fmt: skip
    logs = {
        "log_standard_4_08_to_4_21": rows[:1_500], "log_standard_4_22_to_5_08": rows[1_500:2_000],
        "log_random_4_22_to_5_08": rows[2_000:],
    }  # fmt: skip
    videos = [
        video(n, tag=f"{n % 5},{n % 7}", author_id=n % 9, video_duration=1000.0 * length)
        for n, length in enumerate(LENGTHS_S)
    ]
    users = [user(n, onehot_feat3=n % 11) for n in range(NUM_USERS)]
    source = write_kuairand(tmp_path / "KuaiRand-Pure", logs, users, videos)
    samples = made(marquee, "kuairand", source, tmp_path / "run")
    frame = pd.DataFrame(rows)
    events = pd.DataFrame(
        {
            "user": frame["user_id"], "video": frame["video_id"], "label": frame["is_click"],
            "watch_s": frame["play_time_ms"] / 1000,
        }
    )  # fmt: skip
    check(samples, tmp_path / "run", events)
    assert (pd.crosstab(samples["tab"], frame["tab"]) > 0).to_numpy().sum() == 3
    log = pd.read_parquet(tmp_path / "run" / "data" / "events").sort_values("timestamp")
    assert (log["propensity"].notna().to_numpy() == frame["is_rand"].to_numpy()).all()
    retriever, ranker = marquee.json("train", "--run", tmp_path / "run", *SHORT)["stages"]
    assert 0 < retriever["summary"]["valid_recall@100"] <= 1
    assert 0 < ranker["summary"]["valid_auc"] < 1


def test_kuairec(marquee: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    users, videos = random.integers([[NUM_USERS], [NUM_VIDEOS]], size=(2, NUM_EVENTS)).tolist()
    rows = [
        view(
            user_id, video_id, JULY_5_S + number * 60 + 0.25,
            play_duration=int(random.integers(40_000)), video_duration=1000 * LENGTHS_S[video_id],
        )
        for number, (user_id, video_id) in enumerate(zip(users, videos, strict=True))
    ]  # fmt: skip
    days = [
        day(n, 20200705 + later, author_id=n % 9, video_duration=1000.0 * length)
        for n, length in enumerate(LENGTHS_S)
        for later in range(3)
    ]
    source = write_kuairec(
        tmp_path / "KuaiRec 2.0", rows + rows[:200],
        [user(n, onehot_feat3=n % 11) for n in range(NUM_USERS)],
        {n: f"[{n % 5}, {n % 7}]" for n in range(NUM_VIDEOS)}, days,
    )  # fmt: skip
    samples = made(marquee, "kuairec", source, tmp_path / "run")
    frame = pd.DataFrame(rows)
    events = pd.DataFrame(
        {
            "user": users, "video": videos, "watch_s": frame["play_duration"] / 1000,
            "label": (frame["play_duration"] >= 2 * frame["video_duration"]).astype(int),
        }
    )  # fmt: skip
    check(samples, tmp_path / "run", events)
    categories = FeatureStore(Run(tmp_path / "run")).video("categories")
    assert categories.shape[1] == 2 and len(np.unique(categories[1:])) == 7
