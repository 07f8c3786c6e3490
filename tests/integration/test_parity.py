"""Served equals offline: NVTabular, TensorFlow and FAISS against the ensemble over gRPC.

500 requests (120 on the further runs): known users, unknown users, users without history, null
and unknown context, past and present times. The order of two videos may differ only where the
offline scores of exactly those two differ by less than 1e-6 and what float32 rounds at their size.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tritonclient import grpc

from tests.scores import SCORE_ROUNDING, assert_same_scores
from triton_repo.client import Client, Status
from triton_repo.local import LocalPipeline, as_tensors
from workflow.job import Job
from workflow.run import Run, read_json

COUNT = 500
FEWER = 120  # the offline pipeline takes its time
TOP_K = 20
SAME_SCORE = 1e-6


@dataclass
class Requests:
    """Raw values of the requests; None is null or left out."""

    users: list[Any]
    times: np.ndarray
    context: dict[str, list[Any]]

    def one(self, row: int) -> dict[str, Any]:
        context = {name: values[row] for name, values in self.context.items()}
        return {"user_id": self.users[row], "time": int(self.times[row]), "context": context}


@dataclass
class Case:
    """A run, the requests and the offline pipeline's answers with all candidates."""

    folder: Path
    requests: Requests
    ids: list[np.ndarray]
    scores: list[np.ndarray]

    def check(self, row: int, ids: Any, scores: Any) -> None:
        expected_ids, expected = self.ids[row], self.scores[row]
        page = min(TOP_K, len(expected))
        ids = [plain(one) for one in ids]
        assert len(ids) == len(scores) == page and len(set(ids)) == page
        assert_same_scores(scores, expected[:page])
        assert (np.diff(scores) <= 0).all()
        offline = {plain(one): score for one, score in zip(expected_ids, expected, strict=True)}
        for at, one in enumerate(ids):
            if one != plain(expected_ids[at]):
                same = SAME_SCORE + SCORE_ROUNDING * abs(expected[at])
                assert abs(offline[one] - expected[at]) < same, (row, at, one)


def plain(one: Any) -> Any:
    if isinstance(one, bytes):
        return one.decode()
    return int(one) if isinstance(one, np.integer) else one


def make_requests(folder: Path, count: int) -> Requests:
    """A mixture drawn from the run's own users, times and context values."""
    random = np.random.default_rng(11)
    users = pq.read_table(folder / "data" / "users.parquet").column("user_id").to_pylist()
    events = pq.read_table(folder / "data" / "events").to_pydict()
    strings = isinstance(users[0], str)
    unknown = ["", "nobody", "v" * 300, "vü-17\0"] if strings else [0, -1, 2**62, -(2**63)]
    chosen = [users[i] for i in random.integers(0, len(users), count)]
    for row in range(0, count, 10):
        chosen[row] = unknown[row // 10 % len(unknown)]
    first, last = min(events["timestamp"]), max(events["timestamp"])
    times = random.integers(first, last + 30 * 86_400, count)
    times[1::10] = last + 1
    times[2::10] = first - 86_400  # nobody has a history yet
    times[3::10] = [
        events["timestamp"][i] for i in random.integers(0, len(users), len(times[3::10]))
    ]
    contract = Job.load(Run(folder)).contract
    context = {}
    for column in contract.features("context"):
        values = sorted({one for one in events[column.name] if one is not None})
        values += [None, "näh" if column.dtype == "string" else -5]
        context[column.name] = [values[i] for i in random.integers(0, len(values), count)]
    return Requests(chosen, times, context)


def answer_offline(folder: Path, count: int) -> Case:
    from models.offline import OfflineRecommender

    requests = make_requests(folder, count)
    job = Job.load(Run(folder))
    offline = OfflineRecommender(job.run, job.config, job.contract)
    strings = isinstance(requests.users[0], str)
    raw = [one.encode() for one in requests.users] if strings else requests.users
    users = np.array(raw, object if strings else np.int64)
    context = {name: np.array(values, object) for name, values in requests.context.items()}
    answer = offline.recommend(users, requests.times, context, 2_000)
    return Case(folder, requests, answer.video_ids, answer.scores)


@pytest.fixture(scope="module")
def sim_case(sim_run: Any) -> Case:
    return answer_offline(sim_run.folder, COUNT)


@pytest.fixture(scope="module")
def clip_case(clip_run: Any) -> Case:
    return answer_offline(clip_run.folder, FEWER)


@pytest.fixture(scope="module")
def ml_case(ml_run: Any) -> Case:
    return answer_offline(ml_run.folder, FEWER)


@pytest.fixture(scope="module")
def ivf_run(marquee: Any, sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated run copied elsewhere, with an approximate index."""
    folder = tmp_path_factory.mktemp("runs") / "ivf"
    shutil.copytree(sim_run.folder, folder)
    words = ("--set", "index.kind=ivf", "--set", "index.target_recall=0.8")
    [index] = marquee.json("index", "--run", folder, *words)["stages"]
    assert index["summary"]["kind"] == "ivf" and index["summary"]["recall_vs_exact"] >= 0.8
    assert index["summary"]["effort"] >= 1 and not index["skipped"]
    [export] = marquee.json("export", "--run", folder)["stages"]
    assert not export["skipped"]
    return folder


def check_over_grpc(case: Case, url: str) -> None:
    """Each request alone, from four callers at once: Triton batches them as it likes."""
    with Client(url, timeout_s=30) as client:
        client.inputs()

        def ask(row: int) -> Any:
            return client.recommend(**case.requests.one(row), top_k=TOP_K)

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(len(case.ids))))
    for row, answer in enumerate(answers):
        case.check(row, answer.video_ids, answer.scores)
    check_status(case, [answer.status for answer in answers])


def check_status(case: Case, statuses: list[Status]) -> None:
    """As the raw data says: who is known, and who had watched anything before the request."""
    data = case.folder / "data"
    users = pq.read_table(data / "users.parquet").column("user_id").to_pylist()
    watches = pq.read_table(data / "events").to_pandas().query("watched")
    first = watches.groupby("user_row")["timestamp"].min()
    row_of = {user: row for row, user in enumerate(users, start=1)}
    for row, status in enumerate(statuses):
        user = row_of.get(case.requests.users[row], 0)
        began = user in first.index and first[user] < case.requests.times[row]
        known = Status.ok if began else Status.empty_history
        assert status is (known if user else Status.unknown_user), (row, user)
    assert {Status.ok, Status.empty_history, Status.unknown_user} <= set(statuses)


# --- one by one ----------------------------------------------------------------------------------
def test_simulated_run(sim_case: Case, sim_server: dict[str, Any]) -> None:
    check_over_grpc(sim_case, sim_server["grpc_url"])


def test_string_ids_and_two_context_columns(clip_case: Case, clip_server: dict[str, Any]) -> None:
    check_over_grpc(clip_case, clip_server["grpc_url"])


def test_movielens(ml_case: Case, serve: Any) -> None:
    with serve(ml_case.folder) as endpoint:
        check_over_grpc(ml_case, endpoint["grpc_url"])


def test_ivf_index(ivf_run: Path, serve: Any) -> None:
    case = answer_offline(ivf_run, FEWER)
    with serve(ivf_run) as endpoint:
        check_over_grpc(case, endpoint["grpc_url"])
    [file] = (ivf_run / "model_repository" / "retrieval").glob("*/stage.json")
    assert read_json(file)["kind"] == "ivf"


# --- in process ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sim_case", "clip_case", "ml_case"])
def test_in_process(name: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(name)
    pipeline = LocalPipeline(Run(case.folder))
    for row in range(len(case.ids)):
        wanted = case.requests.one(row)
        context = {n: as_raw(v) for n, v in wanted["context"].items() if v is not None}
        tensors = as_tensors(
            as_raw(wanted["user_id"]), top_k=TOP_K, time=wanted["time"], context=context
        )
        answer = pipeline.infer(tensors)
        case.check(row, answer["video_id"][0], answer["score"][0])


def as_raw(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


# --- batches -------------------------------------------------------------------------------------
def batches(case: Case) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """(rows, input tensors): client-side batches of 1 to 32 requests."""
    requests, start = case.requests, 0
    for size in [32, 1, 2, 7, 31, *[32] * 20]:
        rows = np.arange(start, min(start + size, len(case.ids)))
        if len(rows) == 0:
            return
        start += size
        strings = isinstance(requests.users[0], str)
        users = [as_raw(requests.users[row]) for row in rows]
        columns = {
            "user_id": np.array(users, object if strings else np.int64),
            "time": requests.times[rows].astype(np.int64),
            "top_k": np.full(len(rows), TOP_K, np.int32),
        }
        for name, values in requests.context.items():
            is_text = any(isinstance(one, str) for one in values)
            null = b"" if is_text else -5  # a number cannot be null in a batch
            mine = [null if values[row] is None else as_raw(values[row]) for row in rows]
            columns[name] = np.array(mine, object if is_text else np.int64)
        yield rows, [tensor(name, values[:, None]) for name, values in columns.items()]


def tensor(name: str, values: np.ndarray) -> Any:
    kinds = {"O": "BYTES", "i": {4: "INT32", 8: "INT64"}}
    datatype = kinds[values.dtype.kind]
    if isinstance(datatype, dict):
        datatype = datatype[values.dtype.itemsize]
    result = grpc.InferInput(name, list(values.shape), datatype)
    result.set_data_from_numpy(values)
    return result


def test_client_side_batches(sim_case: Case, sim_server: dict[str, Any]) -> None:
    seen = 0
    with grpc.InferenceServerClient(sim_server["grpc_url"]) as client:
        for rows, tensors in batches(sim_case):
            answer = client.infer("marquee", tensors)
            ids, scores = answer.as_numpy("video_id"), answer.as_numpy("score")
            for at, row in enumerate(rows):
                sim_case.check(row, ids[at], scores[at])
            seen += len(rows)
    assert seen == COUNT


def test_batches_with_two_contexts(clip_case: Case, clip_server: dict[str, Any]) -> None:
    """A null number is sent as one that nobody has seen: both have a defined answer."""
    null = [row for row, value in enumerate(clip_case.requests.context["slot"]) if value is None]
    with grpc.InferenceServerClient(clip_server["grpc_url"]) as client:
        for rows, tensors in batches(clip_case):
            answer = client.infer("marquee", tensors)
            ids, scores = answer.as_numpy("video_id"), answer.as_numpy("score")
            for at, row in enumerate(rows):
                if row not in null:
                    clip_case.check(row, ids[at], scores[at])
