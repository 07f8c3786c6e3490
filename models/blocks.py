"""Merlin blocks shared by the towers and the ranker: embedding tables with a masked list mean."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import merlin.models.tf as mm
import tensorflow as tf

from models.inputs import merlin_schema
from workflow.features.spec import OUT_OF_VOCABULARY, Feature


@tf.keras.utils.register_keras_serializable(package="marquee")
class MaskedMean(tf.keras.layers.Layer):
    """Mean over the list entries that are not padding; zeros for an empty list.

    Input float32 [batch, length, dim] with a Keras mask [batch, length]; output [batch, dim].
    """

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if mask is None:
            return inputs
        weights = tf.cast(mask, inputs.dtype)[..., None]
        total = tf.reduce_sum(inputs * weights, axis=1)
        return total / tf.maximum(tf.reduce_sum(weights, axis=1), 1.0)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None

    def compute_output_shape(self, input_shape: Any) -> Any:
        return tf.TensorShape([input_shape[0], input_shape[-1]])


def embedding_tables(features: tuple[Feature, ...], dims: dict[str, int]) -> Any:
    """One Merlin embedding table per (domain, list or scalar), side by side.

    Args:
        features: categorical and multi-hot features.
        dims: embedding width per domain.
    Returns:
        merlin.models.tf.ParallelBlock: {feature: [batch, 1 or length]} -> {feature: [batch, dim]}.
    """
    groups: dict[tuple[str, bool], list[Feature]] = {}
    for feature in features:
        groups.setdefault((feature.domain, feature.is_list), []).append(feature)
    tables = {}
    for (domain, is_list), members in groups.items():
        columns = list(merlin_schema(tuple(members)))
        name = f"{domain}_list" if is_list else domain
        tables[name] = mm.EmbeddingTable(
            dims[domain],
            *columns,
            mask_zero=is_list,
            sequence_combiner=MaskedMean() if is_list else None,
            name=name,
        )
    return mm.ParallelBlock(tables, schema=merlin_schema(features))


def tower_dims(features: tuple[Feature, ...], widest: int) -> dict[str, int]:
    """Embedding width per domain: small vocabularies need few dimensions."""
    return {f.domain: min(widest, 8 if f.cardinality <= 64 else widest) for f in features}


def split_kinds(features: tuple[Feature, ...]) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """(categorical and multi-hot features, continuous features)."""
    categorical = tuple(f for f in features if f.kind != "continuous")
    return categorical, tuple(f for f in features if f.kind == "continuous")


def drop_ids(candidate: dict[str, Any], rate: float) -> dict[str, Any]:
    """Replace some videos' ids by "out of vocabulary", so that new ones work from their content.

    Source: DropoutNet, Volkovs et al., NeurIPS 2017.
    """
    if rate == 0:
        return candidate
    ids = candidate["video_index"]
    keep = tf.random.uniform(tf.shape(ids)) >= rate
    return candidate | {"video_index": tf.where(keep, ids, tf.cast(OUT_OF_VOCABULARY, ids.dtype))}
