"""`marquee update` on planted logs: what stays, what is appended, what is learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from models.growth import load_grown
from models.inputs import FeatureTables
from models.ranker import build_ranker
from models.retriever import build_two_tower
from models.training import read_weights
from tests.fixtures import DAY, START
from tests.updates import CONFIG, NEW_USER, NEW_VIDEO, RARE_VIDEO, Day, indices
from workflow.features import tables
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable, restore_workflow
from workflow.features.spec import OUT_OF_VOCABULARY, FeatureSpec
from workflow.job import Job


def raw(job: Job, part: Path) -> pd.DataFrame:
    """A part of the validated events, with raw ids."""
    frame = pd.read_parquet(part)
    store = FeatureStore(job.run)
    frame["user_id"] = np.asarray(store.user("user_id"))[frame["user_row"] - 1]
    videos = np.asarray(store.video("video_id")).astype(str)
    frame["video_id"] = videos[frame["video_row"] - 1]
    return frame


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
