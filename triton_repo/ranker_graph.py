"""The ONNX graph of the ranker: what concerns only the request is computed once per request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from models.attention import MASKED, PRIOR_WATCHES, SHARPNESS
from models.inputs import RECENT_WATCHES
from models.scoring import Platt
from models.weights import Dense, RankerWeights
from triton_repo.graph import Graph, Slot, tensor_info
from workflow.features.spec import FIRST_VALUE

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


@dataclass(frozen=True)
class _Seen:
    """Names of what attention made: models.attention.Attended."""

    pooled: str  # [batch, dim]
    vectors: str  # [batch, k, heads, dim]
    user_numbers: str  # [batch, u]
    pair_numbers: str  # [batch, k, p]


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
        item = g.op("Gather", "video_vector", g.index(len(self.layout.video_fields)), axis=2)
        seen = _attend(g, w, self.slots, item)
        self._numbers(seen)
        bottom = self._per_candidate(self._perceptron(w.bottom), self.dim)
        self.candidate.add(bottom, list(range(self.num_numbers, self.num_numbers + self.dim)))
        self._products(seen, bottom)
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

    def _numbers(self, seen: _Seen) -> None:
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

    def _products(self, seen: _Seen, bottom: str) -> None:
        """All inner products but those of two video fields, which are looked up."""
        g, names = self.g, self.user_fields
        user = self._user_vectors(seen)
        across = g.op("Transpose", user, perm=[0, 2, 1])
        square = g.op("Reshape", g.op("MatMul", user, across), g.ints(0, len(names) ** 2))
        once = [
            (a, b) if i < j else (a, a) for i, a in enumerate(names) for j, b in enumerate(names)
        ]
        self.request.add(square, [self._product_row(a, b) for a, b in once])
        moving = [*self._heads(seen), g.op("Unsqueeze", bottom, g.ints(2))]
        before, known = "video_vector", [*self.layout.video_fields, "item vector"]
        for name, vector in zip((*self.heads, BOTTOM), moving, strict=True):
            products = g.op("ReduceSum", g.op("Mul", before, vector), g.ints(3), keepdims=0)
            self.candidate.add(products, [self._product_row(name, one) for one in known])
            before, known = g.op("Concat", before, vector, axis=2), [*known, name]
        flat = g.op("MatMul", g.op("Reshape", before, g.ints(0, -1, self.dim)), across)
        width = len(known) * len(names)
        pairs = [self._product_row(one, other) for one in known for other in names]
        self.candidate.add(g.op("Reshape", flat, g.ints(0, -1, width)), pairs)

    def _user_vectors(self, seen: _Seen) -> str:
        """[batch, fields + 1, dim], the pooled history last."""
        g, tables = self.g, self.weights.tables
        fields = [g.embed("query_index", self.slots[n], tables[n]) for n in self.user_fields[:-1]]
        parts = [g.op("Unsqueeze", x, g.ints(1)) for x in (*fields, seen.pooled)]
        return g.op("Concat", *parts, axis=1)

    def _heads(self, seen: _Seen) -> list[str]:
        """What each head saw; [batch, k, 1, dim] each."""
        count = len(self.heads)
        if count == 1:
            return [seen.vectors]
        return [self.g.columns(seen.vectors, i, i + 1, axis=2) for i in range(count)]

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
        """Term of models.scoring.TERMS -> its tensor [batch, k], of every head that there is."""
        g, w = self.g, self.weights
        hidden = self._perceptron(w.watch_top)
        said = {"watch": self._log_probability(hidden, w.watch_head, w.scoring.watch)}
        if w.label_head is not None or w.time_head is not None:
            hidden = self._perceptron(w.top)
            if w.label_head is not None:
                said["label"] = self._log_probability(hidden, w.label_head, w.scoring.label)
            if w.time_head is not None:
                quantile = g.op("Sigmoid", g.dense(hidden, w.time_head))
                said["watch_time"] = self._per_candidate(quantile)
        return said

    def _score(self, heads: dict[str, str]) -> None:
        """The weighted sum of models.ranker_predict.combined; terms of weight 0 are left out."""
        g, chosen = self.g, self.weights.scoring.weights
        weights = {name: getattr(chosen, name) for name in heads}
        terms = [(heads[name], weight) for name, weight in weights.items() if weight]
        if chosen.retrieval or not terms:
            terms.append(("candidate_score", chosen.retrieval))
        weighted = [g.op("Mul", term, g.number(weight)) for term, weight in terms]
        g.named("score", "Sum", *weighted)

    def _tasks(self, heads: dict[str, str]) -> tuple[str, ...]:
        """Make outputs of TASKS; returns their names."""
        for head, term in heads.items():
            self.g.named(TASKS[head], "Identity" if head == "watch_time" else "Exp", term)
        return tuple(TASKS[head] for head in heads)

    def _log_probability(self, hidden: str, head: Dense, platt: Platt) -> str:
        """log sigmoid of the calibrated logit, as -softplus(-x); [batch, k]."""
        scaled = Dense(
            np.float32(-platt.scale) * head.kernel,
            np.float32(-platt.scale) * head.bias - np.float32(platt.shift),
            "linear",
        )
        softplus = self.g.op("Softplus", self.g.dense(hidden, scaled))
        return self._per_candidate(self.g.op("Neg", softplus))

    def _per_candidate(self, x: str, *last: int) -> str:
        """[batch * k, width] becomes [batch, k, *last]."""
        shape = self.shape
        if last:
            shape = self.g.op("Concat", shape, self.g.ints(*last), axis=0)
        return self.g.op("Reshape", x, shape)


# --- attention -----------------------------------------------------------------------------------
def _attend(g: Graph, weights: RankerWeights, slots: dict[str, Slot], item: str) -> _Seen:
    """Target attention as models.attention.TargetAttention computes it, without the padding."""
    attention, one = weights.attention, g.number(1)
    recent = g.newest("query_index", slots["long_history"])
    present, count = recent.present, recent.count
    root = g.op("Sqrt", g.op("Add", count, one))
    user_numbers, worth = [g.op("Log", g.op("Add", count, one))], present
    liked = None
    if attention.labels is not None:
        positive = g.constant(np.array(FIRST_VALUE + 1, np.int32))
        labels = recent.of(g.slot("query_index", slots["long_history_label"]))
        liked = g.op("Equal", labels, positive)
        score = g.op("Cast", liked, to=TensorProto.FLOAT)
        rate = _rate(g, g.op("Mul", score, present), count)
        worth = g.op("Mul", g.op("Sub", score, rate), present)
        last = recent.of(g.constant(_newest(slots["long_history"].length)))
        newest = g.op("Mul", present, last)
        newest_count = g.op("ReduceSum", newest, g.ints(1), keepdims=1)
        newest_rate = _rate(g, g.op("Mul", score, newest), newest_count)
        user_numbers += [_standard(g, rate), _standard(g, newest_rate)]
    weight = g.op("Unsqueeze", g.op("Div", worth, root), g.ints(1))
    pooled = g.op("MatMul", weight, g.op("Gather", g.constant(attention.pool), recent.index))
    keys = _split_heads(g, g.op("Gather", g.constant(attention.keys), recent.index), weights)
    share = _attention(g, weights, item, keys, present)
    values = keys
    if attention.labels is not None and liked is not None:
        index = g.op("Cast", liked, to=TensorProto.INT32)
        labels = g.op("Gather", g.constant(attention.labels), index)
        values = g.op("Add", keys, _split_heads(g, labels, weights))
    pair_numbers = [_per_pair(g, g.op("ReduceSum", share, g.ints(3), keepdims=0))]
    if attention.labels is not None:
        vote = g.op("MatMul", share, g.op("Unsqueeze", worth, g.ints(1, 3)))
        pair_numbers.append(_per_pair(g, g.op("Squeeze", vote, g.ints(3))))
    return _Seen(
        g.op("Squeeze", pooled, g.ints(1)),
        g.op("Transpose", g.op("MatMul", share, values), perm=[0, 2, 1, 3]),
        _joined(g, user_numbers, axis=1),
        _joined(g, pair_numbers, axis=2),
    )


def _joined(g: Graph, names: list[str], axis: int) -> str:
    return names[0] if len(names) == 1 else g.op("Concat", *names, axis=axis)


def _newest(length: int) -> npt.NDArray[np.float32]:
    """1 at the newest watches, which are last; float32 [1, length]."""
    return (np.arange(length) >= length - RECENT_WATCHES).astype(np.float32)[None]


def _rate(g: Graph, liked: str, count: str) -> str:
    """Positive share of each history, pulled to one half."""
    total = g.op("ReduceSum", liked, g.ints(1), keepdims=1)
    above = g.op("Add", total, g.number(PRIOR_WATCHES / 2))
    return g.op("Div", above, g.op("Add", count, g.number(PRIOR_WATCHES)))


def _standard(g: Graph, rate: str) -> str:
    return g.op("Mul", g.op("Sub", rate, g.number(0.5)), g.number(4))


def _split_heads(g: Graph, x: str, weights: RankerWeights) -> str:
    """[batch, n, heads * dim] becomes [batch, heads, n, dim]."""
    split = g.op("Reshape", x, g.ints(0, 0, weights.attention.heads, weights.attention.dim))
    return g.op("Transpose", split, perm=[0, 2, 1, 3])


def _per_pair(g: Graph, x: str) -> str:
    """[batch, heads, k] becomes [batch, k, heads]."""
    return g.op("Transpose", x, perm=[0, 2, 1])


def _attention(g: Graph, weights: RankerWeights, item: str, keys: str, present: str) -> str:
    """Attention of each candidate on each watched video; [batch, heads, k, length]."""
    attention = weights.attention
    scale = np.float32(SHARPNESS / np.sqrt(attention.dim))
    queries = g.op("MatMul", item, g.constant(attention.query * scale))
    queries = _split_heads(g, queries, weights)
    scores = g.op("MatMul", queries, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    absent = g.op("Mul", g.op("Sub", g.number(1), present), g.number(MASKED))
    scores = g.op("Add", scores, g.op("Unsqueeze", absent, g.ints(1, 2)))
    nothing = g.op("Mul", g.columns(scores, 0, 1, axis=3), g.number(0))
    share = g.op("Softmax", g.op("Concat", scores, nothing, axis=3), axis=3)
    return g.columns(share, 0, -1, axis=3)
