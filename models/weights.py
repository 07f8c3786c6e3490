"""Trained weights as plain arrays, in the order that the exported graphs need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import numpy as np
import numpy.typing as npt

from models.dlrm import Ranker
from models.scoring import Scoring
from models.towers import query_side
from models.two_tower import TwoTower
from workflow.features.spec import FeatureSpec

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ kernel + bias); activation is "relu" or "linear"."""

    kernel: Array
    bias: Array
    activation: str


@dataclass(frozen=True)
class QueryWeights:
    """The query tower (models.towers.QueryTower) and the co-watch part of its vector.

    Attributes:
        videos: float32 [cardinality, dim]; co_history: float32 [cardinality, co_watch_dim].
        position: float32 [length, dim]; recency: float32 [length, heads].
        query: float32 [dim, heads * dim]; key: float32 [dim, dim].
        tables: float32 [cardinality, width] per categorical side feature.
        side: names of the side features in the order in which their vectors are joined.
        layers: the perceptron on top, its linear last layer included.
        profile_scale: float32 [dim].
    """

    videos: Array
    co_history: Array
    position: Array
    recency: Array
    query: Array
    key: Array
    tables: dict[str, Array]
    side: tuple[str, ...]
    layers: tuple[Dense, ...]
    profile_scale: Array


@dataclass(frozen=True)
class AttentionWeights:
    """Target attention (models.attention).

    Attributes:
        keys: float32 [cardinality, heads * dim]; pool: float32 [cardinality, dim].
        query: float32 [dim, heads * dim], from a candidate to its queries.
        labels: float32 [2, heads * dim] for negative and positive watches, or None.
    """

    keys: Array
    pool: Array
    query: Array
    labels: Array | None
    heads: int
    dim: int


@dataclass(frozen=True)
class RankerWeights:
    """The ranker.

    Attributes:
        tables: float32 [cardinality, dim] per categorical feature (shared ones repeat).
        query_fields, video_fields: names of the interacting vectors, in the model's order.
        query_numbers, video_numbers: names of the bottom perceptron's inputs, in order; the
            numbers of attention follow each group.
        item_numbers: those of video_numbers that describe the candidate itself, by `item`.
        bottom, top, watch_top: perceptrons; the latter two read [the inputs of the bottom one,
            its output, interactions, candidate]; the watch head is on `watch_top`.
        scoring: calibration and score weights; heads that the data does not train are None.
    """

    tables: dict[str, Array]
    query_fields: tuple[str, ...]
    video_fields: tuple[str, ...]
    query_numbers: tuple[str, ...]
    video_numbers: tuple[str, ...]
    item_numbers: tuple[str, ...]
    item: Dense | None
    attention: AttentionWeights
    bottom: tuple[Dense, ...]
    top: tuple[Dense, ...]
    watch_top: tuple[Dense, ...]
    watch_head: Dense
    label_head: Dense | None
    time_head: Dense | None
    scoring: Scoring


def query_weights(model: TwoTower, spec: FeatureSpec) -> QueryWeights:
    """Weights of a built TwoTower's query side."""
    tower = model.query_tower
    attention = tower.attention
    return QueryWeights(
        videos=model.videos.table.embeddings.numpy(),
        co_history=model.co_history.numpy(),
        position=attention.position.numpy(),
        recency=attention.recency.numpy(),
        query=attention.query.numpy(),
        key=attention.key.numpy(),
        tables={} if tower.side is None else _tables(tower.side),
        side=tuple(sorted(f.name for f in query_side(spec))),
        layers=(*_perceptron(tower.hidden), _dense(tower.top)),
        profile_scale=tower.profile_scale.numpy(),
    )


def ranker_weights(model: Ranker) -> RankerWeights:
    """Weights of a built Ranker."""
    fields = model.fields
    return RankerWeights(
        tables=_tables(model.query_embeddings) | _tables(model.video_embeddings),
        query_fields=tuple(f.name for f in fields.query),
        video_fields=tuple(f.name for f in fields.video),
        query_numbers=fields.query_numbers,
        video_numbers=fields.video_numbers,
        item_numbers=fields.item_numbers,
        item=_dense(model.item_numbers) if fields.item_numbers else None,
        attention=_attention(model),
        bottom=_perceptron(model.bottom),
        top=_perceptron(model.top),
        watch_top=_perceptron(model.watch_top),
        watch_head=_dense(model.watch_head),
        label_head=_dense(model.label_head) if model.has_label else None,
        time_head=_dense(model.time_head) if model.has_watch_time else None,
        scoring=model.scoring,
    )


def _attention(model: Ranker) -> AttentionWeights:
    layer = model.attention
    return AttentionWeights(
        keys=layer.keys.embeddings.numpy(),
        pool=layer.pool.embeddings.numpy(),
        query=layer.query.kernel.numpy(),
        labels=layer.label_vectors.embeddings.numpy() if layer.graded else None,
        heads=layer.heads,
        dim=layer.dim,
    )


def _perceptron(block: Any) -> tuple[Dense, ...]:
    """The dense layers of an MLPBlock; dropout does nothing when serving."""
    return tuple(_dense(layer.dense) for layer in block.layers if hasattr(layer, "dense"))


def _tables(block: Any) -> dict[str, Array]:
    tables = [module for module in block.submodules if isinstance(module, mm.EmbeddingTable)]
    return {
        name: table.table.embeddings.numpy()
        for table in tables
        for name in table.schema.column_names
    }


def _dense(layer: Any) -> Dense:
    kernel, bias = (weight.numpy() for weight in (layer.kernel, layer.bias))
    activation = getattr(layer.activation, "__name__", "linear")
    assert activation in ("relu", "linear"), activation
    return Dense(kernel, bias, activation)


def fold_videos(
    weights: RankerWeights,
    encoded: dict[str, npt.NDArray[np.int32]],
    values: dict[str, npt.NDArray[np.float32]],
    batch: int = 100_000,
) -> tuple[Array, Array]:
    """What the ranker needs of each video and can be computed beforehand.

    Args:
        encoded: int32 [num_videos + 1] or [num_videos + 1, length] per categorical feature, in
            the order of the fields.
        values: float32 [num_videos + 1] per continuous feature, in order.
    Returns:
        (vectors float32 [num_videos + 1, fields + 1, dim]: the fields' embeddings, then the
        candidate's own vector made of them; numbers float32 [num_videos + 1, products + values]:
        the inner products of all pairs of fields, then the values)
    """
    columns = [
        _fold(weights.tables[name], np.asarray(rows), batch) for name, rows in encoded.items()
    ]
    item = np.sum(columns, axis=0, dtype=np.float32)
    if weights.item is not None:
        constant = np.stack([values[name] for name in weights.item_numbers], axis=1)
        item += constant.astype(np.float32) @ weights.item.kernel + weights.item.bias
    products = [
        np.einsum("nd,nd->n", one, other)
        for i, one in enumerate(columns)
        for other in columns[i + 1 :]
    ]
    read = [*products, *(np.asarray(v) for v in values.values())]
    joined = np.stack(read, axis=1) if read else np.zeros((len(item), 0))
    return np.stack([*columns, item], axis=1), joined.astype(np.float32)


def _fold(table: Array, rows: npt.NDArray[np.int32], batch: int) -> Array:
    if rows.ndim == 1:
        return table[rows]
    result = np.zeros((len(rows), table.shape[1]), np.float32)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        weight = (part > 0).astype(np.float32)[..., None]
        total = (table[part] * weight).sum(axis=1)
        result[start : start + batch] = total / np.maximum(weight.sum(axis=1), 1)
    return result
