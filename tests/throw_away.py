"""Run folders for servers whose bundle is a small ensemble of throw-away Python models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triton_repo.bundle import seal
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


def dummy_run(folder: Path) -> Run:
    """A run folder with just what serving and the benchmark read."""
    run = Run(folder)
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
