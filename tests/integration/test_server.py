"""The real embedded tritonserver, with a small ensemble of throw-away Python models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triton_repo.bench import bench, sample_requests
from triton_repo.bundle import seal
from triton_repo.client import Client, Status
from triton_repo.server import TritonServer, find_server, free_ports, running_server
from workflow.errors import BundleError, ServingError
from workflow.run import Run, write_json

NUM_VIDEOS = 50
INPUTS = {
    "user_id": ("TYPE_INT64", False),
    "top_k": ("TYPE_INT32", True),
    "time": ("TYPE_INT64", True),
    "device": ("TYPE_STRING", True),
}
OUTPUTS = {"video_id": ("TYPE_STRING", -1), "score": ("TYPE_FP32", -1), "status": ("TYPE_INT32", 1)}
# Video n of user u is "v<u + n>"; its score is 1 / (1 + n), and half of that on a tv.
QUERY = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        user, top_k, device = (pb.get_input_tensor_by_name(request, name)
                               for name in ("user_id", "top_k", "device"))
        user = user.as_numpy()
        top_k = np.full_like(user, 20, dtype=np.int32) if top_k is None else top_k.as_numpy()
        if (top_k < 1).any():
            error = pb.TritonError("top_k must be at least 1", pb.TritonError.INVALID_ARG)
            return pb.InferenceResponse([], error)
        tv = device is not None and device.as_numpy()[0, 0] == b"tv"
        scale = np.full(user.shape, 0.5 if tv else 1.0, np.float32)
        return pb.InferenceResponse(
            [pb.Tensor("user", user), pb.Tensor("k", top_k), pb.Tensor("scale", scale)])
"""
PAGE = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        user, k, scale = (pb.get_input_tensor_by_name(request, name).as_numpy()
                          for name in ("user", "k", "scale"))
        size = min(int(k[0, 0]), 50)
        rows = np.arange(size)
        ids = np.array([[f"v{user[0, 0] + n}".encode() for n in rows]], dtype=np.object_)
        scores = (scale[0, 0] / (1 + rows)).astype(np.float32)[None]
        status = np.array([[0 if user[0, 0] > 0 else 1]], dtype=np.int32)
        return pb.InferenceResponse([pb.Tensor("video_id", ids), pb.Tensor("score", scores),
                                     pb.Tensor("status", status)])
"""
STAGE = """backend: "python"
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { max_queue_delay_microseconds: 0 }
"""
MIDDLE = {"user": ("TYPE_INT64", 1), "k": ("TYPE_INT32", 1), "scale": ("TYPE_FP32", 1)}


def _tensor(name: str, dtype: str, size: int = 1, optional: bool = False) -> str:
    extra = " optional: true" if optional else ""
    return f'{{ name: "{name}" data_type: {dtype} dims: [ {size} ]{extra} }}'


def _config(name: str, inputs: list[str], outputs: list[str], rest: str) -> str:
    tensors = f"input [ {', '.join(inputs)} ]\noutput [ {', '.join(outputs)} ]\n"
    return f'name: "{name}"\nmax_batch_size: 8\n{tensors}{rest}'


def _step(model: str, inputs: list[str], outputs: list[str]) -> str:
    maps = [f'input_map {{ key: "{name}" value: "{name}" }}' for name in inputs]
    maps += [f'output_map {{ key: "{name}" value: "{name}" }}' for name in outputs]
    return f'{{ model_name: "{model}" model_version: 1 {" ".join(maps)} }}'


def write_repository(folder: Path) -> None:
    inputs = [_tensor(name, dtype, 1, optional) for name, (dtype, optional) in INPUTS.items()]
    middle = [_tensor(name, dtype, size) for name, (dtype, size) in MIDDLE.items()]
    outputs = [_tensor(name, dtype, size) for name, (dtype, size) in OUTPUTS.items()]
    steps = [_step("query", [*INPUTS], [*MIDDLE]), _step("page", [*MIDDLE], [*OUTPUTS])]
    ensemble = f'platform: "ensemble"\nensemble_scheduling {{ step [ {", ".join(steps)} ] }}\n'
    for name, config, code in (
        ("query", _config("query", inputs, middle, STAGE), QUERY),
        ("page", _config("page", middle, outputs, STAGE), PAGE),
        ("marquee", _config("marquee", inputs, outputs, ensemble), None),
    ):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
        if code is not None:
            (folder / name / "1" / "model.py").write_text(code)
    seal(folder, 1, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder with just what serving and the benchmark read."""
    run = Run(tmp_path_factory.mktemp("runs") / "dummy")
    write_repository(run.repository)
    (run.data / "events").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": np.arange(100, 200)}), run.data / "users.parquet")
    events = pa.table(
        {
            "user_row": np.arange(300, dtype=np.int32) % 101,  # 0 = unknown user
            "video_row": np.ones(300, np.int32),
            "timestamp": np.arange(300) + 1_700_000_000,
            "device": ["tv", "phone", None] * 100,
        }
    )
    for part in range(2):
        pq.write_table(events, run.data / "events" / f"part-{part:05d}.parquet")
    write_json(run.data / "report.json", {"num_videos": NUM_VIDEOS})
    write_json(run.index / "report.json", {"num_candidates": 50, "recall_vs_exact": 1.0})
    return run


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


def _all_gone(processes: list[psutil.Process], timeout_s: float = 30) -> bool:
    """Zombies count as gone: an init process may not reap them."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.1)
    return False


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


def test_a_temporary_server_leaves_nothing(run: Run) -> None:
    with running_server(run) as server:
        family = _family(server.pid)
        with Client(server.grpc_url) as client:
            assert client.recommend(1).status is Status.ok
        assert find_server(run) is None  # nobody else's
    assert _all_gone(family, timeout_s=1)
    assert not list(Path("/dev/shm").glob(f"marquee-{os.getpid()}-{server.grpc_url[-5:]}*"))


# --- marquee serve -----------------------------------------------------------------------------
SERVE = """
import sys
from triton_repo.server import free_ports, serve
from workflow.console import Output
from workflow.run import Run
serve(Run(sys.argv[1]), *free_ports(3), Output(as_json=True))
"""


def _start_serve(run: Run) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SERVE, str(run.root)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _until_found(run: Run, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        url = find_server(run)
        if url is not None:
            return url
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_a_signal(run: Run, number: signal.Signals) -> None:
    process = _start_serve(run)
    url = _until_found(run, process)
    family = _family(process.pid)
    with running_server(run) as found:
        assert found.grpc_url == url
        assert found.cpu_seconds() > 0
    with Client(url) as client:
        assert client.recommend(3, top_k=1).video_ids.tolist() == ["v3"]
    process.send_signal(number)
    printed, words = process.communicate(timeout=30)
    assert process.returncode == 0, words
    assert json.loads(printed)["grpc_url"] == url
    assert "NVML" not in words and "CUDA" not in words
    assert not run.endpoint_file.exists()
    assert _all_gone(family)


def test_kill_9_of_serve_ends_triton_too(run: Run) -> None:
    process = _start_serve(run)
    _until_found(run, process)
    family = _family(process.pid)
    process.kill()
    process.communicate()
    assert _all_gone(family)
    assert run.endpoint_file.exists()  # stale, and recognised as such
    assert find_server(run) is None
    run.endpoint_file.unlink()


def test_a_changed_file_is_not_served(run: Run) -> None:
    code = run.repository / "query" / "1" / "model.py"
    content = code.read_text()
    code.write_text(content + "# changed\n")
    try:
        words = _start_serve(run).communicate(timeout=60)[1]
        assert "query/1/model.py of bundle 1 was changed" in words
        with pytest.raises(BundleError, match="was changed"), running_server(run):
            pass
    finally:
        code.write_text(content)


def test_serve_reports_a_dead_server_and_ignores_an_old_export(run: Run) -> None:
    process = _start_serve(run)
    _until_found(run, process)
    os.utime(run.repository, ns=(1, 1))  # what a new export changes
    assert find_server(run) is None
    second = _start_serve(run)
    assert "is served already" in second.communicate(timeout=60)[1]
    triton = json.loads(run.endpoint_file.read_text())["pid"]
    family = _family(process.pid)
    os.kill(triton, signal.SIGKILL)
    words = process.communicate(timeout=30)[1]
    assert process.returncode != 0 and "the Triton server died" in words
    assert not run.endpoint_file.exists()
    assert _all_gone(family)


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
