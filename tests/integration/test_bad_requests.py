"""Requests as no client of ours would send them: each has a defined answer or a Triton error.

After each the same good request must be answered with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from workflow.run import read_json

MAX_BATCH = 32
NUM_CANDIDATES = 100
OK, UNKNOWN_USER, EMPTY_HISTORY, FEWER_THAN_TOP_K = range(4)
DATATYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "object": "BYTES"}


def tensor(name: str, values: Any, datatype: str | None = None) -> Any:
    values = np.asarray(values)
    result = grpc.InferInput(name, list(values.shape), datatype or DATATYPES[str(values.dtype)])
    result.set_data_from_numpy(values)
    return result


def text(*values: bytes) -> np.ndarray:
    return np.array(values, object)[:, None]


class Server:
    """The ensemble of one served run, asked without any client-side checks."""

    def __init__(self, url: str, user: Any, time: int) -> None:
        self.client = grpc.InferenceServerClient(url)
        self.user, self.time = user, time
        self.good = self.bytes()

    def infer(self, *tensors: Any, model: str = "marquee") -> dict[str, np.ndarray]:
        answer = self.client.infer(model, list(tensors), client_timeout=30)
        return {one.name: answer.as_numpy(one.name) for one in answer.get_response().outputs}

    def user_id(self, *users: Any) -> Any:
        users = users or (self.user,)
        return tensor("user_id", text(*users) if isinstance(users[0], bytes) else column(*users))

    def ask(self, *users: Any, **columns: Any) -> dict[str, np.ndarray]:
        named = {"time": column(*[self.time] * max(len(users), 1))} | columns
        return self.infer(self.user_id(*users), *(tensor(n, v) for n, v in named.items()))

    def bytes(self) -> list[Any]:
        answer = self.ask(top_k=column(7, dtype=np.int32))
        return [(n, v.shape, v.tobytes() if v.dtype != object else v.tolist())
                for n, v in sorted(answer.items()) if not n.endswith("_us")]  # fmt: skip

    def refuses(self, *tensors: Any, match: str, model: str = "marquee") -> None:
        with pytest.raises(InferenceServerException, match=match) as caught:
            self.infer(*tensors, model=model)
        assert "Traceback" not in caught.value.message()
        assert "INVALID_ARGUMENT" in caught.value.status() or "INTERNAL" in caught.value.status()


def column(*values: int, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype)[:, None]


@pytest.fixture(scope="module")
def sim_asked(sim_run: Any, sim_server: dict[str, Any]) -> Server:
    answer = sim_run.result["recommendations"]
    return Server(sim_server["grpc_url"], answer["user_id"], answer["at"])


@pytest.fixture(scope="module")
def clip_asked(clip_run: Any, clip_server: dict[str, Any]) -> Server:
    answer = clip_run.result["recommendations"]
    return Server(clip_server["grpc_url"], answer["user_id"].encode(), answer["at"])


@pytest.fixture
def sim(sim_asked: Server) -> Iterator[Server]:
    yield sim_asked
    assert sim_asked.client.is_server_ready() and sim_asked.client.is_model_ready("marquee")
    assert sim_asked.bytes() == sim_asked.good


@pytest.fixture
def clip(clip_asked: Server) -> Iterator[Server]:
    yield clip_asked
    assert clip_asked.client.is_server_ready() and clip_asked.client.is_model_ready("marquee")
    assert clip_asked.bytes() == clip_asked.good


def is_page(answer: dict[str, np.ndarray], count: int, status: int, rows: int = 1) -> None:
    assert answer["video_id"].shape == answer["score"].shape == (rows, count)
    assert answer["status"].tolist() == [[status]] * rows
    assert np.isfinite(answer["score"]).all() and (np.diff(answer["score"], axis=1) <= 0).all()
    for ids in answer["video_id"]:
        assert len(set(ids.tolist())) == count
        assert not set(ids.tolist()) & {-1, b"", 0}


# --- users, context, time ------------------------------------------------------------------------
@pytest.mark.parametrize("user", [0, -1, 1, 2**63 - 1, -(2**63)])
def test_unknown_user(sim: Server, user: int) -> None:
    is_page(sim.ask(user), 20, UNKNOWN_USER)


@pytest.mark.parametrize(
    "user",
    [b"", b"nobody", b"\0", b"\xff\xfe", b"v\xc3\xbc-17\0", b"v\xc3\xbc-17\0\0x", b"u" * 2_000_000],
    ids=["empty", "unknown", "NUL", "not UTF-8", "known and NUL", "NUL inside", "2 MB"],
)
def test_unknown_string_user(clip: Server, user: bytes) -> None:
    is_page(clip.ask(user), 20, UNKNOWN_USER)
    assert clip.ask(b"v\xc3\xbc-17")["status"].tolist() == [[OK]]


def test_empty_history(sim: Server) -> None:
    is_page(sim.ask(time=column(0)), 20, EMPTY_HISTORY)
    is_page(sim.ask(time=column(2**62)), 20, OK)
    assert sim.infer(sim.user_id())["status"].tolist() == [[OK]]  # no time: now
    assert sim.ask(time=column(-5))["status"].tolist() == [[OK]]  # before 1970: now


def test_null_context_is_absent_context(sim: Server) -> None:
    absent, empty = sim.ask(), sim.ask(device=text(b""))
    np.testing.assert_array_equal(absent["video_id"], empty["video_id"])
    np.testing.assert_array_equal(absent["score"], empty["score"])


@pytest.mark.parametrize(
    "device", [b"fridge", b"tv\0", b"\0", b"\xff", b"x" * 2_000_000], ids=range(5)
)
def test_unknown_context(sim: Server, device: bytes) -> None:
    is_page(sim.ask(device=text(device)), 20, OK)
    answers = [sim.ask(device=text(one))["score"] for one in (device, b"never seen")]
    np.testing.assert_array_equal(*answers)
    assert (sim.ask(device=text(b"tv"))["score"] != answers[0]).any()


# --- top_k ---------------------------------------------------------------------------------------
def test_top_k(sim: Server) -> None:
    for wanted in (1, 20, NUM_CANDIDATES):
        is_page(sim.ask(top_k=column(wanted, dtype=np.int32)), wanted, OK)
    for wanted in (101, 500, 10_000, 2**31 - 1):
        answer = sim.ask(top_k=column(wanted, dtype=np.int32))
        is_page(answer, NUM_CANDIDATES, FEWER_THAN_TOP_K)
    for wanted in (0, -1, -(2**31)):
        tensors = sim.user_id(), tensor("top_k", column(wanted, dtype=np.int32))
        sim.refuses(*tensors, match=f"top_k must be at least 1, received {wanted}")


def test_a_batch_with_different_top_k(sim: Server) -> None:
    answer = sim.ask(sim.user, 0, sim.user, top_k=column(3, 8, 5, dtype=np.int32))
    assert answer["video_id"].shape == (3, 8)
    assert (answer["video_id"] > 0).sum(axis=1).tolist() == [3, 8, 5]
    missing = answer["video_id"] == -1
    assert missing.sum() == 8 and np.isneginf(answer["score"][missing]).all()
    np.testing.assert_array_equal(answer["video_id"][0, :3], answer["video_id"][2, :3])
    tensors = sim.user_id(sim.user, sim.user), tensor("top_k", column(3, 0, dtype=np.int32))
    sim.refuses(*tensors, match="top_k must be at least 1, received 0")


def test_a_string_batch_with_different_top_k(clip: Server) -> None:
    answer = clip.ask(clip.user, b"nobody", top_k=column(2, 4, dtype=np.int32))
    assert [[one != b"" for one in row] for row in answer["video_id"]] == [
        [True, True, False, False], [True] * 4
    ]  # fmt: skip
    assert answer["status"].tolist() == [[OK], [UNKNOWN_USER]]


# --- dtypes, shapes, names -----------------------------------------------------------------------
def test_wrong_dtype(sim: Server) -> None:
    wrong = [
        tensor("user_id", text(b"50001658")),
        tensor("user_id", column(1, dtype=np.int32)),
        tensor("user_id", column(1, dtype=np.float32)),
    ]
    for one in wrong:
        sim.refuses(one, match="data-?type")
    sim.refuses(sim.user_id(), tensor("top_k", column(5)), match="data-?type")
    sim.refuses(sim.user_id(), tensor("time", text(b"now")), match="data-?type")
    sim.refuses(sim.user_id(), tensor("device", column(3)), match="data-?type")


@pytest.mark.parametrize("shape", [(1,), (1, 2), (1, 1, 1), (0, 1), (1, 0)])
def test_wrong_shape(sim: Server, shape: tuple[int, ...]) -> None:
    one = tensor("user_id", np.full(shape, sim.user, np.int64))
    with pytest.raises(InferenceServerException):
        sim.infer(one)


def test_wrong_names(sim: Server) -> None:
    sim.refuses(tensor("time", column(sim.time)), match="at least one output is not set")
    sim.refuses(sim.user_id(), tensor("country", text(b"NL")), match="country")
    sim.refuses(tensor("user", column(1)), match="user")
    sim.refuses(sim.user_id(), tensor("time", column(1, 2)), match="batch|shape")
    for model in ("marquee2", "query"):
        with pytest.raises(InferenceServerException, match="unknown model"):
            sim.infer(sim.user_id(), model=model)


def test_batch_sizes(sim: Server) -> None:
    assert sim.ask(*[sim.user] * MAX_BATCH)["video_id"].shape == (MAX_BATCH, 20)
    too_many = [sim.user] * (MAX_BATCH + 1)
    sim.refuses(sim.user_id(*too_many), match="batch-?size")


# --- a stage alone -------------------------------------------------------------------------------
def test_query_tower_alone(sim: Server) -> None:
    answer = sim.infer(sim.user_id(0), model="query_tower")
    assert answer["query_status"].tolist() == [[UNKNOWN_USER]]
    vector = answer["query_vector"]
    assert np.isfinite(vector).all() and vector[0, -1] == 1  # the last part of a video is its bias
    assert np.abs(vector[0, :-1]).max() > 0


def test_retrieval_alone(sim: Server) -> None:
    query = sim.infer(sim.user_id(), model="query_tower")
    names = ("query_vector", "user_row", "watched_until", "online_row")
    good = sim.infer(*(tensor(name, query[name]) for name in names), model="retrieval")
    assert (good["candidate_row"] > 0).all()
    vector = tensor("query_vector", query["query_vector"])
    for row, until in ((-1, 0), (2**31 - 1, 0), (1, -1), (1, 2**62), (5, 0), (0, 1)):
        tensors = (
            tensor("user_row", column(row, dtype=np.int32)),
            tensor("watched_until", column(until)),
        )
        online = tensor("online_row", query["online_row"])
        sim.refuses(vector, *tensors, online, match="outside the bundle", model="retrieval")
    rest = [tensor(name, query[name]) for name in names[1:3]]
    for row in (-1, 501, 2**31 - 1):
        online = tensor("online_row", np.full_like(query["online_row"], row))
        sim.refuses(vector, *rest, online, match="outside the bundle", model="retrieval")
    nothing = np.full_like(query["query_vector"], np.nan)
    rest = (tensor(name, query[name]) for name in names[1:])
    answer = sim.infer(tensor("query_vector", nothing), *rest, model="retrieval")
    assert answer["candidate_row"].shape == (1, NUM_CANDIDATES)


RANKER_INPUTS = ("query_index", "query_value", "request_time", "query_status")


def ranker_inputs(query: dict[str, np.ndarray], rows: np.ndarray) -> list[Any]:
    scores = np.linspace(1, 0, rows.size, dtype=np.float32).reshape(rows.shape)
    query = query | {"candidate_row": rows, "candidate_score": scores}
    return [tensor(n, query[n]) for n in (*RANKER_INPUTS, "candidate_row", "candidate_score")]


def test_ranker_alone(sim: Server) -> None:
    query = sim.infer(sim.user_id(), model="query_tower")
    rows = np.arange(1, NUM_CANDIDATES + 1, dtype=np.int32)[None]
    is_page(sim.infer(*ranker_inputs(query, rows), model="ranker"), 20, OK)
    for bad in (-1, 501, 2**31 - 1):
        wrong = rows.copy()
        wrong[0, 3] = bad
        sim.refuses(*ranker_inputs(query, wrong), match="outside the bundle", model="ranker")
    padded = np.zeros_like(rows)
    padded[0, :2] = (4, 9)
    answer = sim.infer(*ranker_inputs(query, padded), model="ranker")
    is_page(answer, 2, FEWER_THAN_TOP_K)
    empty = sim.infer(*ranker_inputs(query, np.zeros_like(rows)), model="ranker")
    is_page(empty, 0, FEWER_THAN_TOP_K)


@pytest.mark.parametrize("value", [10_000, 2**31 - 1, -(2**31)])
def test_ranker_with_feature_codes_that_do_not_exist(sim: Server, value: int) -> None:
    query = sim.infer(sim.user_id(), model="query_tower")
    query["query_index"] = np.full_like(query["query_index"], value)
    rows = np.arange(1, NUM_CANDIDATES + 1, dtype=np.int32)[None]
    sim.refuses(*ranker_inputs(query, rows), match="indices|out of", model="ranker")


# --- many at once --------------------------------------------------------------------------------
def test_good_and_bad_requests_at_once(sim: Server) -> None:
    """Triton joins them into batches: with and without optional inputs, refused or not."""
    good: list[Callable[[], Any]] = [
        sim.ask,
        lambda: sim.ask(device=text(b"tv")),
        lambda: sim.ask(0, top_k=column(5, dtype=np.int32)),
        lambda: sim.ask(sim.user, 0, device=text(b"phone", b"")),
    ]
    expected = [ask() for ask in good]

    def refused() -> None:
        top_k = tensor("top_k", column(0, dtype=np.int32))
        sim.refuses(sim.user_id(), tensor("time", column(sim.time)), top_k, match="at least 1")

    def one(number: int) -> None:
        kind = number % (len(good) + 1)
        if kind == len(good):
            refused()
            return
        answer = good[kind]()
        np.testing.assert_array_equal(answer["status"], expected[kind]["status"])
        np.testing.assert_allclose(answer["score"], expected[kind]["score"], rtol=0, atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(400)))


def test_the_bundle_was_not_touched(sim: Server, sim_run: Any, contents: Any) -> None:
    repository = sim_run.folder / "model_repository"
    expected = read_json(repository / "bundle.json")["sha256"]
    found = contents(repository)
    assert {name: found[name] for name in expected} == expected
    assert set(found) == {*expected, "bundle.json", "READY"}
    assert pq.read_table(sim_run.folder / "data" / "videos.parquet").num_rows == 500
