"""The ONNX graph of the query tower, built from weights; models/towers.py is what it computes."""

from __future__ import annotations

from onnx import TensorProto

from models.weights import QueryWeights
from triton_repo.graph import Graph, Slot, tensor_info


def query_tower_graph(
    weights: QueryWeights, slots: tuple[Slot, ...], value_names: tuple[str, ...]
) -> bytes:
    """query_index int32 [batch, m], query_value float32 [batch, c] -> query_vector [batch, dim].

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
        recent, mask = self._list("history")
        mean = self._mean(recent, mask)
        heads = self._attention(recent, mask, mean)
        profile = self._squeezed(self.slots["long_history"])
        parts = [mean, self._flat(heads), self._squeezed(self.slots["session_history"]), profile]
        hidden = g.op("Concat", *parts, *(self._side(name) for name in w.side), axis=1)
        for layer in w.layers:
            hidden = g.dense(hidden, layer)
        learned = g.op("Add", hidden, mean)
        learned = g.op("Add", learned, g.op("ReduceMean", heads, axes=[1], keepdims=0))
        scaled = g.op("Mul", profile, g.constant(w.profile_scale))
        learned = g.op("Add", learned, scaled)
        one = g.op("Sub", g.columns(learned, 0, 1), g.columns(learned, 0, 1))
        one = g.op("Add", one, g.number(1.0))
        g.named("query_vector", "Concat", learned, self._co_watch(), one, axis=1)

    def _index(self, slot: Slot) -> str:
        return self.g.columns("query_index", slot.at, slot.at + slot.length)

    def _mask(self, index: str) -> str:
        """float32 [batch, length], 1 where the list has a video."""
        return self.g.op("Cast", self.g.op("Greater", index, self.g.zero()), to=TensorProto.FLOAT)

    def _list(self, name: str) -> tuple[str, str]:
        """(vectors [batch, length, dim], mask [batch, length])."""
        index = self._index(self.slots[name])
        vectors = self.g.op("Gather", self.g.constant(self.weights.videos), index)
        return vectors, self._mask(index)

    def _sum(self, vectors: str, mask: str) -> str:
        weighted = self.g.op("Mul", vectors, self.g.op("Unsqueeze", mask, self.g.ints(2)))
        return self.g.op("ReduceSum", weighted, self.g.ints(1), keepdims=0)

    def _count(self, mask: str) -> str:
        return self.g.op("ReduceSum", mask, self.g.ints(1), keepdims=1)

    def _mean(self, vectors: str, mask: str) -> str:
        count = self.g.op("Max", self._count(mask), self.g.number(1.0))
        return self.g.op("Div", self._sum(vectors, mask), count)

    def _squeezed(self, slot: Slot) -> str:
        """Mean of a list of videos; [batch, dim]."""
        vector = self.g.embed("query_index", slot, self.weights.videos)
        return self.g.op("Squeeze", vector, self.g.ints(1))

    def _attention(self, recent: str, mask: str, mean: str) -> str:
        """models.towers.HistoryAttention; [batch, heads, dim]."""
        g, w = self.g, self.weights
        length, dim = w.position.shape
        count = w.recency.shape[1]
        last = g.op("Squeeze", g.columns(recent, length - 1, length), g.ints(1))
        last = g.op("Mul", last, g.columns(mask, length - 1, length))
        asked = g.op("MatMul", g.op("Add", last, mean), g.constant(w.query))
        asked = g.op("Reshape", asked, g.ints(0, count, dim))
        keys = g.op("Add", recent, g.constant(w.position))
        keys = g.op("MatMul", keys, g.constant(w.key))
        scores = g.op("MatMul", asked, g.op("Transpose", keys, perm=[0, 2, 1]))
        scores = g.op("Mul", scores, g.number(dim**-0.5))
        scores = g.op("Add", scores, g.constant(w.recency.T.copy()))
        present = g.op("Unsqueeze", mask, g.ints(1))
        hidden = g.op("Mul", g.op("Sub", g.number(1.0), present), g.number(1e9))
        weights = g.op("Softmax", g.op("Sub", scores, hidden), axis=2)
        return g.op("MatMul", g.op("Mul", weights, present), recent)

    def _flat(self, heads: str) -> str:
        count, dim = self.weights.recency.shape[1], self.weights.position.shape[1]
        return self.g.op("Reshape", heads, self.g.ints(0, count * dim))

    def _side(self, name: str) -> str:
        if name in self.weights.tables:
            vector = self.g.embed("query_index", self.slots[name], self.weights.tables[name])
            return self.g.op("Squeeze", vector, self.g.ints(1))
        column = self.value_names.index(name)
        return self.g.columns("query_value", column, column + 1)

    def _co_watch(self) -> str:
        """Sum of the watched videos' co-watch vectors over sqrt(count + 1)."""
        g = self.g
        index = self._index(self.slots["long_history"])
        mask = self._mask(index)
        vectors = g.op("Gather", g.constant(self.weights.co_history), index)
        root = g.op("Sqrt", g.op("Add", self._count(mask), g.number(1.0)))
        return g.op("Div", self._sum(vectors, mask), root)
