"""ONNX graphs of the query tower and the ranker, built from weights.

Building from weights (rather than converting from TensorFlow) keeps the graphs small, lets the
videos' part of the ranker be looked up beforehand, and handles list means exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.weights import Dense, RankerWeights, TowerWeights

OPSET = 17


@dataclass(frozen=True)
class Slot:
    """Where a query feature sits in the packed int32 row: [at, at + length)."""

    name: str
    at: int
    length: int
    is_list: bool


class _Graph:
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

    def columns(self, x: str, start: int, stop: int) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(1))

    def embed(self, packed: str, slot: Slot, table: npt.NDArray[np.float32]) -> str:
        """[batch, 1, dim]: the looked-up row, or the mean over list entries that are not 0."""
        index = self.columns(packed, slot.at, slot.at + slot.length)
        vectors = self.op("Gather", self.constant(table), index)
        if not slot.is_list:
            return vectors
        present = self.op("Cast", self.op("Greater", index, self._zero()), to=TensorProto.FLOAT)
        weights = self.op("Unsqueeze", present, self.ints(2))
        total = self.op("ReduceSum", self.op("Mul", vectors, weights), self.ints(1), keepdims=1)
        count = self.op("ReduceSum", weights, self.ints(1), keepdims=1)
        one = self.constant(np.ones((), np.float32))
        return self.op("Div", total, self.op("Max", count, one))

    def _zero(self) -> str:
        return self.constant(np.zeros((), np.int32))

    def model(self, inputs: list[Any], outputs: list[Any], name: str) -> bytes:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised


def _tensor(name: str, dtype: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def query_tower_graph(
    weights: TowerWeights, slots: tuple[Slot, ...], value_names: tuple[str, ...]
) -> bytes:
    """query_index int32 [batch, m], query_value float32 [batch, c] -> query_vector [batch, dim].

    Args:
        slots: every packed query feature; the tower uses those in `weights.order`.
        value_names: columns of query_value.
    """
    g = _Graph()
    by_name = {slot.name: slot for slot in slots}
    width = max(slot.at + slot.length for slot in slots)
    parts = []
    for name in weights.order:
        if name in by_name:
            vector = g.embed("query_index", by_name[name], weights.tables[name])
            parts.append(g.op("Squeeze", vector, g.ints(1)))
        else:
            column = value_names.index(name)
            parts.append(g.columns("query_value", column, column + 1))
    hidden = g.op("Concat", *parts, axis=1)
    for layer in weights.layers:
        hidden = g.dense(hidden, layer)
    _l2_normalise(g, hidden, "query_vector")
    dim = len(weights.layers[-1].bias)
    return g.model(
        [
            _tensor("query_index", TensorProto.INT32, ["batch", width]),
            _tensor("query_value", TensorProto.FLOAT, ["batch", len(value_names)]),
        ],
        [_tensor("query_vector", TensorProto.FLOAT, ["batch", dim])],
        "query_tower",
    )


def _l2_normalise(g: _Graph, x: str, name: str) -> None:
    """As tf.math.l2_normalize: x / sqrt(max(sum(x^2), 1e-12))."""
    squares = g.op("ReduceSum", g.op("Mul", x, x), g.ints(1), keepdims=1)
    floor = g.constant(np.array(1e-12, np.float32))
    g.named(name, "Div", x, g.op("Sqrt", g.op("Max", squares, floor)))


@dataclass(frozen=True)
class RankerLayout:
    """Which features come from where.

    Attributes:
        slots: the packed query features.
        query_values: columns of query_value.
        video_fields: features of video_vector's third axis, in order.
        video_values: columns of video_value's last axis, in order.
    """

    slots: tuple[Slot, ...]
    query_values: tuple[str, ...]
    video_fields: tuple[str, ...]
    video_values: tuple[str, ...]


def ranker_graph(weights: RankerWeights, layout: RankerLayout) -> bytes:
    """Scores of k candidates per request: float32 [batch, k].

    Inputs: query_index int32 [batch, m], query_value float32 [batch, c], video_vector float32
    [batch, k, fields, dim], video_value float32 [batch, k, v].
    """
    g = _Graph()
    dim = next(iter(weights.tables.values())).shape[1]
    size = g.op("Slice", g.op("Shape", "video_vector"), g.ints(0), g.ints(2), g.ints(0))
    bottom = _bottom(g, weights, layout, size)
    query = g.op(
        "Concat", *(g.embed("query_index", s, weights.tables[s.name]) for s in layout.slots), axis=1
    )
    query = g.op("Unsqueeze", query, g.ints(1))
    shape = g.op("Concat", size, g.ints(len(layout.slots), dim), axis=0)
    query = g.op("Expand", query, shape)
    bottom_field = g.op("Unsqueeze", bottom, g.ints(2))
    fields = g.op("Concat", query, "video_vector", bottom_field, axis=2)
    order = (*(slot.name for slot in layout.slots), *layout.video_fields, "bottom_block")
    hidden = g.op("Concat", bottom, _interactions(g, fields, order, weights.fields), axis=2)
    for layer in weights.top:
        hidden = g.dense(hidden, layer)
    _score(g, hidden, weights)
    return g.model(
        [
            _tensor("query_index", TensorProto.INT32, ["batch", _width(layout.slots)]),
            _tensor("query_value", TensorProto.FLOAT, ["batch", len(layout.query_values)]),
            _tensor(
                "video_vector", TensorProto.FLOAT, ["batch", "k", len(layout.video_fields), dim]
            ),
            _tensor("video_value", TensorProto.FLOAT, ["batch", "k", len(layout.video_values)]),
        ],
        [_tensor("score", TensorProto.FLOAT, ["batch", "k"])],
        "ranker",
    )


def _width(slots: tuple[Slot, ...]) -> int:
    return max(slot.at + slot.length for slot in slots)


def _bottom(g: _Graph, weights: RankerWeights, layout: RankerLayout, size: str) -> str:
    """The bottom perceptron on [query values, video values]; [batch, k, dim]."""
    names = (*layout.query_values, *layout.video_values)
    rows = [weights.continuous.index(name) for name in names]
    first = weights.bottom[0]
    first = Dense(first.kernel[rows], first.bias, first.activation)
    query = g.op("Unsqueeze", "query_value", g.ints(1))
    shape = g.op("Concat", size, g.ints(len(layout.query_values)), axis=0)
    hidden = g.op("Concat", g.op("Expand", query, shape), "video_value", axis=2)
    for layer in (first, *weights.bottom[1:]):
        hidden = g.dense(hidden, layer)
    return hidden


def _interactions(g: _Graph, fields: str, order: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Inner products of all pairs, in the order in which the model was trained on them."""
    count = len(order)
    products = g.op("MatMul", fields, g.op("Transpose", fields, perm=[0, 1, 3, 2]))
    flat = g.op("Reshape", products, g.ints(0, 0, count * count))
    at = [order.index(name) for name in wanted]
    pairs = np.array([at[i] * count + at[j] for i, j in combinations(range(count), 2)], np.int64)
    return g.op("Gather", flat, g.constant(pairs), axis=2)


def _score(g: _Graph, hidden: str, weights: RankerWeights) -> None:
    last = g.ints(2)
    logit = g.op("Squeeze", g.dense(hidden, weights.label_head), last)
    positive = g.op(
        "Pow", g.op("Sigmoid", logit), g.constant(np.array(weights.positive_power, np.float32))
    )
    if not weights.has_watch_time:
        g.named("score", "Identity", positive)
        return
    log_watch = g.op("Squeeze", g.dense(hidden, weights.watch_head), last)
    watch = g.op("Pow", log_watch, g.constant(np.array(weights.watch_power, np.float32)))
    g.named("score", "Mul", positive, watch)
