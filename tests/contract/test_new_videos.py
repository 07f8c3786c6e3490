"""Videos that come after the features stage are encoded as that stage would have done."""

from __future__ import annotations

from typing import Any

import workflow.environment  # noqa: F401

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures import make_config, make_contract, make_tables, write_run
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.new_videos import encode_new_videos
from workflow.features.spec import FeatureSpec
from workflow.run import Run

CONTRACT = make_contract()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("new_videos") / "run"
    made = write_run(folder, CONTRACT, make_tables(num_videos=40, num_events=60))
    build_features(made, make_config(), CONTRACT)
    return made


def encoded(run: Run, videos: pa.Table) -> dict[str, Any]:
    store = FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    return encode_new_videos(videos, store, spec, CONTRACT)


def test_what_is_known_of_a_video_is_encoded_as_by_nvtabular(run: Run) -> None:
    store, got = FeatureStore(run), encoded(run, pq.read_table(run.data / "videos.parquet"))
    for name in ("language", "genres", "duration", "publish_time"):
        expected = np.asarray(store.video(name))[1:]
        assert got[name].dtype == expected.dtype
        np.testing.assert_array_equal(got[name], expected, err_msg=name)
    assert (got["video_index"] == 2).all()


def test_numbers_are_those_of_a_video_without_events(run: Run) -> None:
    store, got = FeatureStore(run), encoded(run, pq.read_table(run.data / "videos.parquet"))
    events = [pq.read_table(path) for path in sorted((run.data / "events").glob("*.parquet"))]
    seen = np.unique(pa.concat_tables(events)["video_row"].to_numpy())
    unseen = np.setdiff1d(np.arange(1, 41), seen)
    assert 0 < len(unseen) < 40
    for name in ("video_event_count", "video_lift_7d", "video_lift_30d", "video_label_rate"):
        expected = np.asarray(store.video(name))
        np.testing.assert_array_equal(got[name][unseen - 1], expected[unseen])
        assert (got[name][seen - 1] != expected[seen]).any() or name == "video_lift_7d"


def test_unknown_values_nulls_and_long_lists(run: Run) -> None:
    length = FeatureSpec.load(run.features / "spec.json")["genres"].length
    videos = pa.table(
        {
            "video_id": ["x1", "x2", "x3"],
            "title": [None, None, None],
            "publish_time": pa.array([None, 5, 7], pa.int64()),
            "language": pa.array(["klingon", None, "de"]),
            "duration": pa.array([None, 10.0, 20.0], pa.float32()),
            "genres": [["drama"] * 50, [], ["drama", "opera"]],
        }
    )
    got = encoded(run, videos)
    assert got["language"].tolist()[:2] == [2, 1] and got["language"][2] >= 3
    assert got["publish_time"].tolist() == [0, 5, 7]
    drama = int(got["genres"][0, 0])
    assert drama >= 3 and got["genres"].shape == (3, length)
    assert got["genres"][0].tolist() == [drama] * length
    assert got["genres"][1].tolist() == [0] * length
    assert got["genres"][2].tolist() == [drama, 2] + [0] * (length - 2)
    assert np.isfinite(got["duration"]).all() and got["duration"][1] < got["duration"][2]


def test_a_slice_of_a_table(run: Run) -> None:
    """As the second refresh passes it."""
    videos = pq.read_table(run.data / "videos.parquet")
    whole, part = encoded(run, videos), encoded(run, videos.slice(7, 20))
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][7:27], err_msg=name)
