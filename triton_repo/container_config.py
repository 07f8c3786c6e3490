"""Configs of the container target: each graph a model of ONNX Runtime, the ensembles have steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from triton_repo.tensors import ModelIO, Tensor, warmups

ENCODE, CANDIDATES, ANSWER = "encode", "candidates", "answer"
PAGE_CANDIDATES = "page_candidates"
DEVICES = ("auto", "cpu", "gpu")  # Triton's KIND_AUTO, KIND_CPU and KIND_GPU
RANKER_SCORE = "ranker_score"  # in the ensembles; the graph calls it "score", as the answer does
ENGINE_CACHE = "/tmp/tensorrt-engines"


@dataclass(frozen=True)
class GraphModel:
    """A model of the ONNX Runtime backend.

    Attributes:
        file: its graph, in the version folder.
        io: tensors; -1 is the number of candidates.
        device: one of DEVICES.
        tensorrt: whether TensorRT runs it on a GPU, in FP16.
        widths: numbers of candidates to warm up with, and to build TensorRT's engines for.
    """

    file: str
    io: ModelIO
    device: str
    tensorrt: bool
    widths: tuple[int, ...]

    def body(self, max_batch_size: int) -> str:
        """Of its config.pbtxt, what comes after the tensors."""
        lines = [
            'platform: "onnxruntime_onnx"',
            f'default_model_filename: "{self.file}"',
            f"instance_group [ {{ count: 1 kind: KIND_{self.device.upper()} }} ]",
            "dynamic_batching { max_queue_delay_microseconds: 0 }",
        ]
        if self.device == "cpu":  # one request is small: more threads only add hand-overs
            for name in ("intra_op_thread_count", "inter_op_thread_count"):
                lines.append(f'parameters {{ key: "{name}" value: {{ string_value: "1" }} }}')
        if self.tensorrt:
            lines.append(self._accelerator(max_batch_size))
        text = "\n".join(lines) + "\n"
        for width in self.widths:
            text += warmups(self._wide(width), max_batch_size, f"_{width}")
        return text

    def _wide(self, width: int) -> ModelIO:
        inputs = (
            replace(t, dims=tuple(width if size == -1 else size for size in t.dims))
            for t in self.io.inputs
        )
        return ModelIO(tuple(inputs), self.io.outputs)

    def _accelerator(self, max_batch_size: int) -> str:
        """TensorRT builds one engine for all shapes there can be, and keeps it on disk."""
        least, most = (1, min(self.widths)), (max_batch_size, max(self.widths))
        settings = {
            "precision_mode": "FP16",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": ENGINE_CACHE,
            "trt_profile_min_shapes": self._shapes(*least),
            "trt_profile_opt_shapes": self._shapes(*most),
            "trt_profile_max_shapes": self._shapes(*most),
        }
        words = "".join(
            f'    parameters {{ key: "{key}" value: "{value}" }}\n'
            for key, value in settings.items()
        )
        return (
            "optimization { execution_accelerators {\n"
            f'  gpu_execution_accelerator: [ {{\n    name: "tensorrt"\n{words}  }} ]\n}} }}'
        )

    def _shapes(self, batch_size: int, width: int) -> str:
        inputs = self._wide(width).inputs
        return ",".join(f"{t.name}:{'x'.join(map(str, (batch_size, *t.dims)))}" for t in inputs)


def graph_io(graph: Any) -> ModelIO:
    """The tensors of an onnx.GraphProto, without the batch."""
    dtypes = {1: "FP32", 6: "INT32"}  # of onnx.TensorProto

    def tensor(value: Any) -> Tensor:
        kind = value.type.tensor_type
        dims = tuple(one.dim_value or -1 for one in kind.shape.dim[1:])
        return Tensor(value.name, dtypes[kind.elem_type], dims)

    return ModelIO(tuple(map(tensor, graph.input)), tuple(map(tensor, graph.output)))


@dataclass(frozen=True)
class Step:
    """One step of an ensemble; `renamed`: the ensemble's names for tensors of the model."""

    model: str
    io: ModelIO
    renamed: dict[str, str]

    def takes(self) -> dict[str, str]:
        return {t.name: self.renamed.get(t.name, t.name) for t in self.io.inputs}

    def gives(self) -> dict[str, str]:
        return {t.name: self.renamed.get(t.name, t.name) for t in self.io.outputs}


def steps_body(io: ModelIO, steps: list[Step], version: int) -> str:
    """Steps that pass tensors on by name; what nobody takes is not asked for."""
    wanted = {t.name for t in io.outputs}.union(*(step.takes().values() for step in steps))
    words = []
    for step in steps:
        given = {name: tensor for name, tensor in step.gives().items() if tensor in wanted}
        lines = [f'   model_name: "{step.model}"', f"   model_version: {version}"]
        for kind, pairs in (("input_map", step.takes()), ("output_map", given)):
            lines += [f'   {kind} {{ key: "{k}" value: "{v}" }}' for k, v in pairs.items()]
        words.append(" {\n" + "\n".join(lines) + "\n }")
    return 'platform: "ensemble"\nensemble_scheduling {\n step [' + ",".join(words) + " ]\n}\n"


def python_models(
    tensors: dict[str, ModelIO], page: ModelIO, tower: ModelIO, ranker: ModelIO | None
) -> dict[str, ModelIO]:
    """Tensors of the models around the graphs.

    Args:
        tensors: of the embedded target's models.
        page: of its page stage.
        tower, ranker: of the graphs; without a ranker candidates stay in the order of retrieval.
    """
    query, retrieval, ranked = (tensors[name] for name in ("query_tower", "retrieval", "ranker"))
    known = {t.name: t for t in (*page.inputs, *ranked.inputs, *retrieval.inputs)}
    score = replace(known["candidate_score"], name=RANKER_SCORE)
    looked_up = tuple(t for t in ranker.inputs if t.name.startswith("video_")) if ranker else ()
    found = _without(retrieval.outputs)
    total = next(t.dims for t in page.inputs if t.name == "candidate_row")
    of_page = (*found, Tensor("candidate_source", "INT32", total))
    encoded = _without(query.outputs, {t.name for t in tower.outputs})
    asked = _without(page.inputs, {*(t.name for t in of_page), RANKER_SCORE, "want_record"})
    return {
        ENCODE: ModelIO(query.inputs, (*encoded, known["session_size"])),
        CANDIDATES: ModelIO((*retrieval.inputs, known["request_time"]), (*found, *looked_up)),
        ANSWER: ModelIO(
            (known["candidate_row"], score, known["query_status"], known["top_k"]),
            _without(ranked.outputs),
        ),
        PAGE_CANDIDATES: ModelIO(
            (known["query_vector"], *asked),
            (*(replace(t, dims=total) for t in of_page), *looked_up),
        ),
    }


def _without(tensors: tuple[Tensor, ...], names: set[str] | None = None) -> tuple[Tensor, ...]:
    """Triton itself says how long each model takes: no outputs for that."""
    return tuple(t for t in tensors if t.name not in (names or ()) and not t.name.endswith("_us"))
