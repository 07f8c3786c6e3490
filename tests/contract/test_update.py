"""`marquee update` on planted logs: what stays, what is appended, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.growth import load_grown
from models.inputs import FeatureTables
from models.ranker import build_ranker
from models.retriever import build_two_tower
from models.training import read_weights
from tests.fixtures import DAY, START, make_config
from workflow import staging
from workflow import update as verb
from workflow.console import Output
from workflow.data.append import append_events
from workflow.errors import ConfigError, ContractError, DataError
from workflow.features import tables
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable, restore_workflow
from workflow.features.spec import OUT_OF_VOCABULARY, FeatureSpec
from workflow.job import Job
from workflow.pipeline import STAGES, evaluate, run_all, run_stages
from workflow.run import Run
from workflow.staging import STAGES as NAMES
from workflow.staging import is_pending

QUIET = Output(as_json=True)
CONFIG = make_config(
    retriever={"max_epochs": 1, "batch_size": 64, "objectives": ["next"]},
    ranker={"max_epochs": 1, "batch_size": 256, "list_queries": 100},
    serving={"num_candidates": 10},
)
CONTRACT = """
name = "planted"
watched = "label"
[events]
path = "events"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "video_id", role = "video_id", dtype = "string" },
  { name = "at", role = "timestamp", dtype = "int64", unit = "s" },
  { name = "clicked", role = "label", dtype = "int64" },
  { name = "seconds", role = "watch_s", dtype = "float32" },
  { name = "device", role = "context", kind = "categorical", dtype = "string" },
]
[users]
path = "users.parquet"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "country", role = "user_feature", kind = "categorical", dtype = "string" },
]
[videos]
path = "videos.parquet"
columns = [
  { name = "video_id", role = "video_id", dtype = "string" },
  { name = "title", role = "title", dtype = "string" },
  { name = "genres", role = "video_feature", kind = "multi_hot", dtype = "string" },
  { name = "length", role = "duration_s", kind = "continuous", dtype = "float32", log = true },
]
"""
NEW_USER, NEW_VIDEO, RARE_VIDEO = 105, "v005x", "v900"  # between, between and after known ids


def events(random: np.random.Generator, count: int, first_day: int, days: int) -> pd.DataFrame:
    """Events of users 100, 110, … and videos v000, v001, …"""
    clicked = random.random(count) < 0.5
    return pd.DataFrame(
        {
            "user_id": 100 + 10 * random.integers(0, 40, count),
            "video_id": [f"v{n:03d}" for n in random.integers(0, 30, count)],
            "at": START + first_day * DAY + random.integers(0, days * DAY, count),
            "clicked": clicked.astype(np.int64),
            "seconds": np.where(clicked, random.lognormal(4, 1, count), 0).astype(np.float32),
            "device": random.choice(["tv", "phone"], count),
        }
    )


@dataclass(frozen=True)
class Day:
    """Raw files of the eleventh day: a new user, a new video and a new device among them."""

    folder: Path

    @property
    def files(self) -> dict[str, Path]:
        return {name: self.folder / f"{name}.parquet" for name in ("events", "users", "videos")}


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    folder = tmp_path_factory.mktemp("day")
    frame = events(np.random.default_rng(2), 80, 10, 1)
    frame.loc[:9, "video_id"] = NEW_VIDEO
    frame.loc[:9, "clicked"] = 1
    frame.loc[5:12, "user_id"] = NEW_USER
    frame.loc[20:21, "device"] = "watch"
    frame.to_parquet(folder / "events.parquet", index=False)
    users = pd.DataFrame({"user_id": [NEW_USER], "country": ["JP"]})
    users.to_parquet(folder / "users.parquet", index=False)
    videos = pd.DataFrame({"video_id": [RARE_VIDEO, NEW_VIDEO, "v001"]})
    videos["title"] = ["Rare", "New", "Renamed"]
    videos["genres"] = [["noir"], ["drama", "noir"], ["drama"]]
    videos["length"] = np.array([60, 90, 30], np.float32)
    videos.to_parquet(folder / "videos.parquet", index=False)
    return Day(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "contract.toml").write_text(CONTRACT)
    (folder / "events").mkdir()
    frame = events(np.random.default_rng(1), 1500, 0, 10)
    frame.to_parquet(folder / "events" / "all.parquet", index=False)
    users = pd.DataFrame({"user_id": 100 + 10 * np.arange(40)})
    users["country"] = np.where(users.index % 2, "DE", "US")
    users.to_parquet(folder / "users.parquet", index=False)
    videos = pd.DataFrame({"video_id": [f"v{n:03d}" for n in range(30)]})
    videos["title"] = [f"Video {n}" for n in range(30)]
    videos["genres"] = [["drama"] if n % 2 else ["comedy", "drama"] for n in range(30)]
    videos["length"] = np.linspace(60, 3600, 30, dtype=np.float32)
    videos.to_parquet(folder / "videos.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def base(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run."""
    run = Run(tmp_path_factory.mktemp("runs") / "base")
    job = Job(run, CONFIG, source, source / "contract.toml")
    run_all(job, QUIET)
    return job


@pytest.fixture
def copied(base: Job, tmp_path: Path) -> Job:
    shutil.copytree(base.run.root, tmp_path / "run")
    job = Job(Run(tmp_path / "run"), CONFIG, base.source, base.contract_file)
    job.save()  # its place is another one
    return job


@pytest.fixture(scope="module")
def updated(base: Job, day: Day, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("runs") / "updated"
    shutil.copytree(base.run.root, folder)
    job = Job(Run(folder), CONFIG, base.source, base.contract_file)
    verb.update(job, QUIET, **day.files)
    return job


@pytest.fixture
def no_training(updated: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of the same day take the models that the first one trained."""

    def copy_models(parent: Run, target: Run, *_: Any) -> dict[str, Any]:
        shutil.copytree(updated.run.root / "models", target.root / "models")
        return {"samples": 1, "retriever_loss": 0.0, "ranker_loss": 0.0}

    monkeypatch.setattr("models.update.update_models", copy_models)


def raw(job: Job, part: Path) -> pd.DataFrame:
    """A part of the validated events, with raw ids."""
    frame = pd.read_parquet(part)
    store = FeatureStore(job.run)
    frame["user_id"] = np.asarray(store.user("user_id"))[frame["user_row"] - 1]
    videos = np.asarray(store.video("video_id")).astype(str)
    frame["video_id"] = videos[frame["video_row"] - 1]
    return frame


def indices(job: Job, side: str) -> dict[Any, int]:
    """Vocabulary index by raw id."""
    store = FeatureStore(job.run)
    load: Callable[[str], Any] = store.user if side == "user" else store.video
    index = np.asarray(load(f"{side}_index"))[1:]
    return dict(zip(np.asarray(load(f"{side}_id")).tolist(), index.tolist(), strict=True))


# --- the log -------------------------------------------------------------------------------------
def test_the_log_is_the_old_one_and_the_new_day(updated: Job, source: Path, day: Day) -> None:
    given = [source / "events" / "all.parquet", day.files["events"]]
    expected = pd.concat([pd.read_parquet(path) for path in given])
    [part] = sorted((updated.run.data / "events").glob("*.parquet"))
    found = raw(updated, part)
    order = found[["user_row", "timestamp"]]
    assert order.equals(order.sort_values(["user_row", "timestamp"]))
    columns = ["user_id", "video_id", "timestamp", "label", "watch_s", "device"]
    expected = expected.rename(
        columns={"at": "timestamp", "clicked": "label", "seconds": "watch_s"}
    )
    left, right = (
        frame[columns].astype({"label": float}).sort_values(columns).reset_index(drop=True)
        for frame in (found, expected)
    )
    pd.testing.assert_frame_equal(left, right, check_dtype=False)


def test_known_videos_take_new_values_and_new_ones_come(updated: Job) -> None:
    videos = pd.read_parquet(updated.run.data / "videos.parquet").set_index("video_id")
    assert videos.index.is_monotonic_increasing and len(videos) == 32
    assert videos.loc[["v000", "v001", NEW_VIDEO], "title"].tolist() == [
        "Video 0",
        "Renamed",
        "New",
    ]
    assert videos.loc[NEW_VIDEO, "genres"].tolist() == ["drama", "noir"]


def test_every_index_of_a_known_id_stays(base: Job, updated: Job) -> None:
    for side, new in (("user", NEW_USER), ("video", NEW_VIDEO.encode())):
        before, after = indices(base, side), indices(updated, side)
        assert {known: after[known] for known in before} == before
        assert after[new] == max(before.values()) + 1
    assert indices(updated, "video")[RARE_VIDEO.encode()] == OUT_OF_VOCABULARY


def test_extended_vocabularies_are_what_nvtabular_reads(updated: Job) -> None:
    folder = updated.run.features / "workflows"
    values = {
        "videos": ("genres", [["noir"], ["drama", "comedy"], ["polka"]]),
        "users": ("country", ["JP", "DE", "US", "FR"]),
        "ids": ("video_row", [1, 2, 6, 7, 32]),
    }
    for name, (column, raws) in values.items():
        workflow = restore_workflow(updated.contract, CONFIG.features, name, folder / name)  # type: ignore[arg-type]
        frame = pd.DataFrame({column: raws})
        if name == "videos":
            frame["length"] = np.float32(1)
        if name == "ids":
            frame["user_row"] = 1
        [encoded] = tables.transform(workflow, frame)
        compiled = CompiledTable.load(folder / name)[column]
        flat = frame[column].explode().to_numpy()
        flat = flat.astype(str) if column != "video_row" else flat.astype(np.int64)
        ours = compiled.encode(flat, np.zeros(len(flat), bool))
        assert encoded[column].explode().tolist() == ours.tolist()
    genres = CompiledTable.load(folder / "videos")["genres"]
    assert genres.encode(np.array(["noir"]), np.zeros(1, bool)).tolist() == [5]  # 3, 4 were there


def test_statistics_stay(base: Job, updated: Job) -> None:
    for name in ("events", "videos"):
        states = [
            json.loads((j.run.features / "workflows" / name / "state.json").read_text())
            for j in (base, updated)
        ]
        assert states[0] == states[1]
    specs = [FeatureSpec.load(j.run.features / "spec.json") for j in (base, updated)]
    assert specs[0].label_prior == specs[1].label_prior
    assert specs[0].last_event < START + 10 * DAY <= specs[1].last_event


# --- the models ----------------------------------------------------------------------------------
def test_weights_of_known_values_are_untouched_before_training(base: Job, updated: Job) -> None:
    spec = FeatureSpec.load(updated.run.features / "spec.json")
    of_models = FeatureTables(FeatureStore(updated.run), spec)
    grown = 0
    for folder, model in (
        (base.run.retriever, build_two_tower(of_models, CONFIG)),
        (base.run.ranker, build_ranker(of_models, CONFIG)),
    ):
        before = read_weights(folder / "weights.npz", len(model.weights))
        load_grown(model, folder / "weights.npz")
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(new[: len(old)] if new.ndim else new, old)
            if new.shape != old.shape:
                grown += 1
                unknown = old[OUT_OF_VOCABULARY]
                assert all(np.array_equal(row, unknown) for row in new[len(old) :])
    assert grown >= 4  # videos and genres, in either model


def test_training_moves_little_and_only_what_it_read(base: Job, updated: Job) -> None:
    names = ("videos", "genres")  # tables of the candidate tower, by video_index and by genre
    spec = FeatureSpec.load(updated.run.features / "spec.json")
    model = build_two_tower(FeatureTables(FeatureStore(updated.run), spec), CONFIG)
    before, after = (
        read_weights(job.run.retriever / "weights.npz", len(model.weights))
        for job in (base, updated)
    )
    places = [n for n, w in enumerate(model.weights) if any(name in w.name for name in names)]
    moved = [np.abs(after[n][: len(before[n])] - before[n]).max() for n in places]
    assert places and 0 < max(moved) < 0.1


def test_a_new_video_and_a_new_user_are_served(updated: Job) -> None:
    from triton_repo.recommend import recommend

    answer = recommend(
        updated.run, updated.contract, str(NEW_USER), top_k=10, at=None, context={},
        in_process=True,
    )  # fmt: skip
    assert answer["status"] == "ok" and len(answer["items"]) == 10
    shown = [
        item["video_id"]
        for user in range(100, 200, 10)
        for item in recommend(
            updated.run, updated.contract, str(user), top_k=10, at=None, context={},
            in_process=True,
        )["items"]
    ]  # fmt: skip
    assert NEW_VIDEO in shown


# --- what is refused, and what is kept -----------------------------------------------------------
def state(run: Run) -> dict[str, bytes]:
    left_out = (".lock", "logs")
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for path in run.root.rglob("*")
        if path.is_file() and path.name not in left_out
    }


def test_the_same_day_is_refused_the_second_time(updated: Job, day: Day) -> None:
    before = state(updated.run)
    with pytest.raises(DataError, match=r"80 of 80 events are not later.*appended before"):
        verb.update(updated, QUIET, **day.files)
    assert state(updated.run) == before


def test_one_event_of_the_past_is_refused(copied: Job, day: Day, tmp_path: Path) -> None:
    frame = pd.read_parquet(day.files["events"])
    frame.loc[3, "at"] = START + 5 * DAY
    frame.to_parquet(tmp_path / "late.parquet")
    files = day.files | {"events": tmp_path / "late.parquet"}
    with pytest.raises(DataError, match="1 of 80 events are not later"):
        verb.update(copied, QUIET, **files)


def test_bad_rows_are_dropped_as_in_validation(copied: Job, day: Day, tmp_path: Path) -> None:
    frame = pd.read_parquet(day.files["events"])
    frame.loc[3, "seconds"] = -1.0
    frame.loc[4, "video_id"] = "nobody knows it"
    frame.to_parquet(tmp_path / "bad.parquet")
    target = Run(tmp_path / "target")
    files = day.files | {"events": tmp_path / "bad.parquet"}
    found = append_events(copied.run, target, CONFIG, copied.contract, files)
    assert found["dropped"] == {"negative watch_s": 1, "unknown video_id": 1}
    assert found["events"] == 78
    frame.assign(extra=1).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ContractError, match="does not declare"):
        append_events(copied.run, target, CONFIG, copied.contract, files)


@pytest.mark.parametrize("moment", ["before it counts", "after it counts"])
def test_a_crash_midway_leaves_a_whole_run(
    copied: Job, day: Day, moment: str, no_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    before = state(copied.run)
    if moment == "before it counts":
        monkeypatch.setattr(verb, "commit", killed)
    else:
        swap, swapped = staging.swap_folder, []

        def two_swaps(new: Path, target: Path) -> None:
            if len(swapped) == 2:
                raise Killed
            swapped.append(target)
            swap(new, target)

        monkeypatch.setattr(staging, "swap_folder", two_swaps)
    with pytest.raises(Killed):
        verb.update(copied, QUIET, **day.files)
    monkeypatch.undo()
    assert is_pending(copied.run) == (moment == "after it counts")
    found = Job.load(copied.run)
    entries = run_all(found, QUIET)
    assert not is_pending(copied.run) and not copied.run.staged.exists()
    done = [entry["stage"] for entry in entries if not entry["skipped"]]
    if moment == "before it counts":
        assert done == [] and state(copied.run) == before
    else:
        assert done == ["index", "export"] and len(copied.run.updates()) == 1
        assert NEW_VIDEO.encode() in indices(copied, "video")


def test_run_afterwards_has_nothing_to_do(updated: Job) -> None:
    entries = run_all(Job.load(updated.run), QUIET)
    assert all(entry["skipped"] for entry in entries)
    assert [entry["stage"] for entry in entries] == [stage.name for stage in STAGES] == list(NAMES)


def test_nothing_throws_updates_away_unasked(updated: Job, source: Path) -> None:
    rules = CONFIG.validation.model_copy(update={"max_bad_fraction": 0.01})
    settings = CONFIG.model_copy(update={"validation": rules})
    before = state(updated.run)
    with pytest.raises(ConfigError, match="would leave out what marquee update appended"):
        run_all(Job(updated.run, settings, source, source / "contract.toml"), QUIET)
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        evaluate(updated, QUIET)
    with pytest.raises(ConfigError, match="ranker cannot be trained alone"):
        run_stages(updated, QUIET, ("train_ranker",), force=True)
    assert state(updated.run) == before


def test_a_full_training_goes_on_from_what_was_appended(
    updated: Job, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(updated.run.root, tmp_path / "run")
    job = Job(Run(tmp_path / "run"), CONFIG, source, source / "contract.toml")
    run_stages(job, QUIET, ("features",), force=True)
    assert NEW_VIDEO.encode() in indices(job, "video") and len(job.run.updates()) == 1
    assert sorted(job.run.manifest()["stages"]) == ["features", "validate"]  # the rest is undone
    run_stages(job, QUIET, ("validate",), force=True)
    assert job.run.updates() == [] and sorted(job.run.manifest()["stages"]) == ["validate"]


def test_an_unfinished_run_is_refused(copied: Job, day: Day) -> None:
    settings = CONFIG.ranker.model_copy(update={"learning_rate": 0.5})
    changed = Job(copied.run, CONFIG.model_copy(update={"ranker": settings}))
    with pytest.raises(ConfigError, match="train_ranker is out of date"):
        verb.update(changed, QUIET, **day.files)
