"""The ranker's attention on watched videos, as nodes of its ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from models.attention import MASKED, PRIOR_WATCHES, SHARPNESS
from models.inputs import RECENT_WATCHES
from models.weights import RankerWeights
from triton_repo.graph import Graph, Slot
from workflow.features.spec import FIRST_VALUE


@dataclass(frozen=True)
class Seen:
    """Names of what attention made: models.attention.Attended."""

    pooled: str  # [batch, 1, dim]
    heads: list[str]  # [batch, k, dim] each
    user_numbers: str  # [batch, u]
    pair_numbers: str  # [batch, k, p]


def attend(g: Graph, weights: RankerWeights, slots: dict[str, Slot], item: str) -> Seen:
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
    heads = weights.attention.heads
    pair_numbers = [_per_pair(g, g.op("ReduceSum", share, g.ints(3), keepdims=0), heads)]
    if attention.labels is not None:
        vote = g.op("MatMul", share, g.op("Unsqueeze", worth, g.ints(1, 3)))
        pair_numbers.append(_per_pair(g, g.op("Squeeze", vote, g.ints(3)), heads))
    return Seen(
        pooled,
        _join_heads(g, g.op("MatMul", share, values), heads),
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
    heads, dim = weights.attention.heads, weights.attention.dim
    if heads == 1:  # nothing has to move
        return g.op("Unsqueeze", x, g.ints(1))
    return g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, heads, dim)), perm=[0, 2, 1, 3])


def _join_heads(g: Graph, x: str, heads: int) -> list[str]:
    """[batch, heads, k, dim] becomes [batch, k, dim] for each head."""
    each = [x] if heads == 1 else [g.columns(x, i, i + 1) for i in range(heads)]
    return [g.op("Squeeze", one, g.ints(1)) for one in each]


def _per_pair(g: Graph, x: str, heads: int) -> str:
    """[batch, heads, k] becomes [batch, k, heads]."""
    if heads == 1:
        return g.op("Reshape", x, g.ints(0, -1, 1))
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
    scores = g.op("Pad", scores, g.ints(0, 0, 0, 0, 0, 0, 0, 1))  # a 0 for attending to nothing
    return g.columns(g.op("Softmax", scores, axis=3), 0, -1, axis=3)
