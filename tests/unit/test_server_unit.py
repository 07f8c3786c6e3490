"""Serving without a server: ports, the log reader, conversions, files of the embedded Triton."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from triton_repo import embedded, perf_analyzer, process
from triton_repo.bench import bench
from triton_repo.client import Client, Input, Status
from triton_repo.ports import check_ports, free_ports
from triton_repo.process import TritonServer, http_ready, tree_cpu_seconds
from triton_repo.request_array import request_array
from triton_repo.server import find_server
from triton_repo.triton_log import log_error
from workflow.errors import ConfigError, MissingArtifactError, ServingError
from workflow.run import Run, write_json

NOISE = """\
W1122 18:45:23.945272 9 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1122 18:45:23.945404 9 server.cc:241] "CudaDriverHelper has not been initialized."
E1122 18:53:08.301407 9 ensemble_scheduler.cc:1468] "unable to create stream for marquee: \
CUDA driver version is insufficient for CUDA runtime version"
Error: Failed to initialize NVML
"""


# --- ports -------------------------------------------------------------------------------------
def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_taken_port_names_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServingError) as caught:
            check_ports({"gRPC": port}, "127.0.0.1")
    assert f"gRPC port {port}" in str(caught.value)
    assert f"process {os.getpid()}" in str(caught.value)
    assert "--grpc-port" in str(caught.value)


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ({"gRPC": 9001, "HTTP": 9001}, "both"),
        ({"gRPC": 0}, "out of range"),
        ({"metrics": 65_536}, "out of range"),
    ],
)
def test_impossible_ports(ports: dict[str, int], words: str) -> None:
    with pytest.raises(ServingError, match=words):
        check_ports(ports, "127.0.0.1")


# --- the log -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "E1122 18:53:58.67 9 model_lifecycle.cc:642] \"failed to load 'query' version 1: "
            'Internal: ValueError: bad hash\\n\\nAt:\\n  /some/model.py(1): <module>\\n"\n'
            'E1122 18:53:58.68 9 server.cc:1] "later"\n'
            "error: creating server: Internal - failed to load all models\n",
            "failed to load 'query' version 1: Internal: ValueError: bad hash",
        ),
        (
            'E1122 18:54:09.37 9 manager.cc:1460] "Poll failed for model directory"\n'
            'E1122 18:54:09.38 9 manager.cc:703] "Invalid argument: depends"\n',
            "Poll failed for model directory",
        ),
        ("error: creating server: Internal - x\n", "error: creating server: Internal - x"),
    ],
)
def test_log_error_is_the_cause_without_gpu_noise(
    tmp_path: Path, lines: str, expected: str
) -> None:
    log = tmp_path / "triton.log"
    log.write_text(NOISE + lines)
    assert log_error(log) == expected


def test_log_error_without_a_log(tmp_path: Path) -> None:
    assert log_error(tmp_path / "none.log") is None


# --- the repository ----------------------------------------------------------------------------
def test_start_refuses_what_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="not a model repository"):
        TritonServer(tmp_path, log_file=tmp_path / "log").start()


def test_start_refuses_a_python_model_without_code(tmp_path: Path) -> None:
    """Triton itself would wait for it without an end."""
    (tmp_path / "ranker" / "1").mkdir(parents=True)
    (tmp_path / "ranker" / "config.pbtxt").write_text('name: "ranker"\nbackend: "python"\n')
    with pytest.raises(ServingError, match=r"model ranker .* has no code"):
        TritonServer(tmp_path, log_file=tmp_path / "log").start()


@pytest.mark.parametrize("name", ["my run", "it's", "a$b", "x;y"])
def test_start_refuses_a_path_that_the_stub_cannot_take(tmp_path: Path, name: str) -> None:
    """Triton starts its Python stages through a shell without quoting."""
    (tmp_path / name / "ranker" / "1").mkdir(parents=True)
    (tmp_path / name / "ranker" / "config.pbtxt").write_text('name: "ranker"\n')
    with pytest.raises(ServingError, match="a path without spaces"):
        TritonServer(tmp_path / name, log_file=tmp_path / "log").start()


FAKE_TRITON = """#!{python}
import http.server, pathlib, sys
count = pathlib.Path({count!r})
starts = int(count.read_text()) + 1
count.write_text(str(starts))
if starts < {good}:
    sys.exit("terminate called after throwing an instance of {reason!r}")
port = next(int(one.split("=")[1]) for one in sys.argv if one.startswith("--http-port="))
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


@pytest.mark.parametrize(
    ("reason", "good", "starts"),
    [
        ("boost::interprocess::lock_exception", 3, 3),
        ("boost::interprocess::lock_exception", 9, None),  # gives up after three
        ("std::bad_alloc", 2, None),  # no chance: the same would happen again
    ],
)
def test_a_start_that_fails_by_chance_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str, good: int, starts: int | None
) -> None:
    count, binary = tmp_path / "count", tmp_path / "triton"
    count.write_text("0")
    fake = FAKE_TRITON.format(python=sys.executable, count=str(count), good=good, reason=reason)
    binary.write_text(fake)
    binary.chmod(0o755)
    triton = SimpleNamespace(binary=binary, backends=tmp_path, environment=dict(os.environ))
    monkeypatch.setattr(process, "embedded_triton", lambda: triton)
    monkeypatch.setattr(process, "_check_repository", lambda repository: None)
    ports = dict(zip(("grpc_port", "http_port", "metrics_port"), free_ports(3), strict=True))
    server = TritonServer(tmp_path, log_file=tmp_path / "log", **ports)
    if starts is None:
        with pytest.raises(ServingError, match="stopped while starting"):
            server.start()
        assert count.read_text() == ("3" if "lock" in reason else "1")
    else:
        with server:
            assert server.is_ready() and count.read_text() == str(starts)


def test_find_server_ignores_a_stale_or_broken_endpoint_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.repository.mkdir()
    assert find_server(run) is None
    run.endpoint_file.write_text("{ not json")
    assert find_server(run) is None
    urls = dict.fromkeys(("grpc_url", "http_url", "metrics_url"), "127.0.0.1:1")
    write_json(run.endpoint_file, {"pid": os.getpid(), "started_at": 1.0, **urls})
    assert find_server(run) is None  # this process id, but not that process


def test_bench_names_the_missing_export(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no run folder"):
        bench(Run(tmp_path / "none"))
    with pytest.raises(MissingArtifactError, match="marquee export"):
        bench(Run(tmp_path))


@pytest.mark.parametrize("levels", [(), (0,), (5_000,)])
def test_bench_refuses_impossible_levels(tmp_path: Path, levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="concurrency"):
        bench(Run(tmp_path), concurrencies=levels)


# --- processes ---------------------------------------------------------------------------------
def test_cpu_seconds_of_this_process() -> None:
    assert tree_cpu_seconds(os.getpid()) > 0


def test_cpu_seconds_of_no_process() -> None:
    with pytest.raises(ServingError, match="gone"):
        tree_cpu_seconds(2**22 + 1)


def test_nothing_listens() -> None:
    assert not http_ready(f"http://127.0.0.1:{free_ports(1)[0]}")


# --- the client --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [("12", "INT64", 12), (-3, "INT32", -3), (7, "BYTES", b"7"), ("é", "BYTES", "é".encode())],
)
def test_values_become_the_dtype_that_the_server_wants(
    value: Any, datatype: str, expected: Any
) -> None:
    array = request_array("user_id", value, datatype)
    assert array.shape == (1, 1)
    assert array[0, 0] == expected


@pytest.mark.parametrize(
    ("value", "datatype"), [("u12", "INT64"), ("", "INT64"), (2**31, "INT32"), (2**63, "INT64")]
)
def test_values_that_are_no_such_number(value: Any, datatype: str) -> None:
    with pytest.raises(ServingError, match="not a number that the server takes"):
        request_array("user_id", value, datatype)


def test_nobody_answers() -> None:
    url = f"127.0.0.1:{free_ports(1)[0]}"
    with Client(url, timeout_s=2) as client, pytest.raises(ServingError) as caught:
        client.recommend(1)
    assert url in str(caught.value) and "marquee serve" in str(caught.value)


def test_unknown_context_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {name: Input("INT64", False) for name in ("user_id", "top_k", "time", "device")}
    monkeypatch.setattr(Client, "inputs", lambda self: inputs)
    with Client("127.0.0.1:1") as client:
        assert client.context_names() == ["device"]
        with pytest.raises(ServingError, match=r"no context column tv.*one of device"):
            client.recommend(1, context={"tv": "x"})


def test_status_names() -> None:
    assert [status.name for status in Status] == [
        "ok", "unknown_user", "empty_history", "fewer_than_top_k", "state_unavailable",
    ]  # fmt: skip


# --- the embedded Triton and perf_analyzer -----------------------------------------------------
def test_embedded_triton_is_unpacked_once() -> None:
    first = embedded.embedded_triton()
    stamp = first.binary.stat().st_mtime_ns
    assert embedded.embedded_triton().binary.stat().st_mtime_ns == stamp
    stub = first.backends / "python" / embedded.STUB
    assert os.access(first.binary, os.X_OK) and os.access(stub, os.X_OK)
    assert first.environment["PATH"].split(os.pathsep)[0].endswith("bin")


def test_a_read_only_environment_uses_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert perf_analyzer.locate()[1] == f"LD_LIBRARY_PATH={tmp_path}/marquee/perf_analyzer"
    assert embedded.embedded_triton().binary.is_relative_to(tmp_path)


def test_missing_libpython_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_library_folders", list)
    with pytest.raises(ServingError, match="apt-get install libpython3"):
        embedded.embedded_triton()


def test_perf_analyzer_runs_here() -> None:
    assert perf_analyzer.locate()[-1].endswith("perf_analyzer")


def test_perf_analyzer_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_analyzer, "_LIBRARIES", {"libb64.so.0d": "libnothing-*"})
    with pytest.raises(ServingError, match="make install"):
        perf_analyzer.locate()


def test_report_in_microseconds_becomes_milliseconds(tmp_path: Path) -> None:
    report = tmp_path / "report.csv"
    report.write_text(
        "Concurrency,Inferences/Second,p50 latency,p90 latency,p95 latency,p99 latency\n"
        "16,2982.82,5017,7203,8123,11486\n"
    )
    measured = perf_analyzer._read_report(report)
    assert measured == perf_analyzer.Measurement(5.017, 8.123, 11.486, 2982.8)
    assert np.isfinite(measured.p99_ms)


def test_report_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no latencies"):
        perf_analyzer._read_report(tmp_path / "none.csv")


def test_orphaned_stubs_of_a_dead_starter_are_killed() -> None:
    """Only stubs whose starter is gone: ours and other programs stay."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    words = {
        "orphan": ["/x/triton_python_backend_stub", f"marquee-{gone.pid}-1-x"],
        "ours": ["/x/triton_python_backend_stub", f"marquee-{os.getpid()}-1-x"],
        "other": ["/x/other", f"marquee-{gone.pid}-1-x"],
    }
    script = "import time; time.sleep(60)"
    started = {
        name: subprocess.Popen([first, "-c", script, rest], executable=sys.executable)
        for name, (first, rest) in words.items()
    }
    try:
        process._remove_orphans()
        assert started["orphan"].wait(timeout=10) == -signal.SIGKILL
        assert started["ours"].poll() is None and started["other"].poll() is None
    finally:
        for child in started.values():
            child.kill()
            child.wait()
