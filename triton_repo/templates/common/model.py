"""Triton adapter: joins the requests of a batch, runs the stage next to this file, splits again.

Each stage is plain numpy in stage.py and knows nothing of Triton.

With the parameter `max_waiting` a batch is all that has come while the one before was answered.
A queue that a stall left behind, up to `BURST` times `max_waiting` rows, is worked off, in batches
each of which is smaller than the one before. One that does not shrink so, because more comes than
can be answered, is cut: the newest requests, up to `max_waiting` rows, are answered, the others are
refused before any work. The next burst is free only when the queue has been short for `CALM_S`.
(The oldest have waited longest, and their callers are the likeliest to have given up. To tell a
burst from a queue that stands is the idea of CoDel, Nichols & Jacobson, ACM Queue 2012. Triton's
own queue limits do not serve: in 2.51 a queue with a policy misses wake-ups, half a second each.)
"""

import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

BURST = 4
SHRINKS = 0.9
CALM_S = 1.0


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
        # The outputs that say how long a stage took for the whole batch.
        self.timings = [name for name in self.dtypes if name.endswith("_us")]
        self.stage = load(folder, "stage").Stage(folder)
        setting = config["parameters"].get("max_waiting")
        self.max_waiting = None if setting is None else int(setting["string_value"])
        self.answered = 0  # rows of the last batch
        self.crowded_at = -np.inf  # when more than max_waiting rows waited, by the monotonic clock
        # Rows still to come of the warm-up; refusing one of them ends Triton 2.51.
        self.warm_up = sum(int(sample["batch_size"]) for sample in config["model_warmup"])
        self.meter = None
        if (folder / "meter.py").exists():
            self.meter = load(folder, "meter").Meter(args["model_version"])

    def execute(self, requests):
        if self.max_waiting is None:
            return self.answer(requests)
        first = self.first_kept(list(map(self.rows, requests)))
        for request in requests[:first]:
            request.get_response_sender().send(self.overloaded(), END)
        return [None] * first + self.answer(requests[first:])

    def first_kept(self, sizes):
        """Where the newest requests begin that there is room for; at least one is kept."""
        waiting = sum(sizes)
        if self.warm_up > 0:
            self.warm_up -= waiting
            return 0
        now = time.monotonic()
        if now - self.crowded_at > CALM_S:
            room = BURST * self.max_waiting
        else:
            room = max(self.max_waiting, int(SHRINKS * self.answered))
        if waiting > self.max_waiting:
            self.crowded_at = now
        first, kept = len(sizes) - 1, sizes[-1]
        while first > 0 and kept + sizes[first - 1] <= room:
            first -= 1
            kept += sizes[first]
        self.answered = kept
        return first

    def rows(self, request):
        return pb_utils.get_input_tensor_by_name(request, self.required).shape()[0]

    def overloaded(self):
        message = f"the server is overloaded: more than {self.max_waiting} requests wait"
        return failure(message, pb_utils.TritonError.UNAVAILABLE)

    def answer(self, requests):
        """One response per request."""
        started = time.perf_counter_ns()
        batches = [self.read(request) for request in requests]
        sizes = [len(batch[self.required]) for batch in batches]
        joined = batches[0]
        if len(batches) > 1:
            joined = {
                name: None if one is None else np.concatenate([batch[name] for batch in batches])
                for name, one in joined.items()
            }
        refused = self.stage.check(joined, sizes)
        try:
            answers = split(self.stage.run(joined), sizes)
        except OSError as error:  # something outside this server does not answer
            return [failure(str(error), pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        took_us = self.took_us((time.perf_counter_ns() - started) // 1000, sum(sizes))
        return [
            self.respond(request, refused.get(i), answer, took_us)
            for i, (request, answer) in enumerate(zip(requests, answers, strict=True))
        ]

    def took_us(self, whole_us, rows):
        """Microseconds of the batch by output: of a stage of several its parts, else all."""
        if self.meter is None:
            return dict.fromkeys(self.timings, whole_us)
        self.meter.add(self.stage.took_us, rows)
        return {f"{stage}_us": us for stage, us in self.stage.took_us.items()}

    def read(self, request):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        return {name: None if t is None else t.as_numpy() for name, t in tensors.items()}

    def respond(self, request, refused, answer, took_us):
        """The outputs that were asked for; a timing nobody asks for costs nothing."""
        if refused is not None:
            return failure(refused, pb_utils.TritonError.INVALID_ARG)
        answer = self.stage.finish(answer)
        wanted = request.requested_output_names()
        for name in self.timings:
            if name in wanted:
                answer[name] = np.full((len(next(iter(answer.values()))), 1), took_us[name])
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.ascontiguousarray(answer[name], dtype=dtype))
                for name, dtype in self.dtypes.items()
                if name in wanted
            ]
        )


END = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def failure(message, code):
    """A response without an answer."""
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, code))


def split(outputs, sizes):
    """One dictionary of arrays per request."""
    if len(sizes) == 1:
        return [outputs]
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
