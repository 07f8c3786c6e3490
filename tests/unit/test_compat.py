"""The compatibility module: names that exist stay, and preparing twice changes nothing."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import tensorflow as tf

from models import compat


def patched_names() -> dict[str, Any]:
    """Every name that the module may supply."""
    names = {f"keras.{name}": sys.modules.get(f"keras.{name}") for name in compat._MOVED}
    tracking = "tensorflow.python.training.tracking.data_structures"
    python: Any = importlib.import_module("tensorflow.python")
    topk = importlib.import_module("merlin.models.tf.metrics.topk").TopKMetricsAggregator
    return names | {
        "keras": sys.modules["keras"],
        tracking: sys.modules.get(tracking),
        "to_dlpack": python.to_dlpack,
        "from_dlpack": python.from_dlpack,
        "get_config": topk.get_config,
    }


def test_everything_is_supplied_and_imports() -> None:
    assert all(value is not None for value in patched_names().values())
    importlib.import_module("merlin.models.tf")
    importlib.import_module("keras.engine.compile_utils")
    assert sys.modules["keras"].__name__ in ("keras", "tf_keras")
    assert tf.keras.Model.__module__.startswith(("tf_keras", "keras"))


def test_preparing_again_changes_nothing() -> None:
    before = patched_names()
    compat._prepare()
    after = patched_names()
    assert {name for name in before if after[name] is not before[name]} == set()


def test_names_of_tensorflow_2_12_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Keras has no `keras.src`: nothing is linked, whatever is missing."""
    keras = types.ModuleType("keras")
    monkeypatch.setitem(sys.modules, "keras", keras)
    for name in compat._MOVED:
        monkeypatch.delitem(sys.modules, f"keras.{name}", raising=False)
    monkeypatch.setattr(compat, "_importable", lambda name: False)
    compat._restore_moved_keras_names()
    assert not [name for name in vars(keras) if not name.startswith("__")]
    assert not [name for name in compat._MOVED if f"keras.{name}" in sys.modules]


def test_existing_names_win(monkeypatch: pytest.MonkeyPatch) -> None:
    own = types.ModuleType("own")
    keras = types.ModuleType("keras")
    keras.engine = own  # type: ignore[attr-defined]
    inner = types.ModuleType("inner")
    monkeypatch.setitem(sys.modules, "keras.engine", own)
    monkeypatch.setitem(sys.modules, "keras.engine.compile_utils", inner)
    compat._link(keras, "engine.compile_utils", types.ModuleType("new"))
    assert keras.engine is own  # type: ignore[attr-defined]
    marker = object()
    python: Any = importlib.import_module("tensorflow.python")
    monkeypatch.setattr(python, "to_dlpack", marker)
    compat._restore_tensorflow_names()
    assert python.to_dlpack is marker


def test_keras_is_left_alone_without_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    monkeypatch.delitem(sys.modules, "keras")
    compat._use_legacy_keras()
    assert "keras" not in sys.modules


def test_top_k_metrics_survive_their_config() -> None:
    """Keras >= 2.13 refuses metrics in layers.serialize, which Merlin used."""
    topk = importlib.import_module("merlin.models.tf.metrics.topk")
    aggregator = topk.TopKMetricsAggregator(topk.RecallAt(5), topk.NDCGAt(10))
    again = topk.TopKMetricsAggregator.from_config(aggregator.get_config())
    assert [metric.k for metric in again.topk_metrics] == [5, 10]
