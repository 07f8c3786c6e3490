"""Server CPU of a page of 40 rows x 20 from 500 candidates, one request at a time, run by run.

    python tests/bench/page_cost.py runs/sim [ANOTHER_RUN ...]

Serves each run (runs/sim, and say a copy of it that older code exported) and an echo, all at once,
and asks them in turn, pages as a tv and lists: the CPU of the server and its Python processes a
request, as the median over the rounds, and in the quietest round, which is the one in which the
echo took least. What else the machine does makes any figure larger; in turns it makes all of them
larger. Exit status 1 where the median of the first run's page is above the bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.load import METHOD
from tests.bench.serving_100k import echo_repository
from triton_repo.client import MODEL, Client
from triton_repo.page_answer import OUTPUTS
from triton_repo.page_tensors import PAGE, PAGE_TIMINGS
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer, tree_cpu_seconds
from triton_repo.server import running_server
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.job import Job
from workflow.run import Run

BAR_MS = 4.0
ASKED = {PAGE: OUTPUTS, MODEL: ("video_id", "score", "status"), "echo": ()}


def payloads(run: Run, model: str, count: int) -> list[bytes]:
    """Serialised requests of `count` users a minute after the log's end, as a tv."""
    store = FeatureStore(run)
    moment = FeatureSpec.load(store.root / "spec.json").last_event + 60
    users = np.random.default_rng(0).permutation(np.asarray(store.user("user_id")))[:count]
    device = np.array([[b"tv"]], object)
    return [
        _request(model, {"user_id": np.array([[user]]), "time": np.array([[moment]]),
                         "device": device}, ASKED[model])
        for user in users.astype(np.int64).tolist()
    ]  # fmt: skip


def _request(model: str, values: dict[str, Any], outputs: tuple[str, ...]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, value in values.items():
        tensor = triton.InferInput(name, [1, 1], "BYTES" if value.dtype == object else "INT64")
        tensor.set_data_from_numpy(value)
        request.inputs.extend([tensor._get_tensor()])
        request.raw_input_contents.extend([tensor._get_content()])
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


class Asked:
    """One model of one server, asked one request at a time."""

    def __init__(self, url: str, pid: int, payloads: list[bytes]) -> None:
        channel = grpc.insecure_channel(url, [("grpc.use_local_subchannel_pool", 1)])
        self.call, self.pid, self.payloads = channel.unary_unary(METHOD), pid, payloads

    def cpu_ms(self) -> float:
        """CPU of the server a request, over all payloads."""
        before = tree_cpu_seconds(self.pid)
        for payload in self.payloads:
            self.call(payload, timeout=30)
        return 1_000 * (tree_cpu_seconds(self.pid) - before) / len(self.payloads)


def stages_us(url: str, users: list[int], moment: int) -> dict[str, int]:
    """Median microseconds of wall time by stage of a page."""
    with Client(url) as client:
        took = [client.page(user, time=moment, context={"device": "tv"}, timing=True).stage_us
                for user in users]  # fmt: skip
    names = [name.removesuffix("_us") for name in PAGE_TIMINGS]
    return {name: round(statistics.median((one or {})[name] for one in took)) for name in names}


def measure(runs: list[Run], rounds: int, requests: int) -> dict[str, list[float]]:
    """CPU ms a request, [median, in the quietest round], by "RUN MODEL" and of the echo."""
    top_k = Job.load(runs[0]).config.serving.default_top_k
    ports = free_ports(3)
    with ExitStack() as open_, tempfile.TemporaryDirectory() as folder:
        asked = {}
        for run in runs:
            server = open_.enter_context(running_server(run))
            for model in (PAGE, MODEL):
                made = payloads(run, model, requests)
                asked[f"{run} {model}"] = Asked(server.grpc_url, server.pid, made)
            store = FeatureStore(run)
            moment = FeatureSpec.load(store.root / "spec.json").last_event + 60
            users = np.asarray(store.user("user_id"))[:200].tolist()
            print(json.dumps({str(run): stages_us(server.grpc_url, users, moment)}), flush=True)
        repository = echo_repository(runs[0].repository, Path(folder) / "repository", top_k)
        log = Path(folder) / "echo.log"
        echo = open_.enter_context(
            TritonServer(repository, log_file=log, grpc_port=ports[0], http_port=ports[1],
                         metrics_port=ports[2])
        )  # fmt: skip
        made = payloads(runs[0], "echo", requests)
        asked["echo"] = Asked(echo.grpc_url, echo.pid, made)
        took: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, one in asked.items():
                took[name].append(one.cpu_ms())
    quietest = took["echo"].index(min(took["echo"]))
    return {
        name: [round(statistics.median(values), 3), round(values[quietest], 3)]
        for name, values in took.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300, help="a round")
    options = parser.parse_args()
    runs = [Run(path) for path in options.runs]
    found = measure(runs, options.rounds, options.requests)
    print(json.dumps({"cpu_ms_median_and_in_the_quietest_round": found}, indent=2))
    sys.exit(0 if found[f"{runs[0]} {PAGE}"][0] <= BAR_MS else 1)


if __name__ == "__main__":
    main()
