"""Lets Merlin Models 23.12 import on TensorFlow >= 2.13; changes nothing on TensorFlow 2.12.

Import this module before `merlin.models`. Every patch is skipped where the name already exists,
so inside the Merlin container (TensorFlow 2.12) it is a no-op.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

import workflow.environment  # noqa: F401  (sets TF_USE_LEGACY_KERAS before TensorFlow loads)

from workflow.cudf_compat import mend_cudf

# Names that Keras 2.13 moved below `keras.src`.
_MOVED = (
    "engine",
    "engine.compile_utils",
    "layers.preprocessing.preprocessing_utils",
    "saving.saving_lib",
    "utils.control_flow_util",
    "utils.generic_utils",
    "utils.layer_utils",
    "utils.losses_utils",
    "utils.metrics_utils",
    "utils.tf_inspect",
)


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _use_legacy_keras() -> None:
    """From TensorFlow 2.16 on, `import keras` must mean tf_keras."""
    if os.environ.get("TF_USE_LEGACY_KERAS") != "1" or "keras" in sys.modules:
        return
    tf_keras = importlib.import_module("tf_keras")
    sys.modules["keras"] = tf_keras
    for name, module in list(sys.modules.items()):
        if name.startswith("tf_keras."):
            sys.modules["keras." + name.removeprefix("tf_keras.")] = module


def _restore_moved_keras_names() -> None:
    keras = importlib.import_module("keras")
    source = f"{keras.__name__}.src"
    if not _importable(source):
        return  # TensorFlow 2.12: nothing has moved yet
    for name in _MOVED:
        if f"keras.{name}" in sys.modules:
            continue
        _link(keras, name, importlib.import_module(f"{source}.{name}"))


def _link(keras: types.ModuleType, name: str, module: types.ModuleType) -> None:
    """Register `module` as keras.<name>, making the packages between where they are missing."""
    parent = keras
    *packages, last = name.split(".")
    for depth, package in enumerate(packages, start=1):
        full = "keras." + ".".join(packages[:depth])
        child = getattr(parent, package, None)
        if not isinstance(child, types.ModuleType):
            child = types.ModuleType(full)
            setattr(parent, package, child)
        sys.modules.setdefault(full, child)
        parent = child
    if not hasattr(parent, last):
        setattr(parent, last, module)
    sys.modules[f"keras.{name}"] = module


def _restore_tensorflow_names() -> None:
    import tensorflow as tf

    python: Any = importlib.import_module("tensorflow.python")
    if not hasattr(python, "to_dlpack"):
        python.to_dlpack = tf.experimental.dlpack.to_dlpack
        python.from_dlpack = tf.experimental.dlpack.from_dlpack
    old = "tensorflow.python.training.tracking"
    if not _importable(f"{old}.data_structures"):
        module = importlib.import_module("tensorflow.python.trackable.data_structures")
        package = types.ModuleType(old)
        package.data_structures = module  # type: ignore[attr-defined]
        sys.modules[old] = package
        sys.modules[f"{old}.data_structures"] = module


def _restore_metric_serialisation() -> None:
    """Keras >= 2.13 refuses metrics in `layers.serialize`, which Merlin's top-k metrics use."""
    import tensorflow as tf
    from merlin.models.tf.metrics import topk

    try:
        tf.keras.layers.serialize(tf.keras.metrics.Mean())
    except Exception:
        aggregator: Any = topk.TopKMetricsAggregator
        aggregator.get_config = _aggregator_config
        from_config: Any = _aggregator_from_config
        aggregator.from_config = classmethod(from_config)


def _aggregator_config(self: Any) -> dict[str, Any]:
    import tensorflow as tf

    return {
        str(index): tf.keras.metrics.serialize(metric)
        for index, metric in enumerate(self.topk_metrics)
    }


def _aggregator_from_config(cls: Any, config: dict[str, Any], **_: Any) -> Any:
    import tensorflow as tf

    return cls(*(tf.keras.metrics.deserialize(metric) for metric in config.values()))


def _quiet() -> None:
    """Retracing hints are for people who write the graph code, not for those who run it."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")


def _prepare() -> None:
    mend_cudf()
    _use_legacy_keras()
    _restore_moved_keras_names()
    _restore_tensorflow_names()
    _restore_metric_serialisation()
    _quiet()


_prepare()
