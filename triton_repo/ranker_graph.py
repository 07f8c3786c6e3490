"""The ONNX graph of the ranker: what concerns only the request is computed once per request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from models.scoring import Platt
from models.weights import Dense, RankerWeights
from triton_repo.attention_graph import Seen, attend
from triton_repo.graph import Graph, Slot, tensor_info

POOLED, BOTTOM = "pooled history", "bottom"  # no feature can have a space in its name
UNUSED = -1  # a column that a layer does not read
# Head -> output: calibrated probabilities, and the quantile of the watch time.
TASKS = {"label": "p_positive", "watch": "p_watched", "watch_time": "watch_quantile"}


@dataclass(frozen=True)
class RankerLayout:
    """Which features come from where.

    Attributes:
        slots: the packed query features.
        query_values: columns of query_value.
        video_fields: features of video_vector's third axis, in order; the item vector follows.
        video_values: columns of video_value after the products of the fields, in order.
    """

    slots: tuple[Slot, ...]
    query_values: tuple[str, ...]
    video_fields: tuple[str, ...]
    video_values: tuple[str, ...]


@dataclass
class _Columns:
    """Tensors side by side, and which input of the model's top perceptrons each column is."""

    names: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def add(self, name: str, rows: list[int]) -> None:
        self.names.append(name)
        self.rows.extend(rows)


def ranker_graph(weights: RankerWeights, layout: RankerLayout) -> Any:
    """Scores of k candidates per request, and what each head says, as an onnx.ModelProto.

    Outputs, float32 [batch, k]: score, and of TASKS what the data trains. `graph.part_of` leaves
    out what is not wanted.

    Inputs: query_index int32 [batch, m], query_value float32 [batch, c], video_vector float32
    [batch, k, fields + 1, dim] and video_value float32 [batch, k, products + v] (see
    models.weights.fold_videos), candidate_score float32 [batch, k].
    """
    g = Graph()
    tasks = _Ranker(g, weights, layout).build()
    outputs = [_scores(name) for name in ("score", *tasks)]
    return g.model(_inputs(layout, weights.attention.dim), outputs, "ranker")


def _inputs(layout: RankerLayout, dim: int) -> list[object]:
    width = max(slot.at + slot.length for slot in layout.slots)
    float32 = TensorProto.FLOAT
    fields = len(layout.video_fields)
    values = fields * (fields - 1) // 2 + len(layout.video_values)
    return [
        tensor_info("query_index", TensorProto.INT32, ["batch", width]),
        tensor_info("query_value", float32, ["batch", len(layout.query_values)]),
        tensor_info("video_vector", float32, ["batch", "k", fields + 1, dim]),
        tensor_info("video_value", float32, ["batch", "k", values]),
        _scores("candidate_score"),
    ]


def _scores(name: str) -> object:
    return tensor_info(name, TensorProto.FLOAT, ["batch", "k"])


class _Ranker:
    """Builds the nodes from the inputs to "score".

    The model's top perceptrons read [numbers, bottom, products of all pairs of vectors, item].
    Here every one of these is a column of the request or of the candidates, wherever it is
    cheapest to compute, and the first layers' kernels are put in that order.
    """

    def __init__(self, g: Graph, weights: RankerWeights, layout: RankerLayout) -> None:
        self.g, self.weights, self.layout = g, weights, layout
        self.slots = {slot.name: slot for slot in layout.slots}
        self.dim, heads = weights.attention.dim, weights.attention.heads
        self.heads = [f"head {i}" for i in range(heads)]
        self.user_fields = [*weights.query_fields, POOLED]
        self.vectors = [*self.user_fields, *weights.video_fields, *self.heads, BOTTOM]
        graded = weights.attention.labels is not None
        self.first_video = len(weights.query_numbers) + (3 if graded else 1)
        self.first_pair = self.first_video + len(weights.video_numbers)
        self.num_numbers = self.first_pair + heads * (2 if graded else 1)
        self.request, self.candidate = _Columns(), _Columns()

    def build(self) -> tuple[str, ...]:
        """Returns the names of the outputs beside "score"."""
        g, w = self.g, self.weights
        self.shape = g.op("Shape", "candidate_score")
        *fields, item = g.split("video_vector", len(self.layout.video_fields) + 1, axis=2)
        seen = attend(g, w, self.slots, item)
        self._numbers(seen)
        bottom = self._per_candidate(self._perceptron(w.bottom), self.dim)
        self.candidate.add(bottom, list(range(self.num_numbers, self.num_numbers + self.dim)))
        self._products(seen, dict(zip(self.layout.video_fields, fields, strict=True)), bottom)
        self.candidate.add(item, list(range(self._rows() - self.dim, self._rows())))
        heads = self._heads_say()
        self._score(heads)
        return self._tasks(heads)

    # --- columns ---------------------------------------------------------------------------------
    def _rows(self) -> int:
        return len(self.weights.top[0].kernel)

    def _product_row(self, first: str, second: str) -> int:
        """The input that is the inner product of two vectors; UNUSED if one is not in the model."""
        if first not in self.vectors or second not in self.vectors or first == second:
            return UNUSED
        i, j = sorted((self.vectors.index(first), self.vectors.index(second)))
        before = i * (2 * len(self.vectors) - i - 1) // 2
        return self.num_numbers + self.dim + before + j - i - 1

    def _numbers(self, seen: Seen) -> None:
        w, layout = self.weights, self.layout
        rows = [w.query_numbers.index(name) for name in layout.query_values]
        self.request.add("query_value", rows)
        first = len(w.query_numbers)
        self.request.add(seen.user_numbers, list(range(first, self.first_video)))
        rows = [self.first_video + w.video_numbers.index(name) for name in layout.video_values]
        fields = layout.video_fields
        products = [
            self._product_row(one, other)
            for i, one in enumerate(fields)
            for other in fields[i + 1 :]
        ]
        self.candidate.add("video_value", products + rows)
        self.candidate.add(seen.pair_numbers, list(range(self.first_pair, self.num_numbers)))

    def _products(self, seen: Seen, fields: dict[str, str], bottom: str) -> None:
        """All inner products but those of two video fields, which are looked up.

        Each kind of vector is a tensor [batch, k, dim] of its own: side by side with the others it
        would be multiplied in pieces of `dim` numbers, which takes several times as long.
        """
        g = self.g
        user, names = self._user_vectors(seen)
        across = g.op("Transpose", user, perm=[0, 2, 1])
        square = g.op("Reshape", g.op("MatMul", user, across), g.ints(0, len(names) ** 2))
        once = [
            (a, b) if i < j else (a, a) for i, a in enumerate(names) for j, b in enumerate(names)
        ]
        self.request.add(square, [self._product_row(a, b) for a, b in once])
        moving = dict(zip(self.heads, seen.heads, strict=True)) | {BOTTOM: bottom}
        vectors = fields | moving
        for name, vector in vectors.items():
            self.candidate.add(
                g.op("MatMul", vector, across), [self._product_row(name, one) for one in names]
            )
        for done, (name, vector) in enumerate(moving.items()):
            for one in [*fields, *list(moving)[:done]]:
                products = g.op("Mul", vector, vectors[one])
                products = g.op("ReduceSum", products, g.ints(2), keepdims=1)
                self.candidate.add(products, [self._product_row(name, one)])

    def _user_vectors(self, seen: Seen) -> tuple[str, list[str]]:
        """([batch, fields + 1, dim], what they are), the pooled history last."""
        g, tables = self.g, self.weights.tables
        single = [n for n in self.weights.query_fields if not self.slots[n].is_list]
        lists = [n for n in self.weights.query_fields if self.slots[n].is_list]
        parts = [g.embed("query_index", self.slots[name], tables[name]) for name in lists]
        parts = [g.op("Unsqueeze", x, g.ints(1)) for x in parts]
        if single:
            slots = [self.slots[name] for name in single]
            parts.insert(0, g.embed_all("query_index", slots, [tables[name] for name in single]))
        return g.op("Concat", *parts, seen.pooled, axis=1), [*single, *lists, POOLED]

    # --- layers ----------------------------------------------------------------------------------
    def _perceptron(self, layers: tuple[Dense, ...]) -> str:
        """A perceptron on the columns so far; [batch * k, width]."""
        g, first = self.g, layers[0]
        kernel = np.vstack([first.kernel, np.zeros_like(first.kernel[:1])])

        def part(columns: _Columns) -> npt.NDArray[np.float32]:
            used = [row if 0 <= row < len(first.kernel) else UNUSED for row in columns.rows]
            return kernel[used]

        request = Dense(part(self.request), first.bias, "linear")
        once = g.dense(g.op("Concat", *self.request.names, axis=1), request)
        each = g.op("Concat", *self.candidate.names, axis=2)
        each = g.op("MatMul", each, g.constant(part(self.candidate)))
        hidden = g.op("Relu", g.op("Add", each, g.op("Unsqueeze", once, g.ints(1))))
        hidden = g.op("Reshape", hidden, g.ints(-1, first.kernel.shape[1]))
        for layer in layers[1:]:
            hidden = g.dense(hidden, layer)
        return hidden

    # --- score -----------------------------------------------------------------------------------
    def _heads_say(self) -> dict[str, str]:
        """By term of models.scoring.TERMS: minus log p, or the quantile; [batch * k, 1] each."""
        g, w = self.g, self.weights
        hidden = self._perceptron(w.watch_top)
        said = {"watch": self._minus_log_probability(hidden, w.watch_head, w.scoring.watch)}
        if w.label_head is not None or w.time_head is not None:
            hidden = self._perceptron(w.top)
            if w.label_head is not None:
                label = self._minus_log_probability(hidden, w.label_head, w.scoring.label)
                said["label"] = label
            if w.time_head is not None:
                said["watch_time"] = g.op("Sigmoid", g.dense(hidden, w.time_head))
        return said

    def _score(self, heads: dict[str, str]) -> None:
        """The weighted sum of models.ranker_predict.combined; terms of weight 0 are left out."""
        g, chosen = self.g, self.weights.scoring.weights
        signed = {"watch": -chosen.watch, "label": -chosen.label, "watch_time": chosen.watch_time}
        weighted = [
            g.op("Mul", term, g.number(signed[name]))
            for name, term in heads.items()
            if signed[name]
        ]
        summed = [self._per_candidate(g.op("Sum", *weighted))] if weighted else []
        if chosen.retrieval or not summed:
            summed.append(g.op("Mul", "candidate_score", g.number(chosen.retrieval)))
        g.named("score", "Sum", *summed)

    def _tasks(self, heads: dict[str, str]) -> tuple[str, ...]:
        """Make outputs of TASKS; returns their names."""
        g = self.g
        for head, term in heads.items():
            if head == "watch_time":
                g.named(TASKS[head], "Identity", self._per_candidate(term))
            else:
                g.named(TASKS[head], "Exp", self._per_candidate(g.op("Neg", term)))
        return tuple(TASKS[head] for head in heads)

    def _minus_log_probability(self, hidden: str, head: Dense, platt: Platt) -> str:
        """Minus the log sigmoid of the calibrated logit x, softplus(-x); [batch * k, 1]."""
        scaled = Dense(
            np.float32(-platt.scale) * head.kernel,
            np.float32(-platt.scale) * head.bias - np.float32(platt.shift),
            "linear",
        )
        return self.g.op("Softplus", self.g.dense(hidden, scaled))

    def _per_candidate(self, x: str, *last: int) -> str:
        """[batch * k, width] becomes [batch, k, *last]."""
        shape = self.shape
        if last:
            shape = self.g.op("Concat", shape, self.g.ints(*last), axis=0)
        return self.g.op("Reshape", x, shape)
