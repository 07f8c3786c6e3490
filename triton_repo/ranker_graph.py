"""The ONNX graph of the ranker: what concerns only the request is computed once per request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

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


@dataclass(frozen=True)
class _Seen:
    """Names of what attention made: models.attention.Attended."""

    pooled: str  # [batch, 1, dim]
    vectors: str  # [batch, k, heads, dim]
    user_numbers: str  # [batch, u]
    pair_numbers: str  # [batch, k, p]


def ranker_graph(weights: RankerWeights, layout: RankerLayout) -> bytes:
    """Scores of k candidates per request: float32 [batch, k].

    Inputs: query_index int32 [batch, m], query_value float32 [batch, c], video_vector float32
    [batch, k, fields, dim], video_value float32 [batch, k, v], candidate_score float32 [batch, k].
    """
    g = Graph()
    dim = weights.attention.dim
    slots = {slot.name: slot for slot in layout.slots}
    item = _item(g, weights, layout)
    seen = _attend(g, weights, slots, item)
    numbers = _Numbers(g, weights, layout, seen)
    bottom = _bottom(g, weights, numbers)
    user = [g.embed("query_index", slots[n], weights.tables[n]) for n in weights.query_fields]
    query = g.op("Unsqueeze", g.op("Concat", *user, seen.pooled, axis=1), g.ints(1))
    size = g.op("Slice", g.op("Shape", "video_vector"), g.ints(0), g.ints(2), g.ints(0))
    shape = g.op("Concat", size, g.ints(len(weights.query_fields) + 1, dim), axis=0)
    fields = g.op(
        "Concat",
        g.op("Expand", query, shape),
        "video_vector",
        seen.vectors,
        g.op("Unsqueeze", bottom, g.ints(2)),
        axis=2,
    )
    heads = tuple(f"head {i}" for i in range(weights.attention.heads))
    before = (*weights.query_fields, POOLED)
    order = (*before, *layout.video_fields, *heads, BOTTOM)
    wanted = (*before, *weights.video_fields, *heads, BOTTOM)
    rest = g.op("Concat", bottom, _interactions(g, fields, order, wanted), item, axis=2)
    hidden, watch = (_top(g, layers, rest, numbers) for layers in (weights.top, weights.watch_top))
    _score(g, hidden, watch, weights)
    return g.model(_inputs(layout, dim), [_scores("score")], "ranker")


def _inputs(layout: RankerLayout, dim: int) -> list[object]:
    width = max(slot.at + slot.length for slot in layout.slots)
    float32 = TensorProto.FLOAT
    fields, values = len(layout.video_fields), len(layout.video_values)
    return [
        tensor_info("query_index", TensorProto.INT32, ["batch", width]),
        tensor_info("query_value", float32, ["batch", len(layout.query_values)]),
        tensor_info("video_vector", float32, ["batch", "k", fields, dim]),
        tensor_info("video_value", float32, ["batch", "k", values]),
        _scores("candidate_score"),
    ]


def _scores(name: str) -> object:
    return tensor_info(name, TensorProto.FLOAT, ["batch", "k"])


def _item(g: Graph, weights: RankerWeights, layout: RankerLayout) -> str:
    """The candidates' own vectors; [batch, k, dim]."""
    item = g.op("ReduceSum", "video_vector", g.ints(2), keepdims=0)
    if weights.item is None:
        return item
    columns = [layout.video_values.index(name) for name in weights.item_numbers]
    numbers = g.op("Gather", "video_value", g.ints(*columns), axis=2)
    return g.op("Add", item, g.dense(numbers, weights.item))


def _attend(g: Graph, weights: RankerWeights, slots: dict[str, Slot], item: str) -> _Seen:
    """Target attention as models.attention.TargetAttention computes it."""
    attention, one = weights.attention, g.number(1)
    history = _packed(g, slots["long_history"])
    present = g.op("Cast", g.op("Greater", history, g.zero()), to=TensorProto.FLOAT)
    count = g.op("ReduceSum", present, g.ints(1), keepdims=1)
    root = g.op("Sqrt", g.op("Add", count, one))
    user_numbers, worth = [g.op("Log", g.op("Add", count, one))], present
    liked = None
    if attention.labels is not None:
        positive = g.constant(np.array(FIRST_VALUE + 1, np.int32))
        liked = g.op("Equal", _packed(g, slots["long_history_label"]), positive)
        score = g.op("Cast", liked, to=TensorProto.FLOAT)
        rate = _rate(g, g.op("Mul", score, present), count)
        worth = g.op("Mul", g.op("Sub", score, rate), present)
        newest = g.op("Mul", present, g.constant(_newest(slots["long_history"].length)))
        newest_count = g.op("ReduceSum", newest, g.ints(1), keepdims=1)
        newest_rate = _rate(g, g.op("Mul", score, newest), newest_count)
        user_numbers += [_standard(g, rate), _standard(g, newest_rate)]
    weight = g.op("Unsqueeze", g.op("Div", worth, root), g.ints(1))
    pooled = g.op("MatMul", weight, g.op("Gather", g.constant(attention.pool), history))
    keys = _split_heads(g, g.op("Gather", g.constant(attention.keys), history), weights)
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
        pooled,
        g.op("Transpose", g.op("MatMul", share, values), perm=[0, 2, 1, 3]),
        g.op("Concat", *user_numbers, axis=1),
        g.op("Concat", *pair_numbers, axis=2),
    )


def _packed(g: Graph, slot: Slot) -> str:
    return g.columns("query_index", slot.at, slot.at + slot.length)


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


class _Numbers:
    """The inputs of the bottom perceptron, which the top ones read too.

    A layer's part for the numbers of the request is computed once per request.
    """

    def __init__(self, g: Graph, weights: RankerWeights, layout: RankerLayout, seen: _Seen) -> None:
        self._g = g
        self._user = g.op("Concat", "query_value", seen.user_numbers, axis=1)
        self._pair = g.op("Concat", "video_value", seen.pair_numbers, axis=2)
        graded, heads = weights.attention.labels is not None, weights.attention.heads
        first_video = len(weights.query_numbers) + (3 if graded else 1)
        first_pair = first_video + len(weights.video_numbers)
        self.count = first_pair + heads * (2 if graded else 1)
        rows = [weights.query_numbers.index(name) for name in layout.query_values]
        self._user_rows = [*rows, *range(len(weights.query_numbers), first_video)]
        rows = [first_video + weights.video_numbers.index(name) for name in layout.video_values]
        self._pair_rows = [*rows, *range(first_pair, self.count)]

    def times(self, kernel: npt.NDArray[np.float32]) -> str:
        """The numbers times the first rows of a kernel; [batch, k, width]."""
        g = self._g
        user = g.op("MatMul", self._user, g.constant(kernel[self._user_rows]))
        pair = g.op("MatMul", self._pair, g.constant(kernel[self._pair_rows]))
        return g.op("Add", pair, g.op("Unsqueeze", user, g.ints(1)))


def _bottom(g: Graph, weights: RankerWeights, numbers: _Numbers) -> str:
    """The bottom perceptron; [batch, k, dim]."""
    first = weights.bottom[0]
    hidden = g.op("Relu", g.op("Add", numbers.times(first.kernel), g.constant(first.bias)))
    for layer in weights.bottom[1:]:
        hidden = g.dense(hidden, layer)
    return hidden


def _top(g: Graph, layers: tuple[Dense, ...], rest: str, numbers: _Numbers) -> str:
    """A perceptron on [numbers, rest]; [batch, k, width]."""
    first = layers[0]
    after = Dense(first.kernel[numbers.count :], first.bias, "linear")
    hidden = g.op("Relu", g.op("Add", numbers.times(first.kernel), g.dense(rest, after)))
    for layer in layers[1:]:
        hidden = g.dense(hidden, layer)
    return hidden


def _interactions(g: Graph, fields: str, order: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Inner products of all pairs, in the order in which the model was trained on them."""
    count = len(order)
    products = g.op("MatMul", fields, g.op("Transpose", fields, perm=[0, 1, 3, 2]))
    flat = g.op("Reshape", products, g.ints(0, 0, count * count))
    at = [order.index(name) for name in wanted]
    pairs = np.array([at[i] * count + at[j] for i, j in combinations(range(count), 2)], np.int64)
    return g.op("Gather", flat, g.constant(pairs), axis=2)


def _score(g: Graph, hidden: str, watch: str, weights: RankerWeights) -> None:
    """The weighted sum of models.ranker_predict.combined."""
    scoring, chosen = weights.scoring, weights.scoring.weights
    terms = [
        ("candidate_score", chosen.retrieval),
        (_log_probability(g, watch, weights.watch_head, scoring.watch), chosen.watch),
    ]
    if weights.label_head is not None:
        log_p = _log_probability(g, hidden, weights.label_head, scoring.label)
        terms.append((log_p, chosen.label))
    if weights.time_head is not None:
        quantile = g.op("Sigmoid", g.dense(hidden, weights.time_head))
        terms.append((g.op("Squeeze", quantile, g.ints(2)), chosen.watch_time))
    weighted = [g.op("Mul", term, g.number(weight)) for term, weight in terms]
    g.named("score", "Sum", *weighted)


def _log_probability(g: Graph, hidden: str, head: Dense, platt: Platt) -> str:
    """log sigmoid of the calibrated logit, as -softplus(-x); [batch, k]."""
    scaled = Dense(
        np.float32(-platt.scale) * head.kernel,
        np.float32(-platt.scale) * head.bias - np.float32(platt.shift),
        "linear",
    )
    softplus = g.op("Softplus", g.dense(hidden, scaled))
    return g.op("Squeeze", g.op("Neg", softplus), g.ints(2))
