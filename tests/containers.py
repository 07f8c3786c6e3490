"""A repository of the container target without its server: configs parsed, the dataflow run here.

ONNX Runtime in this process stands in for Triton's backend of that name.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

DTYPES = {
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": object,
}


def parsed(repository: Path, model: str) -> Any:
    """A model's config.pbtxt as Triton's own protobuf; unknown fields are errors."""
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


class Dataflow:
    """Runs an ensemble step by step, as its config says, checking every tensor on its way."""

    def __init__(self, repository: Path) -> None:
        self.configs = {
            path.parent.name: parsed(repository, path.parent.name)
            for path in sorted(repository.glob("*/config.pbtxt"))
        }
        self.models = {
            name: _load(repository / name, config)
            for name, config in self.configs.items()
            if not config.ensemble_scheduling.step
        }

    def infer(self, ensemble: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """The ensemble's outputs for one request of any number of users."""
        config, known = self.configs[ensemble], dict(inputs)
        for step in config.ensemble_scheduling.step:
            [version] = self.configs[step.model_name].version_policy.specific.versions
            assert step.model_version == version
            given = {mine: known.get(theirs) for mine, theirs in step.input_map.items()}
            made = self.ask(step.model_name, given)
            for mine, theirs in step.output_map.items():
                assert theirs not in known, f"{theirs} is made twice"
                known[theirs] = made[mine]
        return {one.name: known[one.name] for one in config.output}

    def ask(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """One model's answer, or ValueError with why it refuses."""
        config = self.configs[name]
        assert given.keys() == {one.name for one in config.input}, name
        for one in config.input:
            assert one.optional or given[one.name] is not None, f"{name} lacks {one.name}"
            _check(one, given[one.name])
        made = self.models[name]({key: _copy(value) for key, value in given.items()})
        for one in config.output:
            _check(one, made[one.name])
        return made


def _dtype(declared: Any) -> Any:
    return DTYPES[model_config_pb2.DataType.Name(declared.data_type)]


def _check(declared: Any, values: Any) -> None:
    if values is None:
        return
    assert values.dtype == _dtype(declared), (declared.name, values.dtype)
    dims = values.shape[1:]
    assert len(dims) == len(declared.dims), (declared.name, dims)
    assert all(size in (-1, is_) for size, is_ in zip(declared.dims, dims, strict=True)), dims


def _copy(values: Any) -> Any:
    return None if values is None else values.copy()


def _load(folder: Path, config: Any) -> Any:
    [version] = config.version_policy.specific.versions
    version_folder = folder / str(version)
    if config.platform == "onnxruntime_onnx":
        session = onnxruntime.InferenceSession(version_folder / config.default_model_filename)
        names = [one.name for one in session.get_outputs()]
        return lambda given: dict(zip(names, session.run(names, given), strict=True))
    assert config.backend == "python", config.name
    spec = importlib.util.spec_from_file_location(
        f"{config.name}_of_container", version_folder / "stage.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stage = module.Stage(version_folder)
    dtypes = {one.name: _dtype(one) for one in config.output}

    def answer(given: dict[str, Any]) -> dict[str, Any]:
        users = len(next(value for value in given.values() if value is not None))
        refused = stage.check(given, [users])
        if refused:
            raise ValueError(refused[0])
        made = stage.finish(stage.run(given))
        return {name: np.asarray(made[name]).astype(kind) for name, kind in dtypes.items()}

    return answer


# --- for the embedded Triton ---------------------------------------------------------------------
STAND_IN = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        graph = folder / config["parameters"]["graph"]["string_value"]
        self.session = onnxruntime.InferenceSession(graph)
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self.inputs
        }
        made = self.session.run(self.outputs, given)
        pairs = zip(self.outputs, made, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, one) for name, one in pairs])
"""


def with_stand_ins(repository: Path, target: Path) -> Path:
    """A copy whose graphs are run by a Python model: the embedded Triton has no such backend."""
    shutil.copytree(repository, target)
    for path in target.glob("*/config.pbtxt"):
        config = parsed(target, path.parent.name)
        if config.platform != "onnxruntime_onnx":
            continue
        config.parameters["graph"].string_value = config.default_model_filename
        config.ClearField("platform")
        config.ClearField("default_model_filename")
        config.ClearField("optimization")
        config.backend = "python"
        config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
        path.write_text(text_format.MessageToString(config))
        [version] = config.version_policy.specific.versions
        (path.parent / str(version) / "model.py").write_text(STAND_IN)
    return target
