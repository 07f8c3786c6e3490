"""The real embedded tritonserver, with a small ensemble of throw-away Python models."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.throw_away import NUM_VIDEOS, dummy_run, write_repository
from triton_repo.bench import bench, sample_requests
from triton_repo.client import Client, Status
from triton_repo.server import TritonServer, free_ports
from workflow.errors import ServingError
from workflow.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return dummy_run(tmp_path_factory.mktemp("runs") / "dummy")


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[TritonServer]:
    grpc_port, http_port, metrics_port = free_ports(3)
    with TritonServer(
        run.repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log_file=run.logs / "fixture.log",
    ) as server:
        yield server


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


def _family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


# --- answers -----------------------------------------------------------------------------------
def test_values_arrive(client: Client) -> None:
    """Shapes prove nothing: with numpy 2 the Python backend sends right shapes and zero bytes."""
    video_ids, scores, status, version = client.recommend(7, top_k=3)[:4]
    assert video_ids.tolist() == ["v7", "v8", "v9"]
    np.testing.assert_allclose(scores, [1, 1 / 2, 1 / 3], rtol=1e-6)
    assert status is Status.ok
    assert version == 1


def test_optional_inputs(client: Client) -> None:
    assert len(client.recommend("7").video_ids) == 20
    assert client.recommend(7, context={"device": "tv"}).scores[0] == 0.5
    assert client.recommend(7, context={"device": None}, time=5).scores[0] == 1.0
    assert client.recommend(-1).status is Status.unknown_user
    inputs = client.inputs()
    assert [name for name, one in inputs.items() if not one.optional] == ["user_id"]


def test_bad_requests_are_refused_and_the_server_lives(client: Client) -> None:
    for top_k in (0, -5):
        with pytest.raises(ServingError, match=r"Found: top_k must be at least 1\.$"):
            client.recommend(7, top_k=top_k)
    with pytest.raises(ServingError, match="user_id 'u7' is not a number"):
        client.recommend("u7")
    with pytest.raises(ServingError, match="one of device"):
        client.recommend(7, context={"country": "NL"})
    assert len(client.recommend(7, top_k=10_000).video_ids) == NUM_VIDEOS


def test_many_callers_get_their_own_answers(client: Client) -> None:
    wrong: list[int] = []

    def ask(first: int) -> None:
        for user in range(first, first + 50):
            top_k = user % 5 + 1
            answer = client.recommend(user, top_k=top_k, time=user if user % 2 else None)
            if answer.video_ids.tolist() != [f"v{user + n}" for n in range(top_k)]:
                wrong.append(user)

    threads = [threading.Thread(target=ask, args=(1000 * n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the process -------------------------------------------------------------------------------
def test_cpu_time_counts_the_stubs(server: TritonServer, client: Client) -> None:
    before = server.cpu_seconds()
    for _ in range(200):
        client.recommend(7)
    assert server.cpu_seconds() > before
    assert len(_family(server.pid)) >= 3


def test_taken_port_is_named(run: Run, server: TritonServer, tmp_path: Path) -> None:
    port = server.ports["gRPC"]
    with pytest.raises(ServingError, match=f"gRPC port {port}.*process {server.pid}"):
        TritonServer(run.repository, grpc_port=port, log_file=tmp_path / "log").start()
    assert server.is_ready()


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    write_repository(tmp_path / "repository")
    model = tmp_path / "repository" / "query" / "1" / "model.py"
    model.write_text("import no_such_module\n")
    grpc_port, http_port, metrics_port = free_ports(3)
    server = TritonServer(
        tmp_path / "repository",
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log_file=tmp_path / "triton.log",
    )
    with pytest.raises(ServingError, match=r"'query'.*No module named 'no_such_module'"):
        server.start()
    assert not server.is_alive()


# --- the benchmark -----------------------------------------------------------------------------
def test_sampled_requests_are_real_events(run: Run, client: Client) -> None:
    rows = sample_requests(run, client.inputs(), count=100)
    assert len(rows) == 100
    assert rows == sample_requests(run, client.inputs(), count=100)
    for row in rows:
        event = row["time"][0] - 1_700_000_000
        assert row["user_id"] == [event % 101 + 99]
        assert row.get("device") == [["tv"], ["phone"], None][event % 3]


def test_bench_measures_the_real_thing(run: Run) -> None:
    result = bench(run, concurrencies=(1, 4), duration_s=1.5)
    assert [one["concurrency"] for one in result["results"]] == [1, 4]
    for one in result["results"]:
        assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
        assert one["requests_per_s"] > 10
        assert 0.05 < one["server_cpu_ms_per_request"] < 50
    assert result["num_videos"] == NUM_VIDEOS
    assert (result["num_candidates"], result["recall_vs_exact"]) == (50, 1.0)
    assert result["hardware"]["cores"] >= 1
    assert json.loads((run.benchmark / "bench.json").read_text()) == result
