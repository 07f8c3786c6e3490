"""Videos that come after the features stage, encoded by its fitted workflows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workflow.features import compiled
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.history import SECONDS_PER_DAY
from workflow.features.spec import OUT_OF_VOCABULARY, FeatureSpec
from workflow.schema import Contract

Array = npt.NDArray[Any]


def encode_new_videos(
    videos: pa.Table, store: FeatureStore, spec: FeatureSpec, contract: Contract
) -> dict[str, Array]:
    """Encoded columns as the features stage writes them, without the row 0; by feature name.

    The id is out of vocabulary, as is every value that training has not seen; nobody has watched
    these videos, so their counts are 0. Lists are cut to the length of the fitted ones.

    Args:
        videos: canonical rows (workflow.data.entities.canonical_videos).
    Returns:
        int32 [n] or [n, length] per categorical feature, float32 [n] per continuous one, and,
        where the data has it, publish_time int64 [n] (0 = not known).
    """
    count = videos.num_rows
    encoded: dict[str, Array] = {"video_index": np.full(count, OUT_OF_VOCABULARY, np.int32)}
    if contract.features("video_feature"):
        table = CompiledTable.load(store.root / "workflows" / "videos")
        for column in contract.features("video_feature"):
            name, feature = column.name, spec[column.name]
            values = videos[name].combine_chunks()
            encoded[name] = compiled.encode(values, table[name], feature.kind, feature.length)
    encoded |= _unwatched(count, store, spec)
    if contract.has_publish_time:
        known = videos["publish_time"].combine_chunks().fill_null(0)
        encoded["publish_time"] = known.to_numpy().astype(np.int64)
    return encoded


def _unwatched(count: int, store: FeatureStore, spec: FeatureSpec) -> dict[str, Array]:
    """The numbers of the group video_state for videos without any event."""
    events = CompiledTable.load(store.root / "workflows" / "events")
    prior = spec.label_prior if spec.has_label else None
    tomorrow = np.int64(spec.last_event + SECONDS_PER_DAY)
    row = np.full(1, spec.num_videos + 1)  # no event has it
    numbers = store.daily().numbers(row, tomorrow, label_prior=prior)
    return {name: np.repeat(events[name].normalise(raw), count) for name, raw in numbers.items()}
