"""Trained weights as plain arrays, in the order that the exported graphs need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import numpy as np
import numpy.typing as npt

from models.dlrm import Ranker
from workflow.features.spec import Feature

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ kernel + bias); activation is "relu" or "linear"."""

    kernel: Array
    bias: Array
    activation: str


@dataclass(frozen=True)
class TowerWeights:
    """One tower.

    Attributes:
        tables: float32 [cardinality, dim] per categorical feature (shared ones repeat).
        order: feature names in the order in which their vectors are joined.
        layers: the perceptron on top; its output is L2-normalised.
    """

    tables: dict[str, Array]
    order: tuple[str, ...]
    layers: tuple[Dense, ...]


@dataclass(frozen=True)
class RankerWeights:
    """The DLRM.

    Attributes:
        tables: as in TowerWeights.
        fields: names of the interacting vectors in the order of the interaction matrix; the
            bottom perceptron's output is called "bottom_block".
        continuous: names of the bottom perceptron's inputs, in order.
        bottom, top: perceptrons; `top` reads [bottom output, upper triangle of interactions].
    """

    tables: dict[str, Array]
    fields: tuple[str, ...]
    continuous: tuple[str, ...]
    bottom: tuple[Dense, ...]
    top: tuple[Dense, ...]
    label_head: Dense
    watch_head: Dense
    positive_power: float
    watch_power: float
    has_watch_time: bool


def tower_weights(encoder: Any, features: tuple[Feature, ...]) -> TowerWeights:
    """Weights of a Merlin Encoder made by `models.blocks.tower`."""
    return TowerWeights(
        tables=_tables(encoder),
        order=tuple(sorted(f.name for f in features)),
        layers=tuple(_dense(layer.dense) for layer in encoder.blocks[1].layers),
    )


def ranker_weights(model: Ranker, features: tuple[Feature, ...]) -> RankerWeights:
    """Weights of a built Ranker."""
    categorical = [f.name for f in features if f.kind != "continuous"]
    return RankerWeights(
        tables=_tables(model.embeddings),
        fields=tuple(sorted([*categorical, "bottom_block"])),
        continuous=tuple(sorted(f.name for f in features if f.kind == "continuous")),
        bottom=tuple(_dense(layer.dense) for layer in model.bottom.layers),
        top=tuple(_dense(layer.dense) for layer in model.top.layers),
        label_head=_dense(model.label_head),
        watch_head=_dense(model.watch_head),
        positive_power=model.config.positive_power,
        watch_power=model.config.watch_power,
        has_watch_time=model.has_watch_time,
    )


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
    tables: dict[str, Array], encoded: dict[str, npt.NDArray[np.int32]], batch: int = 100_000
) -> Array:
    """Each video's embedding vectors, looked up beforehand.

    Args:
        encoded: int32 [num_videos + 1] or [num_videos + 1, length] per feature, in field order.
    Returns:
        float32 [num_videos + 1, num_features, dim].
    """
    return np.stack(
        [_fold(tables[name], np.asarray(rows), batch) for name, rows in encoded.items()], axis=1
    )


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
