"""Servers come and go: temporary ones, and `marquee serve` until a signal or a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.throw_away import dummy_run
from triton_repo.client import Client, Status
from triton_repo.server import find_server, running_server
from workflow.errors import BundleError
from workflow.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return dummy_run(tmp_path_factory.mktemp("runs") / "dummy")


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
