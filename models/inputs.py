"""Model inputs: sample pointers in, dense feature tensors out, and the Merlin schema of both.

A batch of samples only carries row numbers; `FeatureTables` looks every feature up in the encoded
arrays, so training reads exactly the values that serving reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import tensorflow as tf
from merlin.schema import ColumnSchema, Schema, Tags

from workflow.features.encoded import FeatureStore
from workflow.features.spec import FIRST_VALUE, QUERY_GROUPS, Feature, FeatureSpec, Group

Tensors = dict[str, Any]  # name -> tf.Tensor
RECENT_WATCHES = 50  # of the long history, whose labels count once more on their own


def merlin_schema(features: tuple[Feature, ...]) -> Schema:
    """Merlin's schema of dense inputs: [batch, 1] scalars and [batch, length] padded lists."""
    return Schema([_column_schema(feature) for feature in features])


def _column_schema(feature: Feature) -> ColumnSchema:
    if feature.kind == "continuous":
        return ColumnSchema(feature.name, tags=[Tags.CONTINUOUS], dtype=np.float32)
    domain = {"min": 0, "max": feature.cardinality - 1, "name": feature.domain}
    return ColumnSchema(
        feature.name,
        tags=[Tags.CATEGORICAL],
        dtype=np.int32,
        dims=(None, feature.length) if feature.is_list else (None,),
        properties={"domain": domain},
    )


class FeatureTables:
    """Encoded arrays as tensors, and the look-ups of one batch.

    Args:
        store: the run's encoded arrays.
        spec: the fitted schema.
    """

    def __init__(self, store: FeatureStore, spec: FeatureSpec) -> None:
        self.spec = spec
        self._user = {f.name: tf.constant(store.user(f.name)) for f in spec.of_group("user")}
        self._video = {f.name: tf.constant(store.video(f.name)) for f in spec.of_group("video")}
        self._duration_s = tf.constant(store.duration_s())
        histories = store.histories()
        # The last entry is what every look-up before a user's first watch reads: padding.
        self._watched = tf.constant(np.r_[histories.video_row, np.int32(0)])
        self._liked: Any = None
        if histories.label is not None:
            self._liked = tf.constant(np.r_[histories.label, np.int8(0)])
        self._start = tf.constant(histories.start)

    @property
    def video_index(self) -> Any:
        """Vocabulary index by video row; int32 [num_videos + 1]."""
        return self._video["video_index"]

    def query(self, batch: Tensors) -> Tensors:
        """Query tower inputs of a batch: int32/float32 [batch, 1] or int32 [batch, length]."""
        return self._pick(self.spec.query(), batch)

    def candidate(self, video_row: Any) -> Tensors:
        """Candidate tower inputs of int [n] video rows."""
        return {
            f.name: _column(tf.gather(self._video[f.name], video_row))
            for f in self.spec.candidate()
        }

    def ranker_requests(self, batch: Tensors) -> Tensors:
        """What the ranker reads of requests with samples [batch]; q = 1 in Ranker.call."""
        query = {
            name: values[:, None]
            for name, values in self._pick(self._ranker_query(), batch).items()
        }
        length = self.spec["long_history"].length
        end = tf.cast(batch["history_end"], tf.int64)[:, None]
        first = tf.gather(self._start, batch["user_row"])[:, None]
        return query | self._long_history(end, first, end, length)

    def ranker_windows(self, batch: Tensors) -> tuple[Tensors, Tensors]:
        """(query, candidates) of windows [batch, k] of logged events, each its own request."""
        shape = tf.shape(batch["user_row"])
        flat = {name: tf.reshape(values, [-1]) for name, values in batch.items()}
        query = {
            name: tf.reshape(values, tf.concat([shape, tf.shape(values)[1:]], axis=0))
            for name, values in self._pick(self._ranker_query(), flat).items()
        }
        first = tf.gather(self._start, batch["user_row"])
        end = tf.cast(batch["history_end"], tf.int64)
        last = tf.reduce_max(end, axis=1, keepdims=True)
        span = self.spec["long_history"].length + batch["user_row"].shape[1]
        query |= self._long_history(end, first, last, span)
        changing = self.spec.of_group("video_state", "cross")
        numbers = {f.name: batch[f.name] for f in changing}
        return query, self.ranker_candidates(batch["video_row"], numbers)

    def _ranker_query(self) -> tuple[Feature, ...]:
        features = self.spec.of_group(*QUERY_GROUPS)
        return tuple(f for f in features if not f.name.startswith("long_history"))

    def _long_history(self, end: Any, first: Any, last: Any, span: int) -> Tensors:
        """The `span` watches before `last`, and which of them each event may see.

        Args:
            end, first: int64 [batch, q], where each event's past ends and its user's begins.
            last: int64 [batch, 1].
        """
        at = last - span + tf.range(span, dtype=tf.int64)[None, :]
        oldest = tf.maximum(first, end - self.spec["long_history"].length)
        visible = (at[:, None, :] < end[:, :, None]) & (at[:, None, :] >= oldest[:, :, None])
        inside = tf.reduce_any(visible, axis=1)
        where = tf.where(inside, at, tf.shape(self._watched, tf.int64)[0] - 1)
        rows = tf.where(inside, tf.gather(self._watched, where), 0)
        recent = visible & (at[:, None, :] >= end[:, :, None] - RECENT_WATCHES)
        found = {"long_history": tf.gather(self._video["video_index"], rows)}
        found |= {"visible": visible, "recent": recent}
        if self._liked is not None:
            liked = FIRST_VALUE + tf.cast(tf.gather(self._liked, where), tf.int32)
            found["long_history_label"] = tf.where(inside, liked, 0)
        return found

    def ranker_candidates(self, video_row: Any, numbers: Tensors) -> Tensors:
        """What the ranker reads of each candidate, [batch, k, 1 or length].

        Args:
            video_row: int [batch, k].
            numbers: float32 [batch, k] per feature of the groups video_state and cross.
        """
        features = {
            f.name: tf.gather(self._video[f.name], video_row) for f in self.spec.of_group("video")
        }
        features |= {f.name: numbers[f.name] for f in self.spec.of_group("video_state", "cross")}
        return {
            name: values[..., None] if len(values.shape) == 2 else values
            for name, values in features.items()
        }

    def duration_s(self, batch: Tensors) -> Any:
        """Seconds that each sample's video lasts, NaN where not known; float32, as video_row."""
        return tf.gather(self._duration_s, batch["video_row"])

    def _pick(self, features: tuple[Feature, ...], batch: Tensors) -> Tensors:
        return {f.name: _column(self._value(f, batch)) for f in features}

    def _value(self, feature: Feature, batch: Tensors) -> Any:
        if feature.group == "user":
            return tf.gather(self._user[feature.name], batch["user_row"])
        if feature.group == "video":
            return tf.gather(self._video[feature.name], batch["video_row"])
        if feature.group == "history":
            return self._history(feature, batch)
        return batch[feature.name]

    def _history(self, feature: Feature, batch: Tensors) -> Any:
        """The last `length` watches before the event, newest last, 0-padded in front."""
        end = tf.cast(batch["history_end"], tf.int64)[:, None]
        first = tf.gather(self._start, batch["user_row"])
        if feature.name == "session_history":
            first = tf.cast(batch["session_start"], tf.int64)
        at = end - feature.length + tf.range(feature.length, dtype=tf.int64)[None, :]
        padding = tf.shape(self._watched, tf.int64)[0] - 1
        rows = tf.gather(self._watched, tf.where(at >= first[:, None], at, padding))
        return tf.gather(self._video["video_index"], rows)


def _column(values: Any) -> Any:
    """[n] becomes [n, 1]; lists keep their width."""
    return values[:, None] if len(values.shape) == 1 else values


class SampleBatches:
    """One epoch of sample batches at a time, through Merlin's data loader (out of core).

    The loader mixes the rows of a Dask partition, never its partitions, and an epoch may end before
    all have come. So files of one name, which hold the same users' events of train and of
    validation, are one partition, and each epoch has an order of partitions of its own.

    Args:
        files: sample files.
        columns: the columns to read.
        batch_size: samples per batch; the last batch may be smaller.
        watched_only: leave out exposures that were not watched.
        shuffle: mix the rows anew in each epoch.
        max_rows: end an epoch after about so many rows; None: after all.

    Iterating yields column name -> tensor [batch], in the file's dtype.
    """

    def __init__(
        self,
        files: list[Path],
        columns: list[str],
        batch_size: int,
        *,
        watched_only: bool = False,
        shuffle: bool = False,
        max_rows: int | None = None,
    ) -> None:
        import dask.dataframe
        from merlin.io import Dataset

        frame = dask.dataframe.concat([_as_one(group) for group in _same_name(files)])
        self._frame = frame[frame["watched"] == 1] if watched_only else frame
        self._schema = Dataset([str(files[0])], engine="parquet").schema.select_by_name(columns)
        self._batch_size, self._shuffle = batch_size, shuffle
        self._count = len(self._loader(self._frame))
        if max_rows is not None:
            self._count = min(self._count, max(max_rows // batch_size, 1))

    def _loader(self, frame: Any) -> Any:
        import merlin.models.tf as mm
        from merlin.io import Dataset

        return mm.Loader(
            Dataset(frame, schema=self._schema),
            batch_size=self._batch_size,
            shuffle=self._shuffle,
            schema=self._schema,
        )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensors]:
        frame = self._frame
        if self._shuffle:
            frame = frame.partitions[np.random.permutation(frame.npartitions).tolist()]
        loader = self._loader(frame)
        for batch, _ in islice(loader, len(self)):
            yield batch
        loader.stop()


def _same_name(files: list[Path]) -> list[list[Path]]:
    """Files grouped by name, in the order of the first of each name."""
    names = dict.fromkeys(path.name for path in files)
    return [[path for path in files if path.name == name] for name in names]


def _as_one(files: list[Path]) -> Any:
    """A Dask frame of one partition."""
    from merlin.io import Dataset

    frame = Dataset([str(path) for path in files], engine="parquet").to_ddf()
    return frame.repartition(npartitions=1)


def sample_columns(spec: FeatureSpec, *, ranker: bool) -> list[str]:
    """Columns that a model reads from the samples: pointers, targets and per-event features."""
    per_event: tuple[Group, ...] = ("context", "user_state", "video_state", "cross")
    features = spec.of_group(*per_event) if ranker else spec.query()
    names = [f.name for f in features if f.group in per_event]
    pointers = ["user_row", "video_row", "history_end", "session_start"]
    if not ranker:
        return pointers + names
    targets = ["label", "watched"] + (["log_watch"] if spec.has_watch_time else [])
    return pointers + targets + names
