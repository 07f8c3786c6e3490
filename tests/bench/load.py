"""Load for the benchmarks: raw requests of a run sent at a given rate or concurrency."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2

from triton_repo.bench import sample_requests
from triton_repo.client import MODEL, Client
from triton_repo.server import RunningServer
from workflow.run import Run

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DTYPES: dict[str, Any] = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32}


@dataclass
class Outcome:
    """What became of the requests of one phase; seconds."""

    seconds: float = 0.0
    sent: int = 0
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def per_s(self) -> float:
        """Good answers a second."""
        return len(self.answered_s) / self.seconds

    def p_ms(self, percent: float, refused: bool = False) -> float:
        times = self.refused_s if refused else self.answered_s
        return float(np.percentile(times, percent)) * 1000 if times else float("nan")


def payloads(run: Run, server: RunningServer, users: int = 1, count: int = 500) -> list[bytes]:
    """Serialised requests of real events, for so many users each; without context if several."""
    with Client(server.grpc_url, credentials=server.credentials) as client:
        inputs = client.inputs()
        rows = sample_requests(run, inputs, count)
    names = None if users == 1 else ("user_id", "time")
    groups = [[rows[(first + n) % len(rows)] for n in range(users)] for first in range(len(rows))]
    return [_serialised(group, names or tuple(group[0]), inputs) for group in groups]


def _serialised(group: list[dict[str, list[Any]]], names: tuple[str, ...], inputs: Any) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    for name in names:
        datatype = inputs[name].datatype
        values = [row[name] for row in group]
        if datatype == "BYTES":
            values = [[value.encode()] for [value] in values]
        tensor = triton.InferInput(name, [len(group), 1], datatype)
        tensor.set_data_from_numpy(np.array(values, DTYPES[datatype]))
        request.inputs.extend([tensor._get_tensor()])
        request.raw_input_contents.extend([tensor._get_content()])
    return bytes(request.SerializeToString())


class Load:
    """Sends payloads in turn; every answer, refusal and error is counted."""

    def __init__(self, url: str, payloads: list[bytes], timeout_s: float = 10.0) -> None:
        self.url, self.payloads, self.timeout_s = url, payloads, timeout_s

    def at_rate(self, per_s: float, duration_s: float) -> Outcome:
        """Open loop: requests start on time whether or not earlier ones were answered."""
        return asyncio.run(self._run(lambda one: self._open(one, per_s, duration_s)))

    def at_lasting_rate(
        self, per_s: float, duration_s: float, first_s: float
    ) -> tuple[Outcome, Outcome]:
        """As `at_rate`, for both times; what was sent in the first seconds, and what came after."""
        first = asyncio.run(
            self._run(lambda one: self._open(one, per_s, first_s + duration_s, first_s))
        )
        first.seconds, self.outcome.seconds = first_s, duration_s
        return first, self.outcome

    def at_concurrency(self, concurrency: int, duration_s: float) -> Outcome:
        """Closed loop: each of `concurrency` callers asks again once it was answered."""
        return asyncio.run(self._run(lambda one: self._closed(one, concurrency, duration_s)))

    async def _run(self, phase: Callable[[Any], Any]) -> Outcome:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.url, options=options) as channel:
            call = channel.unary_unary(METHOD)
            outcome = self.outcome = Outcome()
            started = time.perf_counter()
            await phase(call)
            outcome.seconds = time.perf_counter() - started
        return outcome

    async def _open(self, call: Any, per_s: float, duration_s: float, first_s: float = 0.0) -> None:
        tasks: set[asyncio.Task[None]] = set()
        started = time.perf_counter()
        for number in range(int(per_s * duration_s)):
            if number == int(per_s * first_s) > 0:
                self.outcome = Outcome()
            delay = started + number / per_s - time.perf_counter()
            if delay > 0.0005:
                await asyncio.sleep(delay)
            task = asyncio.ensure_future(self._ask(call, number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _closed(self, call: Any, concurrency: int, duration_s: float) -> None:
        end = time.perf_counter() + duration_s

        async def caller(first: int) -> None:
            number = first
            while time.perf_counter() < end:
                await self._ask(call, number)
                number += concurrency

        await asyncio.gather(*(caller(first) for first in range(concurrency)))

    async def _ask(self, call: Any, number: int) -> None:
        outcome, started = self.outcome, time.perf_counter()
        outcome.sent += 1
        try:
            await call(self.payloads[number % len(self.payloads)], timeout=self.timeout_s)
            outcome.answered_s.append(time.perf_counter() - started)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                outcome.refused_s.append(time.perf_counter() - started)
            else:
                outcome.errors[f"{error.code().name}: {(error.details() or '')[:80]}"] += 1
