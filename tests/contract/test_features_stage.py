"""The features stage as a whole: partitions, protocols, encoded tables, the fitted schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import workflow.environment  # noqa: F401

import numpy as np
import pandas as pd
import pytest

from tests.fixtures import make_config, make_contract, make_tables, write_run
from workflow.errors import DataError, MissingArtifactError
from workflow.features import tables as workflows
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.spec import FeatureSpec
from workflow.features.state import VideoState
from workflow.run import Run

CONTRACT = make_contract()
CONFIG = make_config()
TABLES = make_tables(num_users=40, num_videos=15, num_events=900, seed=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """The same data in one partition and in several."""
    made = {}
    for number in (1, 5):
        folder = tmp_path_factory.mktemp("stage") / "run"
        made[number] = write_run(folder, CONTRACT, TABLES, num_partitions=number)
        summary = build_features(made[number], CONFIG, CONTRACT)
        assert sum(summary[f"num_{part}"] for part in ("train", "valid", "test")) == 900
    return made


def samples(run: Run, part: str) -> pd.DataFrame:
    return pd.concat(
        [pd.read_parquet(path) for path in FeatureStore(run).samples(part)], ignore_index=True
    )


def decoded(run: Run, part: str) -> pd.DataFrame:
    """Samples with raw values for indices: equally frequent values may change places."""
    frame = samples(run, part)
    table = CompiledTable.load(run.features / "workflows" / "events")
    for name in ("device", "slot", "hour", "weekday"):
        column = table[name]
        assert column.values is not None and column.index is not None
        names = dict(zip(column.index.tolist(), column.values.tolist(), strict=True))
        frame[name] = [names.get(index, -index) for index in frame[name]]
    return frame


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_partitions_do_not_matter(runs: dict[int, Run], part: str) -> None:
    one, several = decoded(runs[1], part), decoded(runs[5], part)
    assert len(FeatureStore(runs[5]).samples(part)) == 5
    pd.testing.assert_frame_equal(one, several, atol=1e-5)


@pytest.mark.parametrize("folder", ["users", "videos"])
def test_partitions_do_not_matter_for_tables(runs: dict[int, Run], folder: str) -> None:
    paths = sorted((runs[1].features / folder).glob("*.npy"))
    assert len(paths) >= 7
    for path in paths:
        if path.stem in ("user_index", "video_index"):
            continue  # equally frequent ids may change places
        other = runs[5].features / folder / path.name
        np.testing.assert_allclose(_ids(path), _ids(other), rtol=1e-5, atol=1e-5)


def _ids(path: Path) -> Any:
    array = np.load(path, allow_pickle=False)
    return np.unique(array, return_inverse=True)[1] if array.dtype.kind == "S" else array


def test_many_row_groups_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that NVTabular reads in several partitions gives the same samples."""
    import nvtabular as nvt
    import pyarrow.parquet as pq

    run = write_run(tmp_path / "run", CONTRACT, TABLES)

    def in_pieces(data: Any, columns: list[str]) -> Any:
        if not isinstance(data, list):
            return nvt.Dataset(data[columns])
        for path in data:
            pq.write_table(pq.read_table(path), path, row_group_size=50)
        return nvt.Dataset([str(path) for path in data], engine="parquet", part_size=1000)

    monkeypatch.setattr(workflows, "_dataset", in_pieces)
    build_features(run, CONFIG, CONTRACT)
    monkeypatch.undo()
    expected = write_run(tmp_path / "whole", CONTRACT, TABLES)
    build_features(expected, CONFIG, CONTRACT)
    pd.testing.assert_frame_equal(decoded(run, "train"), decoded(expected, "train"), atol=1e-5)
    np.testing.assert_array_equal(
        FeatureStore(run).video("duration"), FeatureStore(expected).video("duration")
    )


def test_propensities_are_kept_beside_the_features(tmp_path: Path) -> None:
    contract = make_contract(propensity=True)
    run = write_run(tmp_path / "run", contract, TABLES, num_partitions=3)
    build_features(run, CONFIG, contract)
    spec = FeatureSpec.load(run.features / "spec.json")
    assert "propensity" not in [feature.name for feature in spec.features]
    keys = ["user_row", "video_row", "timestamp", "propensity"]
    kept = pd.concat([samples(run, part)[keys] for part in ("train", "valid", "test")])
    expected = TABLES.events[keys].sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(kept.sort_values(keys, ignore_index=True), expected)


def test_temporal_parts(runs: dict[int, Run]) -> None:
    spec = FeatureSpec.load(runs[1].features / "spec.json")
    train, valid, test = (samples(runs[1], part) for part in ("train", "valid", "test"))
    assert train["timestamp"].max() < spec.valid_from <= valid["timestamp"].min()
    assert valid["timestamp"].max() < spec.test_from <= test["timestamp"].min()
    assert spec.last_event == TABLES.events["timestamp"].max()
    assert len(test) == pytest.approx(90, abs=5)


def test_leave_last_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CONTRACT, TABLES, num_partitions=3)
    build_features(run, make_config(split={"protocol": "leave_last_out"}), CONTRACT)
    watched = TABLES.events[TABLES.events["watched"]]
    enough = watched.groupby("user_row").filter(lambda rows: len(rows) >= 3)
    for part, back in (("test", 1), ("valid", 2)):
        got = samples(run, part)
        from_last = enough.groupby("user_row").cumcount(ascending=False)
        expected = enough[from_last == back - 1]
        keys = ["user_row", "video_row", "timestamp"]
        assert got[keys].to_numpy().tolist() == expected[keys].to_numpy().tolist()
        assert (got["watched"] == 1).all()
    train = samples(run, "train")
    last = samples(run, "valid").set_index("user_row")["timestamp"]
    assert (train["timestamp"] <= train["user_row"].map(last).fillna(np.inf)).all()


def test_graded_histories(tmp_path: Path) -> None:
    """Where every event is a watch, history says which were positive; else it has no labels."""
    for graded in (True, False):
        contract = make_contract(graded=graded)
        run = write_run(tmp_path / str(graded), contract, TABLES)
        build_features(run, CONFIG, contract)
        label = FeatureStore(run).histories().label
        spec = FeatureSpec.load(run.features / "spec.json")
        assert any(f.name == "long_history_label" for f in spec.features) is graded
        if graded:
            assert label is not None and label.dtype == np.int8
            assert label.tolist() == TABLES.events["label"].tolist()
        else:
            assert label is None


def test_video_state_at_any_moment(runs: dict[int, Run]) -> None:
    """As the samples have it, and at the log's end as serving has it."""
    store = FeatureStore(runs[1])
    spec = FeatureSpec.load(store.root / "spec.json")
    state = VideoState(store, spec)
    test = samples(runs[1], "test")
    at = state.at(test["video_row"].to_numpy(), test["timestamp"].to_numpy())
    names = {f.name for f in spec.of_group("video_state", "cross")}
    assert set(at) == names and "video_lift_7d" in names
    for name in names:
        np.testing.assert_allclose(at[name], test[name], rtol=1e-6, atol=1e-6)
    rows = np.arange(spec.num_videos + 1)
    end = state.at(rows[None], np.array([[spec.last_event + 86_400]]))
    start = state.at(rows, np.int64(spec.test_from))
    for feature in spec.of_group("video_state"):
        np.testing.assert_array_equal(end[feature.name][0], store.video(feature.name))
    assert (start["video_event_count"] < end["video_event_count"][0]).any()


def test_encoded_tables(runs: dict[int, Run]) -> None:
    store = FeatureStore(runs[1])
    table = CompiledTable.load(runs[1].features / "workflows" / "videos")
    language = store.video("language")
    assert language.dtype == np.int32 and language.shape == (16,)
    assert language[0] == 1  # row 0 is the padding video: null
    raw = TABLES.videos["language"]
    assert (language[1:] == 1).tolist() == raw.isna().tolist()
    genres = store.video("genres")
    column = table["genres"]
    for row, items in enumerate(TABLES.videos["genres"], start=1):
        expected = column.encode(np.array(items, str), np.zeros(len(items), bool)).tolist()
        assert genres[row].tolist() == expected + [0] * (genres.shape[1] - len(items))
    assert store.video("duration")[0] == 0 and store.video("duration").dtype == np.float32
    assert np.isfinite(store.video("duration")).all()
    known = np.r_[np.nan, TABLES.videos["duration"]].astype(np.float32)
    np.testing.assert_array_equal(store.duration_s(), known)
    assert np.isnan(known[:3]).tolist() == [True, False, True]
    assert store.video("publish_time")[3] == 0  # unknown
    assert store.video("publish_time")[1] == TABLES.videos["publish_time"][0]
    assert store.user("user_id").tolist() == TABLES.users["user_id"].tolist()
    assert store.video("video_id").tolist() == [v.encode() for v in TABLES.videos["video_id"]]
    assert store.user("user_index")[0] == 2 and store.video("video_index")[0] == 0


def test_durations_that_are_not_known(tmp_path: Path) -> None:
    """No duration in the contract, or one of 0 seconds: NaN."""
    plain = make_contract(numbers=False)
    run = write_run(tmp_path / "none", plain, TABLES)
    build_features(run, CONFIG, plain)
    seconds = FeatureStore(run).duration_s()
    assert seconds.dtype == np.float32 and np.isnan(seconds).tolist() == [True] * 16
    videos = TABLES.videos.assign(duration=np.r_[0.0, np.nan, np.arange(13)].astype(np.float32))
    run = write_run(tmp_path / "some", CONTRACT, replace(TABLES, videos=videos))
    build_features(run, CONFIG, CONTRACT)
    seconds = FeatureStore(run).duration_s()
    assert np.isnan(seconds[:4]).all() and seconds[4:].tolist() == list(range(1, 13))


def test_amounts_have_mean_0_and_deviation_1_once_logged(runs: dict[int, Run]) -> None:
    seen = pd.concat([samples(runs[1], part) for part in ("train", "valid")])
    for name in ("user_event_count", "video_event_count", "video_age_days", "user_label_rate"):
        assert seen[name].mean() == pytest.approx(0, abs=1e-3), name
        assert seen[name].std() == pytest.approx(1, abs=1e-2), name
    logged = np.log1p(TABLES.videos["duration"].fillna(TABLES.videos["duration"].median()))
    duration = FeatureStore(runs[1]).video("duration")[1:]
    np.testing.assert_allclose(duration, (logged - logged.mean()) / logged.std(), atol=1e-4)


def test_state_at_export_counts_every_event(runs: dict[int, Run]) -> None:
    """What a request after the last event would know."""
    store = FeatureStore(runs[1])
    table = CompiledTable.load(runs[1].features / "workflows" / "events")
    for kind, size in (("user", 40), ("video", 15)):
        by = TABLES.events.groupby(f"{kind}_row")["label"]
        counts = by.count().reindex(range(size + 1), fill_value=0).to_numpy(np.float32)
        expected = table[f"{kind}_event_count"].normalise(counts)
        state = getattr(store, kind)
        np.testing.assert_array_equal(state(f"{kind}_event_count"), expected)
        assert state(f"{kind}_event_count")[1] > state(f"{kind}_event_count")[0]
        assert state(f"{kind}_label_rate").shape == (size + 1,)


def test_vocabularies_and_statistics_come_from_before_the_test_part(tmp_path: Path) -> None:
    """A device that only the test part has seen is out of vocabulary there."""
    tables = make_tables(num_users=20, num_videos=10, num_events=500)
    late = tables.events["timestamp"] > np.quantile(tables.events["timestamp"], 0.92)
    tables.events["device"] = np.where(late, "watch", tables.events["device"])
    run = write_run(tmp_path / "run", CONTRACT, tables)
    build_features(run, CONFIG, CONTRACT)
    column = CompiledTable.load(run.features / "workflows" / "events")["device"]
    assert column.values is not None and set(column.values) == {"tv", "phone", "web"}
    test = samples(run, "test")
    assert (test["device"] == 2).sum() == late.sum() > 30


def test_spec(runs: dict[int, Run]) -> None:
    spec = FeatureSpec.load(runs[1].features / "spec.json")
    store = FeatureStore(runs[1])
    names = [feature.name for feature in spec.features]
    assert len(names) == len(set(names))
    assert {f.name for f in spec.candidate()} == {"video_index", "language", "duration", "genres"}
    assert {f.name for f in spec.query()} == {
        "user_index", "country", "age", "likes", "history", "session_history", "long_history",
        "device", "slot",
    }  # fmt: skip
    for feature in spec.of_group("user", "video"):
        values = getattr(store, feature.group)(feature.name)
        assert feature.length == (values.shape[1] if feature.is_list else 1)
        if feature.kind != "continuous":
            assert values.min() >= 0 and values.max() < feature.cardinality
    train = samples(runs[1], "train")
    for feature in spec.of_group("context", "user_state", "video_state", "cross"):
        column = train[feature.name]
        if feature.kind == "continuous":
            assert column.dtype == np.float32 and np.isfinite(column).all()
            assert abs(column.mean()) < 1.5
        else:
            assert column.dtype == np.int32 and column.between(1, feature.cardinality - 1).all()


def test_artefacts_are_relative_and_unpickled(runs: dict[int, Run]) -> None:
    files = [path for path in runs[1].features.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.suffix in (".json", ".npy", ".parquet"), path
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        if path.suffix == ".json":
            text = path.read_text()
            json.loads(text)
            assert str(runs[1].root.parent) not in text


def test_without_validated_data(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingArtifactError, match="Next: marquee validate"):
        build_features(Run(tmp_path / "run"), CONFIG, CONTRACT)


def test_partitions_without_any_value(tmp_path: Path) -> None:
    """A context column that one partition never has, and one that a part of the log never has."""
    tables = make_tables(num_users=20, num_videos=10, num_events=500)
    early = tables.events["user_row"] <= 10
    late = tables.events["timestamp"] > np.quantile(tables.events["timestamp"], 0.85)
    tables.events.loc[early, ["device", "slot"]] = None
    tables.events.loc[late, "device"] = None
    run = write_run(tmp_path / "run", CONTRACT, tables, num_partitions=2)
    build_features(run, CONFIG, CONTRACT)
    frame = pd.concat([samples(run, part) for part in ("train", "valid", "test")])
    assert (frame["device"][frame["user_row"] <= 10] == 1).all()
    assert (frame["slot"][frame["user_row"] <= 10] == 1).all()
    assert (samples(run, "test")["device"] == 1).all()
    assert (frame["slot"] > 2).sum() > 200


@pytest.mark.parametrize("name", ["country", "age", "language", "duration"])
def test_a_column_without_any_value_is_one_line(tmp_path: Path, name: str) -> None:
    tables = make_tables(num_users=20, num_videos=10, num_events=500)
    frame = tables.users if name in tables.users else tables.videos
    frame[name] = pd.Series([None] * len(frame), dtype=frame[name].dtype)
    run = write_run(tmp_path / "run", CONTRACT, tables)
    with pytest.raises(DataError, match=rf'column {name} has no value\. .* role "ignore"'):
        build_features(run, CONFIG, CONTRACT)
    assert not run.features.exists()
