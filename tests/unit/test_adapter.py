"""The adapter between Triton and a stage: what it joins, refuses, splits and counts."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import triton_repo

ADAPTER = Path(triton_repo.__file__).parent / "templates" / "common" / "model.py"
STAGE = """
import numpy as np

class Stage:
    def __init__(self, folder):
        self.batches = []
        self.took_us = {}

    def check(self, inputs, sizes):
        ends = np.cumsum(sizes)
        return {i: "too large" for i, end in enumerate(ends) if inputs["x"][end - 1, 0] > 99}

    def run(self, inputs):
        self.batches.append(inputs["x"][:, 0].tolist())
        if 66 in self.batches[-1]:
            raise OSError("the store is gone")
        return {"y": inputs["x"] * 2}

    def finish(self, answer):
        return dict(answer)
"""


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values

    def shape(self) -> list[int]:
        return list(self.as_numpy().shape)


class Request:
    """One request for rows `values`; remembers what was sent to it early."""

    def __init__(self, *values: int, wanted: tuple[str, ...] = ("y",)) -> None:
        self.tensor = Tensor("x", np.array(values, np.int32)[:, None])
        self.wanted = wanted
        self.sent: list[tuple[Any, int]] = []

    def requested_output_names(self) -> tuple[str, ...]:
        return self.wanted

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=lambda response, flags: self.sent.append((response, flags)))


class Error:
    UNAVAILABLE, INVALID_ARG = "UNAVAILABLE", "INVALID_ARG"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    backend = SimpleNamespace(
        Tensor=Tensor,
        TritonError=Error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        InferenceResponse=lambda tensors, error=None: SimpleNamespace(
            tensors={t.name: t.values for t in tensors}, error=error
        ),
        get_input_tensor_by_name=lambda request, name: request.tensor if name == "x" else None,
        triton_string_to_numpy=lambda name: np.int32,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location("adapter_under_test", ADAPTER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(adapter: ModuleType, folder: Path, max_waiting: int | None, warm_up: int = 0) -> Any:
    version = folder / "stage" / "1"
    version.mkdir(parents=True)
    (version / "stage.py").write_text(STAGE)
    output = [{"name": name, "data_type": "TYPE_INT32"} for name in ("y", "stage_us")]
    config = {
        "input": [{"name": "x"}, {"name": "absent", "optional": True}],
        "output": output,
        "parameters": {} if max_waiting is None else {"max_waiting": {"string_value": max_waiting}},
        "model_warmup": [{"batch_size": warm_up}] if warm_up else [],
    }
    model = adapter.TritonPythonModel()
    model.initialize(
        {
            "model_repository": str(folder / "stage"),
            "model_version": "1",
            "model_config": json.dumps(config),
        }
    )
    return model


def rows(response: Any) -> Any:
    assert response.error is None
    return response.tensors["y"][:, 0].tolist()


def test_requests_are_one_batch_and_answered_apart(adapter: ModuleType, tmp_path: Path) -> None:
    model = load(adapter, tmp_path, None)
    answers = model.execute([Request(1, 2), Request(100), Request(3)])
    assert model.stage.batches == [[1, 2, 100, 3]]
    assert rows(answers[0]) == [2, 4] and rows(answers[2]) == [6]
    assert (answers[1].error.code, answers[1].error.message) == ("INVALID_ARG", "too large")
    assert all(list(answer.tensors) == ["y"] for answer in (answers[0], answers[2]))


def test_a_timing_is_made_for_who_asks(adapter: ModuleType, tmp_path: Path) -> None:
    model = load(adapter, tmp_path, None)
    plain, timed = model.execute([Request(1), Request(2, 3, wanted=("y", "stage_us"))])
    assert "stage_us" not in plain.tensors
    assert timed.tensors["stage_us"].shape == (2, 1)


def test_what_a_stage_needs_may_not_answer(adapter: ModuleType, tmp_path: Path) -> None:
    model = load(adapter, tmp_path, None)
    [answer] = model.execute([Request(66)])
    assert (answer.error.code, answer.error.message) == ("UNAVAILABLE", "the store is gone")


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ([4] * 4, 1),  # the oldest
        ([12, 4, 5], 1),  # never split
        ([4, 4, 5, 4], 2),
        ([4, 13], 1),  # one is always answered, however large
        ([13], 0),
        ([13, 13], 1),
    ],
)
def test_of_a_queue_that_stands_the_newest_are_answered(
    adapter: ModuleType, tmp_path: Path, sizes: list[int], refused: int
) -> None:
    model = load(adapter, tmp_path, max_waiting=12)
    model.crowded_at = time.monotonic()
    requests = [Request(*[i] * size) for i, size in enumerate(sizes)]
    answers = model.execute(requests)
    assert [answer is None for answer in answers] == [i < refused for i in range(len(sizes))]
    for request in requests[:refused]:
        [(response, flags)] = request.sent
        assert response.error.code == "UNAVAILABLE" and "is overloaded" in response.error.message
        assert flags == 1  # complete
    assert not any(request.sent for request in requests[refused:])
    kept = [i for i, size in enumerate(sizes) if i >= refused for _ in range(size)]
    assert model.stage.batches == [kept]
    for i, answer in enumerate(answers[refused:], refused):
        assert rows(answer) == [2 * i] * sizes[i]


def test_what_a_stall_left_is_worked_off(
    adapter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shrinks from batch to batch; when it does not, or comes again soon, it is cut."""
    model, now = load(adapter, tmp_path, max_waiting=10), 100.0
    monkeypatch.setattr(adapter.time, "monotonic", lambda: now)

    def answered(waiting: int) -> int:
        return sum(one is not None for one in model.execute([Request(1) for _ in range(waiting)]))

    assert [answered(waiting) for waiting in (3, 40, 36, 20, 9)] == [3, 40, 36, 20, 9]
    assert answered(40) == 10  # not calm for long enough
    now += adapter.CALM_S / 2
    assert [answered(waiting) for waiting in (9, 12)] == [9, 10]
    now += adapter.CALM_S + 0.1
    assert answered(50) == 40  # a burst has its limit too
    assert [answered(50) for _ in range(12)] == [36, 32, 28, 25, 22, 19, 17, 15, 13, 11, 10, 10]


def test_a_warm_up_is_never_refused(adapter: ModuleType, tmp_path: Path) -> None:
    """Triton sends it as requests of one row; one that is refused ends Triton 2.51."""
    model = load(adapter, tmp_path, max_waiting=1, warm_up=8)
    assert None not in model.execute([Request(1) for _ in range(8)])
    assert model.execute([Request(1) for _ in range(8)])[:4] == [None] * 4
