"""The parts that ONNX graphs of the query tower and the ranker are made of.

Building from weights (rather than converting from TensorFlow) keeps the graphs small, lets the
videos' part of the ranker be looked up beforehand, and handles list means exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.weights import Dense

OPSET = 17


@dataclass(frozen=True)
class Slot:
    """Where a query feature sits in the packed int32 row: [at, at + length)."""

    name: str
    at: int
    length: int
    is_list: bool


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
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            self._known[id(value)] = name
            self._keep = [*getattr(self, "_keep", []), value]  # ids stay unique while kept
        return self._known[id(value)]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def named(self, name: str, kind: str, *inputs: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))

    def dense(self, x: str, layer: Dense) -> str:
        y = self.op("MatMul", x, self.constant(layer.kernel))
        y = self.op("Add", y, self.constant(layer.bias))
        return self.op("Relu", y) if layer.activation == "relu" else y

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def columns(self, x: str, start: int, stop: int, axis: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    def embed(self, packed: str, slot: Slot, table: npt.NDArray[np.float32]) -> str:
        """[batch, 1, dim]: the looked-up row, or the mean over list entries that are not 0."""
        index = self.columns(packed, slot.at, slot.at + slot.length)
        vectors = self.op("Gather", self.constant(table), index)
        if not slot.is_list:
            return vectors
        present = self.op("Cast", self.op("Greater", index, self.zero()), to=TensorProto.FLOAT)
        weights = self.op("Unsqueeze", present, self.ints(2))
        total = self.op("ReduceSum", self.op("Mul", vectors, weights), self.ints(1), keepdims=1)
        count = self.op("ReduceSum", weights, self.ints(1), keepdims=1)
        one = self.constant(np.ones((), np.float32))
        return self.op("Div", total, self.op("Max", count, one))

    def zero(self) -> str:
        return self.constant(np.zeros((), np.int32))

    def model(self, inputs: list[Any], outputs: list[Any], name: str) -> bytes:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised


def tensor_info(name: str, dtype: int, shape: list[Any]) -> Any:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, dtype, shape)
