"""Derives the fitted schema: contract columns and derived features, with vocabulary sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workflow.config import FeatureConfig
from workflow.features.fitted import CompiledTable
from workflow.features.spec import FIRST_VALUE, Feature, Group
from workflow.features.tables import TIME_CONTEXT, state_columns
from workflow.schema import Column, Contract


def fitted_features(
    contract: Contract, compiled: dict[str, CompiledTable], folder: Path, config: FeatureConfig
) -> list[Feature]:
    """Every feature in the order the models see it.

    Args:
        compiled: fitted tables by workflow name.
        folder: the features folder, to read list widths from.
    """
    users = compiled["ids"]["user_row"].cardinality
    videos = compiled["ids"]["video_row"].cardinality
    features = [_id_feature("user_index", "user", users)]
    features += [
        _static(c, "user", compiled["users"], folder) for c in contract.features("user_feature")
    ]
    for name, length in (
        ("history", config.history_length),
        ("session_history", config.session_length),
    ):
        features.append(
            Feature(
                name=name, group="history", kind="multi_hot", cardinality=videos,
                length=length, domain="video_index", retriever=True,
            )
        )  # fmt: skip
    features += _long_history(contract, config, videos)
    events = compiled["events"]
    for column in contract.features("context"):
        features.append(_context(column.name, events, retriever=True))
    features += [_context(name, events, retriever=False) for name in TIME_CONTEXT]
    features.append(_id_feature("video_index", "video", videos))
    features += [
        _static(c, "video", compiled["videos"], folder) for c in contract.features("video_feature")
    ]
    for group, names in state_columns(contract).items():
        features += [_number(name, group) for name in names]
    return features


def _long_history(contract: Contract, config: FeatureConfig, videos: int) -> list[Feature]:
    """The long past: watched videos and, where they differ, the watches' labels (ranker only)."""
    sizes = {"long_history": (videos, "video_index")}
    if contract.has_graded_history:
        sizes["long_history_label"] = (FIRST_VALUE + 2, "long_history_label")
    return [
        Feature(
            name=name, group="history", kind="multi_hot", cardinality=cardinality,
            length=config.long_history_length, domain=domain, retriever=name == "long_history",
        )
        for name, (cardinality, domain) in sizes.items()
    ]  # fmt: skip


def raw_ids(values: Any) -> npt.NDArray[Any]:
    """Sorted raw ids as int64, or as UTF-8 bytes for text ids (both binary-searchable)."""
    if values.dtype.kind in "iu":
        return np.asarray(values.to_numpy(), np.int64)
    return np.array([text.encode() for text in values.to_numpy()])


def _id_feature(name: str, group: Group, cardinality: int) -> Feature:
    return Feature(
        name=name, group=group, kind="categorical", cardinality=cardinality, domain=name,
        retriever=True,
    )  # fmt: skip


def _static(column: Column, group: Group, table: CompiledTable, folder: Path) -> Feature:
    assert column.kind is not None
    length = 1
    if column.kind == "multi_hot":
        saved = np.load(folder / f"{group}s" / f"{column.name}.npy", mmap_mode="r")
        length = int(saved.shape[1])
    cardinality = 0 if column.kind == "continuous" else table[column.name].cardinality
    return Feature(
        name=column.name, group=group, kind=column.kind, cardinality=cardinality, length=length,
        domain=column.name, retriever=True,
    )  # fmt: skip


def _context(name: str, events: CompiledTable, *, retriever: bool) -> Feature:
    return Feature(
        name=name, group="context", kind="categorical", domain=name,
        cardinality=events[name].cardinality, retriever=retriever,
    )  # fmt: skip


def _number(name: str, group: Any) -> Feature:
    return Feature(name=name, group=group, kind="continuous")
