"""What tests/bench/merlin_systems.py carries from a run into Merlin Systems' own ensemble.

The trained query tower and ranker as SavedModels with their weights, the candidate vectors, and
tables for the feature store. Numbers in the tables are raw, so that the NVTabular workflow has its
work to do; categorical values are codes, because neither Feast's operator nor FAISS's takes text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf

from models.dlrm import Ranker
from models.inputs import RECENT_WATCHES, FeatureTables
from models.ranker import load_ranker
from models.retriever import load_two_tower
from models.two_tower import TwoTower
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.samples import video_age_days
from workflow.features.spec import FIRST_VALUE, QUERY_GROUPS, Feature, FeatureSpec
from workflow.job import Job
from workflow.run import Run, write_json

Array = npt.NDArray[Any]
ITEM = "item_"  # Merlin's feature store operator puts it before a video's columns


def carry(run: Run, folder: Path) -> None:
    """Write everything that merlin_systems_build.py reads."""
    job, store = Job.load(run), FeatureStore(run)
    spec = FeatureSpec.load(store.root / "spec.json")
    tables = FeatureTables(store, spec)
    folder.mkdir(parents=True)
    moments: dict[str, list[Any]] = {}
    _users(store, spec, moments).to_parquet(folder / "users.parquet", index=False)
    _videos(store, spec, moments).to_parquet(folder / "videos.parquet", index=False)
    _save_vocabularies(store, spec, folder / "vocabularies")
    vectors = np.load(run.retriever / "candidate_vectors.npy", mmap_mode="r")[1:]
    np.save(folder / "vectors.npy", vectors)
    save_query_tower(load_two_tower(run, job.config, tables), spec, folder / "query_tower")
    save_ranker(load_ranker(run, job.config, tables), spec, folder / "ranker")
    facts = {
        "num_candidates": job.config.serving.num_candidates,
        "top_k": job.config.serving.default_top_k,
        "moments": moments,
        "context": [f.name for f in spec.of_group("context")],
        "item_lists": [ITEM + f.name for f in spec.of_group("video") if f.is_list],
    }
    write_json(folder / "facts.json", facts)


# --- tables for the feature store -----------------------------------------------------------------
def _users(store: FeatureStore, spec: FeatureSpec, moments: dict[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = {"user_id": np.asarray(store.user("user_id"), np.int64)}
    compiled = CompiledTable.load(store.root / "workflows" / "events")
    for feature in spec.of_group("user", "user_state"):
        if feature.name != "user_index":
            values = np.asarray(store.user(feature.name)[1:])
            columns[feature.name] = _raw(feature, values, compiled, feature.name, moments)
    histories, length = store.histories(), spec["long_history"].length
    first, last = histories.start[1:-1], histories.start[2:]
    watched = [
        np.asarray(histories.video_row[max(a, b - length) : b], np.int32)
        for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]
    return pd.DataFrame(columns).assign(long_history=watched)


def _videos(store: FeatureStore, spec: FeatureSpec, moments: dict[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = {"item_id": np.arange(1, spec.num_videos + 1, dtype=np.int32)}
    static = CompiledTable.load(store.root / "workflows" / "videos")
    events = CompiledTable.load(store.root / "workflows" / "events")
    for feature in spec.of_group("video", "video_state"):
        name = ITEM + feature.name
        if feature.name == "video_index":
            continue
        values = np.asarray(store.video(feature.name)[1:])
        if feature.is_list:
            columns[name] = [row[row > 0] for row in values]
        else:
            compiled = static if feature.group == "video" else events
            columns[name] = _raw(feature, values, compiled, name, moments)
    for feature in spec.of_group("cross"):
        published = np.asarray(store.video("publish_time")[1:])
        age = video_age_days(published, np.full(len(published), spec.last_event + 1))
        columns[ITEM + feature.name] = np.nan_to_num(age)
        moments[ITEM + feature.name] = _moments(events, feature)
    return pd.DataFrame(columns)


def _raw(
    feature: Feature, values: Array, compiled: CompiledTable, name: str, moments: dict[str, Any]
) -> Array:
    """Codes as they are; a normalised number back to what was normalised."""
    if feature.kind != "continuous":
        return values.astype(np.int32)
    mean, std, logged = moments[name] = _moments(compiled, feature)
    raw = values.astype(np.float64) * (std or 1.0) + mean
    return (np.expm1(raw) if logged else raw).astype(np.float32)


def _moments(compiled: CompiledTable, feature: Feature) -> list[Any]:
    column = compiled[feature.name]
    return [column.mean, column.std, column.logged]


def _save_vocabularies(store: FeatureStore, spec: FeatureSpec, folder: Path) -> None:
    """One file a column of what Categorify reads: value i has the index FIRST_VALUE + i."""
    folder.mkdir()
    rows = _in_order_of_index(np.asarray(store.video("video_index")))
    users = _in_order_of_index(np.asarray(store.user("user_index")))
    by_name = {
        "user_index": np.asarray(store.user("user_id"))[users - 1],
        "long_history": rows,
        f"{ITEM}video_index": rows,
    }
    for feature in spec.of_group("user", "context", "video"):
        name = ITEM + feature.name if feature.group == "video" else feature.name
        if feature.kind != "continuous" and name not in by_name:
            by_name[name] = np.arange(FIRST_VALUE, feature.cardinality)
    for name, values in by_name.items():
        np.save(folder / f"{name}.npy", values)


def _in_order_of_index(index: Array) -> Array:
    """Rows that have an index of their own, by it."""
    known = np.flatnonzero(index >= FIRST_VALUE)
    return known[np.argsort(index[known])]


# --- SavedModels ----------------------------------------------------------------------------------
def save_query_tower(model: TwoTower, spec: FeatureSpec, folder: Path) -> None:
    """The trained query tower; inputs as TransformWorkflow gives them, output "query".

    Scalars are [n], the watched videos "long_history__values" and "long_history__offsets". The
    open session is empty.
    """
    scalars = tuple(f for f in spec.query() if f.group != "history")

    def query(features: dict[str, Any]) -> dict[str, Any]:
        watched = _newest(features, spec["long_history"].length)
        inputs = {f.name: features[f.name][:, None] for f in scalars}
        inputs |= {
            "long_history": watched,
            "history": watched[:, -spec["history"].length :],
            "session_history": tf.zeros_like(watched[:, : spec["session_history"].length]),
        }
        return {"query": model.query(inputs)}

    _save(query, [_scalar(f, f.name) for f in scalars] + _list("long_history"), model, folder)


def save_ranker(model: Ranker, spec: FeatureSpec, folder: Path) -> None:
    """The trained ranker with its calibration; one row a candidate, output "score".

    What concerns the user is the same in every row and read from the first. The final score has
    no retrieval term, because QueryFaiss passes no scores on.
    """
    user = [f for f in spec.of_group(*QUERY_GROUPS) if f.group != "history"]
    user = [f for f in user if f.name != "user_index"]
    video = spec.of_group("video", "video_state", "cross")
    signature = [_scalar(f, f.name) for f in user] + _list("long_history")
    for f in video:
        signature += _list(ITEM + f.name) if f.is_list else [_scalar(f, ITEM + f.name)]

    def rank(features: dict[str, Any]) -> dict[str, Any]:
        query = {f.name: features[f.name][:1, None, None] for f in user}
        watched = _newest(_first_row(features), spec["long_history"].length)
        visible = (watched > 0)[:, None, :]
        newest = tf.range(watched.shape[1]) >= watched.shape[1] - RECENT_WATCHES
        query |= {"long_history": watched, "visible": visible, "recent": visible & newest}
        candidates = {f.name: _candidates(features, f) for f in video}
        return {"score": _score(model, query, candidates)}

    _save(rank, signature, model, folder)


def _score(model: Ranker, query: dict[str, Any], candidates: dict[str, Any]) -> Any:
    out, scoring = model(query, candidates), model.scoring
    score = scoring.weights.watch * tf.math.log_sigmoid(scoring.watch(out.watch))
    if model.has_label:
        score += scoring.weights.label * tf.math.log_sigmoid(scoring.label(out.label))
    if model.has_watch_time:
        score += scoring.weights.watch_time * tf.sigmoid(out.watch_time)
    return score[0]


def _candidates(features: dict[str, Any], feature: Feature) -> Any:
    """[1, k, 1 or length] of a column of k rows."""
    name = ITEM + feature.name
    if not feature.is_list:
        return features[name][None, :, None]
    rows = tf.RaggedTensor.from_row_splits(features[f"{name}__values"], _offsets(features, name))
    return rows.to_tensor(shape=(None, feature.length))[None]


def _first_row(features: dict[str, Any]) -> dict[str, Any]:
    offsets = features["long_history__offsets"][:2]
    values = features["long_history__values"][: offsets[1]]
    return {"long_history__values": values, "long_history__offsets": offsets}


def _newest(features: dict[str, Any], length: int) -> Any:
    """Lists, oldest first, as int32 [n, length] with zeros in front."""
    rows = tf.RaggedTensor.from_row_splits(
        features["long_history__values"], _offsets(features, "long_history")
    )
    backwards = tf.reverse(rows, axis=[1]).to_tensor(shape=(None, length))
    return tf.ensure_shape(tf.reverse(backwards, axis=[1]), (None, length))


def _offsets(features: dict[str, Any], name: str) -> Any:
    return tf.cast(features[f"{name}__offsets"], tf.int64)


def _scalar(feature: Feature, name: str) -> Any:
    dtype = tf.float32 if feature.kind == "continuous" else tf.int32
    return tf.TensorSpec([None], dtype, name=name)


def _list(name: str) -> list[Any]:
    return [
        tf.TensorSpec([None], tf.int32, name=f"{name}__{part}") for part in ("values", "offsets")
    ]


def _save(function: Any, signature: list[Any], model: Any, folder: Path) -> None:
    """A module of the variables and this one function, which Merlin Systems loads and saves."""
    module = tf.Module()
    module.weights = list(model.variables)
    module.serve = tf.function(function, input_signature=[{one.name: one for one in signature}])
    tf.saved_model.save(module, str(folder), signatures=module.serve)
