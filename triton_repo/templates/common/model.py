"""Triton adapter: joins the requests of a batch, runs the stage next to this file, splits again.

Each stage is plain numpy in stage.py and knows nothing of Triton.
"""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

TICKET = "ticket"  # from the first stage to the last: see admission.py


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
        self.warm_up = sum(int(sample["batch_size"]) for sample in config["model_warmup"])
        self.admission = None
        setting = config["parameters"].get("admission")
        if setting is not None:
            module = load(folder, "admission")
            self.admission = module.Admission(setting["string_value"], args["model_version"])

    def execute(self, requests):
        if self.admission is None:
            return self.answer(requests)
        self.admission.begin()
        given = []
        try:
            if TICKET in self.dtypes:
                return self.answer_admitted(requests)
            given = [self._ticket(request) for request in requests if TICKET in self.inputs]
            return self.answer(requests)
        finally:
            self.admission.end(given)

    def answer_admitted(self, requests):
        """The first stage: some requests are refused before anything is done for them."""
        sizes = list(map(self._rows, requests))
        if self.warm_up > 0:  # nobody takes these rows further
            self.warm_up -= sum(sizes)
            return self.answer(requests, [-1] * len(requests))
        tickets = self.admission.admit(sizes)
        pairs = [(r, t) for r, t in zip(requests, tickets, strict=True) if t is not None]
        answers = iter(self.answer(*zip(*pairs, strict=True)) if pairs else [])
        return [self._overloaded() if t is None else next(answers) for t in tickets]

    def _ticket(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, TICKET)
        return -1 if tensor is None else int(tensor.as_numpy()[0, 0])

    def _rows(self, request):
        return len(pb_utils.get_input_tensor_by_name(request, self.required).as_numpy())

    def _overloaded(self):
        message = f"the server is overloaded: {self.admission.limit} requests are under way"
        return failure(message, pb_utils.TritonError.UNAVAILABLE)

    def answer(self, requests, tickets=()):
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
        for answer, size, ticket in zip(answers, sizes, tickets, strict=False):
            answer[TICKET] = np.full((size, 1), ticket, np.int32)
        took_us = (time.perf_counter_ns() - started) // 1000
        return [
            self._respond(request, refused.get(i), answer, took_us)
            for i, (request, answer) in enumerate(zip(requests, answers, strict=True))
        ]

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
