"""The parts that ONNX graphs of the query tower and the ranker are made of.

Building from weights (rather than converting from TensorFlow) keeps the graphs small, lets the
videos' part of the ranker be looked up beforehand, and handles list means exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.weights import Dense
from workflow.run import write_bytes

OPSET = 17
LARGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Slot:
    """Where a query feature sits in the packed int32 row: [at, at + length)."""

    name: str
    at: int
    length: int
    is_list: bool


@dataclass(frozen=True)
class Newest:
    """Names of a batch's watched videos, newest last.

    Attributes:
        index: int32 [batch, n], 0-padded in front; n is the longest list, at least 1.
        present: float32 [batch, n], 1 where there is a video.
        count: float32 [batch, 1].
        of: cuts another [batch or 1, length] tensor in the same way.
    """

    index: str
    present: str
    count: str
    of: Callable[[str], str]


class Graph:
    """Collects nodes and constants; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[int, str] = {}

    def constant(self, value: npt.NDArray[Any]) -> str:
        """The same array object is stored once."""
        if id(value) not in self._known:
            name = f"c{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
            self._known[id(value)] = name
            self._keep = [*getattr(self, "_keep", []), value]  # ids stay unique while kept
        return self._known[id(value)]

    def index(self, value: int) -> str:
        return self.constant(np.array(value, np.int64))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def named(self, name: str, kind: str, *inputs: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))

    def dense(self, x: str, layer: Dense) -> str:
        """A layer on the rows of a matrix; Gemm is one node where MatMul and Add are two passes."""
        y = self.op("Gemm", x, self.constant(layer.kernel), self.constant(layer.bias))
        return self.op("Relu", y) if layer.activation == "relu" else y

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def columns(self, x: str, start: int, stop: int, axis: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        """The parts along an axis that is as long as there are parts, without that axis."""
        names = [f"t{len(self.nodes)}_{part}" for part in range(parts)]
        sizes = self.ints(*(1 for _ in names))
        self.nodes.append(helper.make_node("Split", [x, sizes], names, axis=axis))
        return [self.op("Squeeze", name, self.ints(axis)) for name in names]

    def slot(self, packed: str, slot: Slot) -> str:
        return self.columns(packed, slot.at, slot.at + slot.length)

    def embed(self, packed: str, slot: Slot, table: npt.NDArray[np.float32]) -> str:
        """[batch, dim]: the looked-up row, or the mean over list entries that are not 0."""
        if not slot.is_list:
            index = self.op("Gather", packed, self.index(slot.at), axis=1)
            return self.op("Gather", self.constant(table), index)
        index = self.slot(packed, slot)
        vectors, present = self.op("Gather", self.constant(table), index), self.present(index)
        return self.mean(vectors, present, self.count(present))

    def embed_all(
        self, packed: str, slots: list[Slot], tables: list[npt.NDArray[np.float32]]
    ) -> str:
        """[batch, slots, dim]: one look-up for slots of one entry whose tables are equally wide."""
        sizes = [len(table) for table in tables]
        first = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
        at = self.constant(np.array([slot.at for slot in slots], np.int64))
        index = self.op("Add", self.op("Gather", packed, at, axis=1), self.constant(first))
        return self.op("Gather", self.constant(np.concatenate(tables)), index)

    def present(self, index: str) -> str:
        """float32 [batch, length], 1 where a list has an entry."""
        return self.op("Cast", self.op("Greater", index, self.zero()), to=TensorProto.FLOAT)

    def count(self, present: str) -> str:
        return self.op("ReduceSum", present, self.ints(1), keepdims=1)

    def total(self, vectors: str, present: str) -> str:
        """Sum of the vectors [batch, length, dim], each times what `present` says; [batch, dim]."""
        weights = self.op("Unsqueeze", present, self.ints(1))
        return self.op("Squeeze", self.op("MatMul", weights, vectors), self.ints(1))

    def mean(self, vectors: str, present: str, count: str) -> str:
        return self.op("Div", self.total(vectors, present), self.op("Max", count, self.number(1)))

    def newest(self, packed: str, slot: Slot) -> Newest:
        """A list of watched videos without the padding in front that no request of a batch needs.

        Most histories are much shorter than the longest one that is allowed.
        """
        whole = self.slot(packed, slot)
        present = self.present(whole)
        count = self.count(present)
        longest = self.op("ReduceMax", count, axes=[0], keepdims=0)
        start = self.op("Neg", self.op("Max", longest, self.number(1)))
        start = self.op("Cast", start, to=TensorProto.INT64)

        def of(x: str) -> str:
            return self.op("Slice", x, start, self.ints(slot.length), self.ints(1))

        return Newest(of(whole), of(present), count, of)

    def zero(self) -> str:
        return self.constant(np.zeros((), np.int32))

    def model(self, inputs: list[Any], outputs: list[Any], name: str) -> Any:
        """The graph as an onnx.ModelProto."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8
        return model


def save_graph(model: Any, path: Path) -> None:
    """Write a graph with its tables beside it, as NAME.weights.

    ONNX Runtime maps that file into memory: loading takes no time whatever the catalogue's size,
    and only rows that are asked for become resident. (It also lifts protobuf's limit of 2 GB.)
    """
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.stem}.weights",
        size_threshold=LARGE_BYTES,
    )
    onnx.checker.check_model(str(path))


def save_parts(model: Any, folder: Path, parts: dict[str, tuple[str, ...]]) -> None:
    """Write several graphs over one file of tables: NAME.onnx computes just these outputs.

    Args:
        parts: name -> names of outputs of `model`; the tables get the first one's name.
    """
    first = next(iter(parts))
    save_graph(model, folder / f"{first}.onnx")
    whole = onnx.load(str(folder / f"{first}.onnx"), load_external_data=False)
    for name, outputs in parts.items():
        path = folder / f"{name}.onnx"
        write_bytes(path, part_of(whole, outputs).SerializeToString())
        onnx.checker.check_model(str(path))


def part_of(model: Any, outputs: tuple[str, ...]) -> Any:
    """The model without what none of these outputs needs: ONNX Runtime would compute it."""
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    graph = helper.make_graph(
        nodes[::-1],
        model.graph.name,
        list(model.graph.input),
        [one for one in model.graph.output if one.name in outputs],
        [one for one in model.graph.initializer if one.name in needed],
    )
    part = helper.make_model(graph, opset_imports=list(model.opset_import))
    part.ir_version = model.ir_version
    return part


def tensor_info(name: str, dtype: int, shape: list[Any]) -> Any:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, dtype, shape)
