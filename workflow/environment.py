"""Process settings that must be in place before TensorFlow or Dask is imported anywhere."""

from __future__ import annotations

import importlib.util
import os
import warnings


def prepare() -> None:
    """Choose Keras 2, Dask's classic planner and quiet libraries; safe to call again."""
    if importlib.util.find_spec("tf_keras") is not None:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
    # Else Dask turns every column of objects into text, lists included.
    os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for module in (r"dask", r"nvtabular", r"merlin", r"tensorflow", r"keras", r"tf_keras"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")


prepare()
