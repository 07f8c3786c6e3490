"""How long each stage took: in the answer where it is asked for, and in Triton's metrics."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from triton_repo.bench import sample_requests
from triton_repo.client import Client
from triton_repo.tensors import STAGES, TIMINGS
from workflow.run import Run


@pytest.fixture
def request_of(sim_run: Any, sim_server: dict[str, Any]) -> Any:
    with Client(sim_server["grpc_url"], timeout_s=30) as client:
        [row] = sample_requests(Run(sim_run.folder), client.inputs(), count=1)
        values = {name: values[0] for name, values in row.items()}
        fixed = {name: values.pop(name) for name in ("user_id", "time")}
        yield lambda **more: client.recommend(**fixed, context=values, **more)


def test_in_the_answer_on_request(request_of: Any) -> None:
    started = time.perf_counter()
    answer = request_of(timing=True)
    took_us = (time.perf_counter() - started) * 1e6
    assert set(answer.stage_us) == set(STAGES)
    assert all(one > 0 for one in answer.stage_us.values())
    assert sum(answer.stage_us.values()) < took_us
    plain = request_of()
    assert plain.stage_us is None
    assert plain.video_ids.tolist() == answer.video_ids.tolist()


def test_only_what_is_asked_for_is_sent(sim_server: dict[str, Any]) -> None:
    tensor = grpc.InferInput("user_id", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.array([[1]], np.int64))
    with grpc.InferenceServerClient(sim_server["grpc_url"]) as client:
        for names in (["video_id"], ["score", TIMINGS[1]]):
            wanted = [grpc.InferRequestedOutput(name) for name in names]
            answer = client.infer("marquee", [tensor], outputs=wanted)
            assert {one.name for one in answer.get_response().outputs} == set(names)


def test_in_the_metrics(request_of: Any, sim_server: dict[str, Any]) -> None:
    """Told once a second."""
    request_of()
    before = counters(sim_server["metrics_url"])
    for _ in range(5):
        request_of()
    deadline = time.monotonic() + 20
    while True:
        after = counters(sim_server["metrics_url"])
        new = {key: value - before.get(key, 0) for key, value in after.items()}
        if all(new.get(("rows", stage), 0) >= 5 for stage in STAGES):
            break
        assert time.monotonic() < deadline, new
        time.sleep(0.2)
    assert {stage for _, stage in after} == set(STAGES)
    for stage in STAGES:
        assert 0 < new["duration_us", stage] < 5e6


def counters(url: str) -> dict[tuple[str, str], float]:
    """Sums so far of the stages' metrics, by (kind, stage)."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    pattern = r'^marquee_stage_(\w+)\{ensemble="marquee",stage="(\w+)",version="\d+"\} (\S+)$'
    return {(kind, stage): float(value) for kind, stage, value in re.findall(pattern, text, re.M)}
