"""A server that is open to the network, asked by those who may and those who may not."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from tests.servers import serving
from triton_repo.access import Credentials, connect
from triton_repo.bench import bench
from triton_repo.client import Client
from triton_repo.server import running_server
from workflow.errors import ServingError
from workflow.run import Run

API_KEY = "an-api-key-of-this-test"
CONTROL_CALLS: dict[str, Callable[[Any], Any]] = {
    "list models": lambda c: c.get_model_repository_index(),
    "load": lambda c: c.load_model("ranker"),
    "unload": lambda c: c.unload_model("ranker"),
    "shared memory": lambda c: c.get_system_shared_memory_status(),
    "register": lambda c: c.register_system_shared_memory("x", "/marquee", 8),
    "CUDA memory": lambda c: c.get_cuda_shared_memory_status(),
    "trace": lambda c: c.update_trace_settings(settings={"trace_file": "/tmp/x"}),
    "log": lambda c: c.update_log_settings({"log_verbose_level": 1}),
}
API_CALLS: dict[str, Callable[[Any], Any]] = {
    "infer": lambda c: c.infer("marquee", [_user()]),
    "metadata": lambda c: c.get_server_metadata(),
    "model metadata": lambda c: c.get_model_metadata("marquee"),
    "config": lambda c: c.get_model_config("marquee"),
    "statistics": lambda c: c.get_inference_statistics("marquee"),
}
CONTROL_PATHS = ("repository/index", "systemsharedmemory/status", "trace/setting", "logging")


def _user() -> Any:
    tensor = grpc.InferInput("user_id", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.array([[1]], np.int64))
    return tensor


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    words += f" -subj /CN={name} -addext subjectAltName=DNS:{name} -keyout {key} -out {cert}"
    subprocess.run(words.split(), check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def secured(
    marquee: Any, sim_run: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """What `marquee serve --json` printed, and the words it said; on every address of this host."""
    folder = tmp_path_factory.mktemp("access")
    run = folder / "run"
    shutil.copytree(sim_run.folder, run, ignore=shutil.ignore_patterns("logs"))
    cert, key = _certificate(folder, "localhost")
    key_file = folder / "api-key"
    key_file.write_text(API_KEY + "\n")
    words = ("--run", run, "--host", "0.0.0.0", "--tls-cert", cert, "--tls-key", key)
    with serving(marquee, *words, "--api-key-file", key_file) as server:
        yield {**server.endpoint, "printed": server.line, "run": run, "folder": folder}
    assert server.ended is not None and "Warning" not in server.ended.err


@pytest.fixture
def ours(secured: dict[str, Any]) -> Credentials:
    """What the endpoint file gives our own tools."""
    with running_server(Run(secured["run"])) as server:
        assert server.grpc_url == secured["grpc_url"]
        return server.credentials


def _refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(InferenceServerException, match=match) as caught:
        call()
    assert "UNAVAILABLE" in caught.value.status()


def test_our_own_tools_get_through(
    marquee: Any, sim_run: Any, secured: dict[str, Any], ours: Credentials
) -> None:
    user = sim_run.result["recommendations"]["user_id"]
    answer = marquee.json("recommend", "--run", secured["run"], "--user", str(user))
    assert len(answer["items"]) == 20
    client = connect(secured["grpc_url"], ours)
    for call in API_CALLS.values():
        call(client)
    for name in ("list models", "shared memory", "CUDA memory"):
        CONTROL_CALLS[name](client)
    client.load_model("ranker")
    measured = bench(Run(secured["run"]), concurrencies=(1,), duration_s=1.5)
    assert measured["results"][0]["requests_per_s"] > 1


def test_the_key_alone_gives_answers_and_no_control(
    secured: dict[str, Any], ours: Credentials
) -> None:
    customer = replace(ours, control_key=None)
    with Client(secured["grpc_url"], credentials=customer) as client:
        assert len(client.recommend(1).video_ids) == 20
    connected = connect(secured["grpc_url"], customer)
    for call in CONTROL_CALLS.values():
        _refused(lambda call=call: call(connected), "protocol is restricted")
    wrong = connect(secured["grpc_url"], replace(ours, control_key="x" * 43))
    for call in CONTROL_CALLS.values():
        _refused(lambda call=call: call(wrong), "protocol is restricted")
    assert connected.is_model_ready("ranker")


@pytest.mark.parametrize("api_key", [None, "", API_KEY[:-1], API_KEY + "x", API_KEY.upper()])
def test_without_the_key_nothing_is_answered(
    secured: dict[str, Any], ours: Credentials, api_key: str | None
) -> None:
    stranger = replace(ours, control_key=None, api_key=api_key)
    client = connect(secured["grpc_url"], stranger)
    for call in API_CALLS.values():
        _refused(lambda call=call: call(client), "protocol is restricted")
    assert client.is_server_ready()  # health is for everybody: load balancers ask it
    with (
        Client(secured["grpc_url"], credentials=stranger) as polite,
        pytest.raises(ServingError, match="wants another key"),
    ):
        polite.recommend(1)


def test_without_tls_or_with_another_certificate_nothing_is_said(
    secured: dict[str, Any], ours: Credentials
) -> None:
    for stranger in (
        replace(ours, tls_ca=None, tls_name=None),
        replace(ours, tls_ca=str(_certificate(secured["folder"], "localhost2")[0])),
        replace(ours, tls_name="elsewhere.example"),
    ):
        client = connect(secured["grpc_url"], stranger)
        _refused(lambda c=client: c.is_server_live(client_timeout=3), "failed to connect|Socket")


def _http(
    url: str, key: str | None = None, header: str = "api-key", body: bytes | None = None
) -> int:
    request = urllib.request.Request(url, body, {} if key is None else {header: key})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return int(opener.open(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_http_has_no_tls_so_it_stays_on_this_machine(
    secured: dict[str, Any], ours: Credentials
) -> None:
    url = secured["http_url"]
    listening = {
        connection.laddr.port: connection.laddr.ip
        for connection in psutil.Process(secured["pid"]).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening[int(url.rpartition(":")[2])] == "127.0.0.1"
    assert listening[int(secured["grpc_url"].rpartition(":")[2])] in ("0.0.0.0", "::")
    assert _http(f"{url}/v2/health/ready") == 200
    assert _http(f"{url}/v2/models/marquee") == 403
    assert _http(f"{url}/v2/models/marquee", "wrong") == 403
    assert _http(f"{url}/v2/models/marquee", API_KEY) == 200
    for path in CONTROL_PATHS:
        assert _http(f"{url}/v2/{path}", API_KEY) == 403, path
    assert _http(f"{url}/v2/logging", ours.control_key, "control-key") == 200


def test_keys_are_for_the_owner_only(secured: dict[str, Any], ours: Credentials) -> None:
    file = Run(secured["run"]).endpoint_file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ours.control_key is not None and len(ours.control_key) >= 32
    command = " ".join(psutil.Process(secured["pid"]).cmdline())
    for text in (secured["printed"], command, repr(ours)):
        assert ours.control_key not in text and API_KEY not in text
    assert "restricted" in command


# --- a server that nobody configured -------------------------------------------------------------
def test_control_is_restricted_without_any_option(sim_server: dict[str, Any]) -> None:
    client = connect(sim_server["grpc_url"])
    for call in CONTROL_CALLS.values():
        _refused(lambda call=call: call(client), "protocol is restricted")
    for path in CONTROL_PATHS:
        assert _http(f"{sim_server['http_url']}/v2/{path}") == 403
    assert client.infer("marquee", [_user()]).as_numpy("score").size


def test_http_does_not_infer(sim_server: dict[str, Any]) -> None:
    """The second body would end Triton 2.51 if it read it."""
    client = connect(sim_server["grpc_url"])
    for shape in ([1, 1], [1000, 2**63 - 1, 2**31 - 1]):
        tensor = {"name": "user_id", "datatype": "INT64", "shape": shape, "data": [1]}
        body = json.dumps({"inputs": [tensor]}).encode()
        for way in ("infer", "generate", "generate_stream"):
            url = f"{sim_server['http_url']}/v2/models/marquee/{way}"
            assert _http(url, body=body) == 403
    assert client.is_server_ready()


def test_it_listens_on_loopback_only(sim_server: dict[str, Any]) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(sim_server["pid"]).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
