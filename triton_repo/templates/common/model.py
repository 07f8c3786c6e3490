"""Triton adapter: joins the requests of a batch, runs the stage next to this file, splits again.

Each stage is plain numpy in stage.py and knows nothing of Triton.
"""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton's Python backend loads."""

    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.required = next(t["name"] for t in config["input"] if not t.get("optional"))
        self.dtypes = {
            tensor["name"]: pb_utils.triton_string_to_numpy(tensor["data_type"])
            for tensor in config["output"]
        }
        # The output that says how long the stage took for the whole batch, where it has one.
        self.timing = next((name for name in self.dtypes if name.endswith("_us")), None)
        self.stage = load(folder, "stage").Stage(folder)
        setting = config["parameters"].get("flow")
        self.flow = None
        if setting is not None:
            flow = load(folder, "flow")
            self.flow = flow.Flow(setting["string_value"], args["model_version"])

    def execute(self, requests):
        if self.flow is None:
            return self.answer(requests)
        rows = sum(map(self._rows, requests))
        self.flow.begin(rows)
        try:
            return self.answer(requests)
        finally:
            self.flow.end(rows)

    def answer(self, requests):
        """One response per request."""
        started = time.perf_counter_ns()
        batches = [self._read(request) for request in requests]
        sizes = [len(next(v for v in batch.values() if v is not None)) for batch in batches]
        joined = {
            name: None
            if batches[0][name] is None
            else np.concatenate([batch[name] for batch in batches])
            for name in self.inputs
        }
        refused = self.stage.check(joined, sizes)
        try:
            answers = split(self.stage.run(joined), sizes)
        except OSError as error:  # something outside this server does not answer
            return [failure(str(error), pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        took_us = (time.perf_counter_ns() - started) // 1000
        return [
            self._respond(request, refused.get(i), answer, took_us)
            for i, (request, answer) in enumerate(zip(requests, answers, strict=True))
        ]

    def _rows(self, request):
        return len(pb_utils.get_input_tensor_by_name(request, self.required).as_numpy())

    def _read(self, request):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        return {name: None if t is None else t.as_numpy() for name, t in tensors.items()}

    def _respond(self, request, refused, answer, took_us):
        """The outputs that were asked for; a timing nobody asks for costs nothing."""
        if refused is not None:
            return failure(refused, pb_utils.TritonError.INVALID_ARG)
        answer = self.stage.finish(answer)
        wanted = request.requested_output_names()
        if self.timing in wanted:
            answer[self.timing] = np.full((len(next(iter(answer.values()))), 1), took_us)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.ascontiguousarray(answer[name], dtype=dtype))
                for name, dtype in self.dtypes.items()
                if name in wanted
            ]
        )


def failure(message, code):
    """A response without an answer."""
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, code))


def split(outputs, sizes):
    """One dictionary of arrays per request."""
    ends = np.cumsum(sizes)
    return [
        {name: values[end - size : end] for name, values in outputs.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def load(folder, name):
    """The module `name`.py in `folder`, whatever that folder is called."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
