"""ONNX graphs built from weights answer as TensorFlow does, for several mixes of features."""

from __future__ import annotations

from typing import Any

import models.compat  # noqa: F401

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from models.dlrm import Outputs
from models.inputs import FeatureTables
from models.ranker import build_ranker
from models.ranker_predict import Predictor, combined
from models.retriever import build_two_tower
from models.scoring import Platt, Scoring
from models.weights import Dense, fold_videos, query_weights, ranker_weights
from tests.fixtures import make_config, make_contract, make_tables, write_run
from triton_repo.export import _slots
from triton_repo.graph import part_of
from triton_repo.query_graph import query_tower_graph
from triton_repo.ranker_graph import RankerLayout, ranker_graph
from workflow.config import ScoreWeights
from workflow.features.build import build_features
from workflow.features.encoded import FeatureStore
from workflow.features.spec import QUERY_GROUPS, FeatureSpec

MIXES: dict[str, dict[str, bool]] = {
    "everything": {},
    "no context": {"context": False},
    "no lists": {"lists": False},
    "no watch time": {"watch_time": False},
    "graded": {"graded": True},
    "no publish time": {"publish_time": False},
    "no numbers": {"numbers": False},
    "only watches": {
        "label": False, "watch_time": False, "context": False, "lists": False,
        "publish_time": False, "numbers": False,
    },
}  # fmt: skip
NUM_USERS, NUM_VIDEOS = 30, 20


@pytest.fixture(scope="module", params=MIXES, ids=str)
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    contract = make_contract(**MIXES[request.param])
    run = write_run(tmp_path_factory.mktemp("mix") / "run", contract, make_tables(num_events=300))
    build_features(run, make_config(), contract)
    store = FeatureStore(run)
    return FeatureTables(store, FeatureSpec.load(store.root / "spec.json")), store


def shaken(model: Any) -> Any:
    """Random weights everywhere: fresh biases are zero and would hide a missing one."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.4, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def random_samples(spec: FeatureSpec, store: FeatureStore, count: int = 16) -> dict[str, Any]:
    """Requests of any user at any point of their history, the unknown user among them."""
    rng = np.random.default_rng(1)
    histories = store.histories()
    user = np.r_[0, 0, rng.integers(1, NUM_USERS + 1, count - 2)].astype(np.int32)
    start, stop = histories.start[user], histories.start[user + 1]
    end = rng.integers(start, stop + 1)
    samples: dict[str, Any] = {
        "user_row": user,
        "video_row": rng.integers(1, NUM_VIDEOS + 1, count).astype(np.int32),
        "history_end": end,
        "session_start": rng.integers(np.minimum(start, end), end + 1),
    }
    for feature in spec.of_group("context", "user_state", "video_state", "cross"):
        if feature.kind == "continuous":
            samples[feature.name] = rng.normal(size=count).astype(np.float32)
        else:
            samples[feature.name] = rng.integers(1, feature.cardinality, count).astype(np.int32)
    return samples


def packed(tables: FeatureTables, features: Any, samples: dict[str, Any]) -> dict[str, Any]:
    """The query's part as serving packs it: one row of indices and one of numbers."""
    batch = {k: tf.constant(v) for k, v in samples.items()}
    looked_up = tables.ranker_requests(batch)
    index, value = [], []
    for feature in features:
        values = looked_up[feature.name].numpy().reshape(len(samples["user_row"]), feature.length)
        (value if feature.kind == "continuous" else index).append(values)
    return {
        "query_index": np.concatenate(index, axis=1).astype(np.int32),
        "query_value": np.concatenate(value, axis=1).astype(np.float32),
    }


def answer(graph: Any, inputs: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


def test_query_tower(tables: Any) -> None:
    lookup, store = tables
    spec = lookup.spec
    model = shaken(build_two_tower(lookup, make_config()))
    features = spec.of_group(*QUERY_GROUPS)
    slots = _slots(tuple(f for f in features if f.kind != "continuous"))
    values = tuple(f.name for f in features if f.kind == "continuous")
    graph = query_tower_graph(query_weights(model, spec), slots, values)
    samples = random_samples(spec, store)
    expected = model.query(lookup.query({k: tf.constant(v) for k, v in samples.items()})).numpy()
    got = answer(graph, packed(lookup, features, samples))
    assert got.shape == expected.shape and got[:, :-1].std(axis=0).min() > 0.01
    assert (got[:, -1] == 1).all()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_rest_of_a_batch_does_not_matter(tables: Any) -> None:
    """Padding is cut to the longest history of a batch; alone, each request is cut to its own."""
    lookup, store = tables
    spec = lookup.spec
    model = shaken(build_two_tower(lookup, make_config()))
    features = spec.of_group(*QUERY_GROUPS)
    slots = _slots(tuple(f for f in features if f.kind != "continuous"))
    values = tuple(f.name for f in features if f.kind == "continuous")
    graph = query_tower_graph(query_weights(model, spec), slots, values)
    inputs = packed(lookup, features, random_samples(spec, store))
    alone = [answer(graph, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(16)]
    np.testing.assert_allclose(np.concatenate(alone), answer(graph, inputs), atol=1e-6)


def test_a_request_without_any_history(tables: Any) -> None:
    """Empty lists are zeros, as in TensorFlow, not NaN."""
    lookup, store = tables
    spec = lookup.spec
    model = shaken(build_two_tower(lookup, make_config()))
    features = spec.of_group(*QUERY_GROUPS)
    slots = _slots(tuple(f for f in features if f.kind != "continuous"))
    values = tuple(f.name for f in features if f.kind == "continuous")
    samples = random_samples(spec, store)
    start = np.asarray(store.histories().start)[samples["user_row"]]
    samples |= {"history_end": start, "session_start": start}
    expected = model.query(lookup.query({k: tf.constant(v) for k, v in samples.items()})).numpy()
    graph = query_tower_graph(query_weights(model, spec), slots, values)
    got = answer(graph, packed(lookup, features, samples))
    assert np.isfinite(got).all() and not got[:, 8:-1].any()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_ranker(tables: Any) -> None:
    """Every request against several candidates, as TensorFlow scores them."""
    lookup, store = tables
    spec = lookup.spec
    model = shaken(build_ranker(lookup, make_config(ranker={"attention_heads": 2})))
    chosen = {"retrieval": 0.7, "watch": 0.5, "label": 1.5, "watch_time": 2.0}
    calibration = Platt(0.5, -0.3), Platt(0.2, 0.4)
    model.scoring = Scoring(*calibration, ScoreWeights(**chosen))
    query = spec.of_group(*QUERY_GROUPS)
    video = spec.of_group("video", "video_state")
    fields = [f.name for f in video if f.kind != "continuous"]
    numbers = [f.name for f in video if f.kind == "continuous"]
    cross = [f.name for f in spec.of_group("cross")]
    layout = RankerLayout(
        _slots(tuple(f for f in query if f.kind != "continuous")),
        tuple(f.name for f in query if f.kind == "continuous"),
        tuple(fields),
        (*numbers, *cross),
    )
    exported = ranker_weights(model)
    graph = ranker_graph(exported, layout)
    samples = random_samples(spec, store)
    rng = np.random.default_rng(2)
    shape = (len(samples["user_row"]), 5)
    candidates = rng.integers(1, NUM_VIDEOS + 1, shape).astype(np.int32)
    retrieval, age = rng.normal(size=(2, *shape)).astype(np.float32)
    state = {f.name: store.video(f.name)[candidates] for f in spec.of_group("video_state")}
    state |= dict.fromkeys(cross, age)
    vectors, values = fold_videos(
        exported,
        {name: store.video(name) for name in fields},
        {name: store.video(name) for name in numbers},
        batch=7,
    )
    values = np.concatenate([values[candidates], *([age[..., None]] if cross else [])], axis=2)
    inputs = packed(lookup, query, samples) | {
        "video_vector": vectors[candidates],
        "video_value": values.astype(np.float32),
        "candidate_score": retrieval,
    }
    got = answer(graph, inputs)
    out = Predictor(model, lookup, store).candidates(samples, candidates, state)
    expected, terms = combined(model, Outputs(**out), retrieval)
    varying = [term for term in terms if term.std() > 0.01]
    assert got.shape == shape and len(varying) == 2 + spec.has_label + spec.has_watch_time
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert_parts(graph, inputs, terms, len(varying) - 1)
    for term in chosen:  # what weighs nothing is left out of the graph
        model.scoring = Scoring(*calibration, ScoreWeights(**(chosen | {term: 0.0})))
        got = answer(ranker_graph(ranker_weights(model), layout), inputs)
        expected, _ = combined(model, Outputs(**out), retrieval)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def assert_parts(graph: Any, inputs: dict[str, Any], terms: list[Any], num_heads: int) -> None:
    """Each output by a graph of its own: what a head says, and the score without the rest."""
    places = {"p_positive": 2, "p_watched": 1, "watch_quantile": 3}
    told = [one.name for one in graph.graph.output][1:]
    assert len(told) == num_heads
    for name in told:
        term = terms[places[name]]
        expected = term if name == "watch_quantile" else np.exp(term)
        np.testing.assert_allclose(answer(part_of(graph, (name,)), inputs), expected, atol=1e-5)
    alone = part_of(graph, ("score",))
    assert len(alone.graph.node) < len(graph.graph.node)
    np.testing.assert_array_equal(answer(alone, inputs), answer(graph, inputs))


class _Weights:
    """What fold_videos reads of the ranker's weights."""

    item: Any = None
    item_numbers = ("n",)

    def __init__(self, table: Any) -> None:
        self.tables = {"a": table, "b": table}


def test_fold_videos() -> None:
    """Lists give the mean of their entries, empty ones zeros, in any batch size."""
    table = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    lists = np.array([[0, 0], [3, 0], [4, 5], [5, 5]], np.int32)
    scalars = np.array([1, 2, 3, 4], np.int32)
    number = np.array([0.5, 1, 2, 3], np.float32)
    weights: Any = _Weights(table)
    for batch in (1, 3, 100):
        got, values = fold_videos(weights, {"a": lists, "b": scalars}, {"n": number}, batch)
        assert got.shape == (4, 3, 3)
        np.testing.assert_allclose(got[0, 0], 0)
        np.testing.assert_allclose(got[1, 0], table[3])
        np.testing.assert_allclose(got[2, 0], (table[4] + table[5]) / 2, rtol=1e-6)
        np.testing.assert_array_equal(got[:, 1], table[scalars])
        np.testing.assert_allclose(got[:, 2], got[:, 0] + got[:, 1], rtol=1e-6)
        np.testing.assert_allclose(values[:, 0], (got[:, 0] * got[:, 1]).sum(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(values[:, 1], number)


def test_fold_videos_adds_numbers_to_the_item() -> None:
    table = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    weights: Any = _Weights(table)
    weights.item = Dense(np.array([[1, 2, 3]], np.float32), np.full(3, 0.5, np.float32), "linear")
    rows = np.array([1, 2], np.int32)
    got, _ = fold_videos(weights, {"a": rows}, {"n": np.array([2.0, -1.0], np.float32)})
    expected = table[rows] + [[2.5, 4.5, 6.5], [-0.5, -1.5, -2.5]]
    np.testing.assert_allclose(got[:, 1], expected, rtol=1e-6)
