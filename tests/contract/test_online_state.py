"""Features of a user with online events equal those of the same user with the events baked in.

The baked run is made by the features stage from a log that holds the further events. Both runs
are served by the exported query tower; its graph here is a plain copy of the features.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workflow.environment  # noqa: F401

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto

from tests.fixtures import Tables, make_config, make_contract, make_tables, random_events, write_run
from triton_repo.export import _Exporter
from triton_repo.graph import Graph, save_graph, tensor_info
from triton_repo.local import _module
from workflow.features.build import Builder, build_features
from workflow.run import Run, write_json

CONFIG = make_config(features={"history_length": 6, "session_length": 3, "long_history_length": 12})
KEEP = 12
NEWCOMER, IDLE = 999_999, 3  # not in the data; a row whose events are all further ones
UNKNOWN_USER, EMPTY_HISTORY, STATE_UNAVAILABLE = 1, 2, 4


@dataclass
class Case:
    """Served query towers: `baked` knows the further events, `plain` may be told them online."""

    folder: Path
    tables: Tables
    further: pd.DataFrame
    baked: Path
    plain: Path
    graded: bool

    def stage(self, where: Path, state: Path | None = None) -> Any:
        return _module("query_tower", where / "stage.py").Stage(where, str(state) if state else "")

    def send(self, state: Path, events: pd.DataFrame) -> Any:
        """Tell events, one request each in the log's order, to the exported model `events`."""
        folder = self.plain.parent.parent / "events" / self.plain.name
        stage = _module("events", folder / "stage.py").Stage(folder, str(state))
        for one in events.to_dict("records"):
            inputs = {
                "user_id": np.array([[self.user(one["user_row"])]]),
                "video_id": np.array([[self.video(one["video_row"])]], object),
                "time": np.array([[one["timestamp"]]]),
                "label": np.array([[int(one["label"])]], np.int32),
            }
            assert stage.check(inputs, [1]) == {}
            stage.run(inputs)
        return stage

    def user(self, row: int) -> int:
        return int(self.tables.users["user_id"][row - 1]) if row else NEWCOMER

    def video(self, row: int) -> bytes:
        return str(self.tables.videos["video_id"][row - 1]).encode()


@pytest.fixture(scope="module", params=[False, True], ids=["positives", "graded"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("online")
    contract = make_contract(graded=request.param)
    tables = make_tables(num_users=25, num_videos=15, num_events=700, seed=8)
    idle = tables.events["user_row"] == IDLE
    tables.events = tables.events[~idle].reset_index(drop=True)
    further = further_events(tables, request.param)
    plain = write_run(folder / "plain", contract, tables)
    build_features(plain, CONFIG, contract)
    baked = Run(folder / "baked")
    shutil.copytree(plain.features, baked.features)
    events = pd.concat([tables.events, further]).sort_values(
        ["user_row", "timestamp"], kind="stable", ignore_index=True
    )
    longer = write_run(folder / "longer", contract, Tables(tables.users, tables.videos, events))
    files = sorted((longer.data / "events").glob("*.parquet"))
    Builder(baked.features, CONFIG, contract, longer.data, files).scan()
    exported = [export(run, contract) for run in (baked, plain)]
    return Case(folder, tables, further, *exported, request.param)


def further_events(tables: Tables, graded: bool) -> pd.DataFrame:
    """At most ten a user: at the seconds of known events, between them, and after all."""
    rng = np.random.default_rng(4)
    events = random_events(rng, 25, 15, 160)
    if not graded:
        events = events.assign(watched=True, label=np.float32(1))
    events.loc[events.index % 3 == 0, "timestamp"] += 10 * 86_400
    events = events.groupby("user_row").head(10)
    pairs = ["user_row", "video_row", "timestamp"]
    known = events.merge(
        tables.events[pairs].drop_duplicates(), on=pairs, how="left", indicator=True
    )
    events = events[(known["_merge"] == "left_only").to_numpy()].drop_duplicates(pairs)
    return events.sort_values(["user_row", "timestamp"], kind="stable", ignore_index=True)


def export(run: Run, contract: Any) -> Path:
    """The query tower's and the events model's folders, without trained models."""
    write_json(run.index / "report.json", {"num_candidates": 10})
    exporter = _Exporter(run, CONFIG, contract, run.repository, version=1)
    target = exporter._stage("query_tower")
    exporter.query_tables(target)
    exporter.events_model()
    width = exporter.slots[-1].at + exporter.slots[-1].length
    graph = Graph()
    graph.named("query_vector", "Cast", "query_index", to=TensorProto.FLOAT)
    inputs = [
        tensor_info("query_index", TensorProto.INT32, ["n", width]),
        tensor_info("query_value", TensorProto.FLOAT, ["n", len(exporter.query_values)]),
    ]
    outputs = [tensor_info("query_vector", TensorProto.FLOAT, ["n", width])]
    save_graph(graph.model(inputs, outputs, "copy"), target / "tower.onnx")
    return target


def requests(case: Case) -> dict[str, Any]:
    """Every user, and one that is not known, at seconds of events and around them."""
    moments = np.unique(np.r_[case.further["timestamp"], case.tables.events["timestamp"][:40]])
    moments = np.r_[moments, moments + 1, moments.max() + 900]
    users = [case.user(row) for row in range(26)]
    pairs = [(user, moment) for user in users for moment in moments]
    user, moment = np.array(pairs, np.int64).T
    return {"user_id": user[:, None], "time": moment[:, None]}


def watched(stage: Any, answer: dict[str, Any]) -> list[set[int]]:
    """What retrieval leaves out, by request."""
    histories = stage.histories
    first = histories.watched_start[answer["user_row"][:, 0]]
    return [
        set(histories.watched_row[a:b].tolist()) | set(online[online > 0].tolist())
        for a, b, online in zip(
            first, answer["watched_until"][:, 0], answer["online_row"], strict=True
        )
    ]


def test_online_equals_baked(case: Case, tmp_path: Path) -> None:
    asked = requests(case)
    baked, plain = case.stage(case.baked), case.stage(case.plain)
    state = tmp_path / "events.sqlite"
    # Events of the log that are sent once more do not count twice.
    again = case.tables.events[case.tables.events["watched"] | case.graded].iloc[::40]
    case.send(state, pd.concat([case.further, again[again["timestamp"] > 0]]))
    online = case.stage(case.plain, state)
    expected, got, before = (stage.run(asked) for stage in (baked, online, plain))
    for name in ("query_index", "query_vector", "query_value", "query_status", "user_row"):
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert watched(online, got) == watched(baked, expected)
    assert (got["query_index"] != before["query_index"]).any(axis=1).sum() > 500
    assert not before["online_row"].any() and not expected["online_row"].any()
    statuses = set(got["query_status"].ravel().tolist())
    assert statuses == {0, UNKNOWN_USER, EMPTY_HISTORY}


def test_a_request_for_now_sees_events_of_this_second(case: Case, tmp_path: Path) -> None:
    state = tmp_path / "events.sqlite"
    now = int(np.iinfo(np.int32).max)  # later than any clock here
    user = case.user(5)
    folder = case.plain.parent.parent / "events" / case.plain.name
    events = _module("events", folder / "stage.py").Stage(folder, str(state))
    inputs = {"user_id": np.array([[user]]), "video_id": np.array([[case.video(4)]], object)}
    assert events.check(inputs, [1]) == {}
    events.run(inputs)  # at the clock's time
    stage = case.stage(case.plain, state)
    asked = {"user_id": np.array([[user]] * 3), "time": np.array([[-1], [now], [0]])}
    assert stage.run(asked)["online_row"][:, 0].tolist() == [4, 4, 0]
    assert stage.run({"user_id": np.array([[user]])})["online_row"][0, 0] == 4


def test_more_events_than_are_kept(case: Case, tmp_path: Path) -> None:
    """The latest ones fill every history; that is all that a request after them needs."""
    state = tmp_path / "events.sqlite"
    late = int(max(case.tables.events["timestamp"].max(), case.further["timestamp"].max())) + 60
    rows = [1 + n % 15 for n in range(KEEP + 5)]
    case.send(
        state,
        pd.DataFrame(
            {"user_row": 2, "video_row": rows, "label": 1.0, "timestamp": late + np.arange(17)}
        ),
    )
    stage = case.stage(case.plain, state)
    answer = stage.run({"user_id": np.array([[case.user(2)]]), "time": np.array([[late + 60]])})
    index = stage.histories.video_index[rows].tolist()
    for part in stage.layout:
        if part["name"] in ("history", "long_history", "session_history"):
            got = answer["query_index"][0, part["at"] : part["at"] + part["length"]]
            assert got.tolist() == index[-part["length"] :], part["name"]
    assert answer["online_row"][0].tolist() == rows[-KEEP:]


def test_a_user_whom_the_bundle_does_not_know(case: Case, tmp_path: Path) -> None:
    """Served from the events; videos that the bundle does not have do not count."""
    state = tmp_path / "events.sqlite"
    asked = {"user_id": np.array([[NEWCOMER]] * 2), "time": np.array([[1_000], [1_001]])}
    events = pd.DataFrame({"user_row": [0], "video_row": [3], "label": 1.0, "timestamp": [1_000]})
    sender = case.send(state, events[:0])
    inputs = {"user_id": np.array([[NEWCOMER]]), "video_id": np.array([[b"not here"]], object)}
    sender.run(inputs | {"time": np.array([[999]]), "is_refused": np.zeros(1, bool)})
    stage = case.stage(case.plain, state)
    assert stage.run(asked)["query_status"].tolist() == [[UNKNOWN_USER]] * 2
    case.send(state, events)
    answer = stage.run(asked)
    assert answer["query_status"].tolist() == [[UNKNOWN_USER], [0]]
    assert answer["user_row"].tolist() == [[0], [0]]
    [history] = [part for part in stage.layout if part["name"] == "history"]
    got = answer["query_index"][:, history["at"] : history["at"] + history["length"]]
    assert got.tolist() == [[0] * 6, [0] * 5 + [int(stage.histories.video_index[3])]]


def test_a_store_that_does_not_answer(case: Case, tmp_path: Path) -> None:
    """Features of the last known events, and a status that says so."""
    state = tmp_path / "state" / "events.sqlite"
    case.send(state, case.further)
    stage = case.stage(case.plain, state)
    late = int(case.further["timestamp"].max()) + 1
    users = np.array([[case.user(row)] for row in (1, 2, IDLE, 0)])
    asked = {"user_id": users, "time": np.full((4, 1), late)}
    before = stage.run({name: values[:2] for name, values in asked.items()})
    assert before["query_status"].tolist() == [[0], [0]] and before["online_row"].any(axis=1).all()
    stage.profiles.store.store.database.close()
    shutil.rmtree(state.parent)
    state.parent.write_text("no folder: it cannot be opened again")
    after = stage.run(asked)
    assert after["query_status"].tolist() == [[STATE_UNAVAILABLE]] * 4
    np.testing.assert_array_equal(after["query_index"][:2], before["query_index"])
    np.testing.assert_array_equal(after["online_row"][:2], before["online_row"])
    assert not after["online_row"][2:].any()  # never asked for before
    state.parent.unlink()  # or it would be tried again until the tests end


def test_a_damaged_record_is_said_to_be_unavailable(case: Case, tmp_path: Path) -> None:
    state = tmp_path / "events.sqlite"
    sender = case.send(state, case.further[case.further["user_row"].isin([1, 2])])
    sender.store.store.database.execute(
        "UPDATE history SET record = ? WHERE user = ?", (b"[[1,", b"%d" % case.user(1))
    )
    late = int(case.further["timestamp"].max()) + 1
    users = np.array([[case.user(1)], [case.user(2)]])
    answer = case.stage(case.plain, state).run({"user_id": users, "time": np.full((2, 1), late)})
    assert answer["query_status"].tolist() == [[STATE_UNAVAILABLE], [0]]
    assert answer["online_row"].any(axis=1).tolist() == [False, True]
