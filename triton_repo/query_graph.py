"""The ONNX graph of the query tower, built from weights; models/towers.py is what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from models.weights import QueryWeights
from triton_repo.graph import Graph, Newest, Slot, tensor_info

END = np.iinfo(np.int64).max


def query_tower_graph(
    weights: QueryWeights, slots: tuple[Slot, ...], value_names: tuple[str, ...]
) -> Any:
    """query_index int32 [batch, m], query_value float32 [batch, c] -> query_vector [batch, dim].

    An onnx.ModelProto.

    Args:
        slots: every packed query feature; the tower reads the watched videos and `weights.side`.
        value_names: columns of query_value.
    """
    graph = _QueryTower(weights, {slot.name: slot for slot in slots}, value_names)
    graph.build()
    dim = weights.videos.shape[1] + weights.co_history.shape[1] + 1
    width = max(slot.at + slot.length for slot in slots)
    return graph.g.model(
        [
            tensor_info("query_index", TensorProto.INT32, ["batch", width]),
            tensor_info("query_value", TensorProto.FLOAT, ["batch", len(value_names)]),
        ],
        [tensor_info("query_vector", TensorProto.FLOAT, ["batch", dim])],
        "query_tower",
    )


class _QueryTower:
    def __init__(
        self, weights: QueryWeights, slots: dict[str, Slot], value_names: tuple[str, ...]
    ) -> None:
        self.g, self.weights, self.slots, self.value_names = Graph(), weights, slots, value_names

    def build(self) -> None:
        """Nodes from the inputs to query_vector = [learned, co-watch, 1]."""
        g, w = self.g, self.weights
        recent = g.newest("query_index", self.slots["history"])
        vectors = g.op("Gather", g.constant(w.videos), recent.index)
        mean = g.mean(vectors, recent.present, recent.count)
        heads = self._attention(vectors, recent, mean)
        past = g.newest("query_index", self.slots["long_history"])
        profile = g.op("Gather", g.constant(w.videos), past.index)
        profile = g.mean(profile, past.present, past.count)
        session = g.embed("query_index", self.slots["session_history"], w.videos)
        parts = [mean, self._flat(heads), session, profile]
        hidden = g.op("Concat", *parts, *(self._side(name) for name in w.side), axis=1)
        for layer in w.layers:
            hidden = g.dense(hidden, layer)
        learned = g.op(
            "Sum",
            hidden,
            mean,
            g.op("ReduceMean", heads, axes=[1], keepdims=0),
            g.op("Mul", profile, g.constant(w.profile_scale)),
        )
        one = g.op("Add", g.op("Mul", past.count, g.number(0)), g.number(1))
        g.named("query_vector", "Concat", learned, self._co_watch(past), one, axis=1)

    def _attention(self, recent: str, listed: Newest, mean: str) -> str:
        """models.towers.HistoryAttention; [batch, heads, dim]."""
        g, w = self.g, self.weights
        dim, count = w.position.shape[1], w.recency.shape[1]
        last = g.op("Squeeze", g.columns(recent, -1, END), g.ints(1))
        last = g.op("Mul", last, g.columns(listed.present, -1, END))
        asked = g.op("MatMul", g.op("Add", last, mean), g.constant(self._query_key()))
        asked = g.op("Reshape", asked, g.ints(0, count, dim))
        position = listed.of(g.constant(w.position.T.copy()))
        scores = g.op("MatMul", asked, g.op("Transpose", recent, perm=[0, 2, 1]))
        scores = g.op("Add", scores, g.op("MatMul", asked, position))
        scores = g.op("Add", scores, listed.of(g.constant(w.recency.T.copy())))
        present = g.op("Unsqueeze", listed.present, g.ints(1))
        hidden = g.op("Mul", g.op("Sub", g.number(1.0), present), g.number(1e9))
        weights = g.op("Softmax", g.op("Sub", scores, hidden), axis=2)
        return g.op("MatMul", g.op("Mul", weights, present), recent)

    def _query_key(self) -> npt.NDArray[np.float32]:
        """From what is asked to what embeddings are compared with, scaled; [dim, heads * dim]."""
        w = self.weights
        dim, count = w.position.shape[1], w.recency.shape[1]
        asked = w.query.astype(np.float64).reshape(dim, count, dim)
        folded = asked @ w.key.astype(np.float64).T * dim**-0.5
        result: npt.NDArray[np.float32] = folded.reshape(dim, count * dim).astype(np.float32)
        return result

    def _flat(self, heads: str) -> str:
        count, dim = self.weights.recency.shape[1], self.weights.position.shape[1]
        return self.g.op("Reshape", heads, self.g.ints(0, count * dim))

    def _side(self, name: str) -> str:
        if name in self.weights.tables:
            return self.g.embed("query_index", self.slots[name], self.weights.tables[name])
        column = self.value_names.index(name)
        return self.g.columns("query_value", column, column + 1)

    def _co_watch(self, past: Newest) -> str:
        """Sum of the watched videos' co-watch vectors over sqrt(count + 1)."""
        g = self.g
        vectors = g.op("Gather", g.constant(self.weights.co_history), past.index)
        root = g.op("Sqrt", g.op("Add", past.count, g.number(1.0)))
        return g.op("Div", g.total(vectors, past.present), root)
