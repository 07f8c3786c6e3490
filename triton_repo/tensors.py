"""The served models' tensors and configs, derived from the contract and the fitted schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflow.features.spec import QUERY_GROUPS, FeatureSpec
from workflow.schema import Contract

ENSEMBLE = "marquee"
STAGES = ("query_tower", "retrieval", "ranker")
FUSED = "fused"  # the one step of the ensemble: all stages in one process
TIMINGS = tuple(f"{stage}_us" for stage in STAGES)
EVENTS = "events"  # served beside it
USES_STATE = ("query_tower", FUSED, EVENTS)  # models that read or write the online state
ALL_THAT_WAIT = 4096  # rows in a batch of the fused step: its whole queue, so that it can choose


@dataclass(frozen=True)
class Tensor:
    """One tensor of a served model; `dims` leaves out the batch."""

    name: str
    dtype: str  # INT32, INT64, FP32 or STRING
    dims: tuple[int, ...]
    optional: bool = False

    def render(self) -> str:
        dims = ", ".join(str(size) for size in self.dims)
        optional = " optional: true" if self.optional else ""
        return f'{{ name: "{self.name}" data_type: TYPE_{self.dtype} dims: [ {dims} ]{optional} }}'


@dataclass(frozen=True)
class ModelIO:
    """What one served model takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def schema(self, max_batch_size: int) -> dict[str, Any]:
        """What a client has to know, as JSON."""
        parts = {"inputs": self.inputs, "outputs": self.outputs}
        described = {
            kind: {
                t.name: {"dtype": t.dtype, "dims": list(t.dims), "optional": t.optional}
                for t in tensors
            }
            for kind, tensors in parts.items()
        }
        return {**described, "max_batch_size": max_batch_size}


def id_dtype(contract: Contract, role: str) -> str:
    """Triton's type of raw user or video ids: INT64 or STRING."""
    column = contract.events.one(role)
    assert column is not None
    return "STRING" if column.dtype == "string" else "INT64"


def longest_history(spec: FeatureSpec) -> int:
    """How many of a user's watches any feature reads; as many events are kept online."""
    return max((f.length for f in spec.of_group("history")), default=1)


def model_tensors(
    contract: Contract, spec: FeatureSpec, num_candidates: int, dim: int
) -> dict[str, ModelIO]:
    """Inputs and outputs of every served model, ensemble included."""
    packed = [f for f in spec.of_group(*QUERY_GROUPS) if f.kind != "continuous"]
    values = [f for f in spec.of_group(*QUERY_GROUPS) if f.kind == "continuous"]
    request = (
        Tensor("user_id", id_dtype(contract, "user_id"), (1,)),
        Tensor("time", "INT64", (1,), optional=True),
        *(
            Tensor(c.name, "INT64" if c.dtype == "int64" else "STRING", (1,), optional=True)
            for c in contract.features("context")
        ),
    )
    top_k = Tensor("top_k", "INT32", (1,), optional=True)
    features = (
        Tensor("query_index", "INT32", (sum(f.length for f in packed),)),
        Tensor("query_value", "FP32", (len(values),)),
    )
    moment, status = Tensor("request_time", "INT64", (1,)), Tensor("query_status", "INT32", (1,))
    search = (
        Tensor("query_vector", "FP32", (dim,)),
        Tensor("user_row", "INT32", (1,)),
        Tensor("watched_until", "INT64", (1,)),
        Tensor("online_row", "INT32", (longest_history(spec),)),
    )
    watch_s = Tensor("online_watch_s", "FP32", (longest_history(spec),))
    candidates = Tensor("candidate_row", "INT32", (num_candidates,))
    answer = (
        Tensor("video_id", id_dtype(contract, "video_id"), (-1,)),
        Tensor("score", "FP32", (-1,)),
        Tensor("status", "INT32", (1,)),
    )
    candidate_score = Tensor("candidate_score", "FP32", (num_candidates,))
    # Made only for requests that ask for them: microseconds of the batch that a request was in.
    query_us, retrieval_us, ranker_us = (Tensor(name, "INT32", (1,)) for name in TIMINGS)
    ranked = (candidates, candidate_score, *features, moment, status, top_k)
    whole = ModelIO((request[0], top_k, *request[1:]), (*answer, query_us, retrieval_us, ranker_us))
    return {
        "query_tower": ModelIO(request, (*search, watch_s, *features, moment, status, query_us)),
        "retrieval": ModelIO(search, (candidates, candidate_score, retrieval_us)),
        "ranker": ModelIO(ranked, (*answer, ranker_us)),
        FUSED: whole,
        ENSEMBLE: whole,
        EVENTS: _events(contract),
    }


def _events(contract: Contract) -> ModelIO:
    """The model that keeps what users watch after the export."""
    inputs = [
        Tensor("user_id", id_dtype(contract, "user_id"), (1,)),
        Tensor("video_id", id_dtype(contract, "video_id"), (1,), optional=True),
        Tensor("time", "INT64", (1,), optional=True),
    ]
    if contract.has_label:
        inputs.append(Tensor("label", "INT32", (1,), optional=True))
    if contract.has_watch_time:
        inputs.append(Tensor("watch_s", "FP32", (1,), optional=True))
    outputs = (
        Tensor("stored", "INT32", (1,)),
        Tensor("num_events", "INT32", (1,)),
        Tensor("last_time", "INT64", (1,)),
    )
    return ModelIO(tuple(inputs), outputs)


def render_config(name: str, io: ModelIO, max_batch_size: int, version: int, body: str) -> str:
    """A config.pbtxt: name, batching, the one version, tensors, then `body`."""
    lines = [f'name: "{name}"', f"max_batch_size: {max_batch_size}"]
    lines.append(f"version_policy: {{ specific: {{ versions: [ {version} ] }} }}")
    for label, tensors in (("input", io.inputs), ("output", io.outputs)):
        lines.append(f"{label} [")
        lines.append(",\n".join(f"  {tensor.render()}" for tensor in tensors))
        lines.append("]")
    return "\n".join(lines) + "\n" + body


def stage_body(io: ModelIO, max_batch_size: int) -> str:
    """A stage: one Python instance, no queue delay, warm before it is ready."""
    return python_body() + warmups(io, max_batch_size)


def fused_body(io: ModelIO, max_batch_size: int, max_waiting: int) -> str:
    """The step of the ensemble: as a stage, but of more than `max_waiting` rows it refuses some."""
    setting = f'{{ string_value: "{max_waiting}" }}'
    parameter = f'parameters {{ key: "max_waiting" value: {setting} }}\n'
    return python_body() + parameter + warmups(io, max_batch_size)


def python_body() -> str:
    """A model that may be ready before it could answer: the events' store may come later."""
    return (
        'backend: "python"\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        "dynamic_batching { max_queue_delay_microseconds: 0 }\n"
    )


def warmups(io: ModelIO, max_batch_size: int, suffix: str = "") -> str:
    """Requests of zeros for one user and for a full batch; `suffix` tells their names apart."""
    return "".join(_warmup(io, size, suffix) for size in dict.fromkeys((1, max_batch_size)))


def _warmup(io: ModelIO, batch_size: int, suffix: str) -> str:
    inputs = "".join(
        f'  inputs {{ key: "{t.name}" value: {{ data_type: TYPE_{t.dtype} '
        f"dims: [ {', '.join(map(str, t.dims))} ] zero_data: true }} }}\n"
        for t in io.inputs
        if not t.optional
    )
    return (
        f'model_warmup [ {{\n  name: "batch_{batch_size}{suffix}"\n  batch_size: {batch_size}\n'
        f"{inputs}}} ]\n"
    )


def ensemble_body(io: ModelIO, step: str, version: int) -> str:
    """One step, a model of the same version."""
    maps = [f'   input_map {{ key: "{t.name}" value: "{t.name}" }}' for t in io.inputs]
    maps += [f'   output_map {{ key: "{t.name}" value: "{t.name}" }}' for t in io.outputs]
    lines = "\n".join((f'   model_name: "{step}"', f"   model_version: {version}", *maps))
    return f'platform: "ensemble"\nensemble_scheduling {{\n step [ {{\n{lines}\n }} ]\n}}\n'
