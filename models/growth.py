"""Trained weights in a model with larger vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt

from models.training import read_weights
from workflow.features.spec import OUT_OF_VOCABULARY

Array = npt.NDArray[Any]


def load_grown(model: Any, path: Path) -> None:
    """Put saved weights into a model that was built with vocabularies grown at their end.

    Rows of known values are what they were. A new row is that of the value "out of vocabulary",
    which training has made fit values that it does not know (blocks.drop_ids).

    Args:
        model: built with the new feature spec, otherwise as the saved one.
        path: what `save_weights` wrote.
    Raises:
        MissingArtifactError: the file is damaged, or of another model.
    """
    values = read_weights(path, len(model.weights))
    model.set_weights([grown(old, w.shape) for old, w in zip(values, model.weights, strict=True)])


def grown(old: Array, shape: Any) -> Array:
    """`old` with rows added up to `shape`: copies of the row of unknown values."""
    more = int(shape[0]) - len(old) if len(shape) else 0
    if not more:
        return old
    unknown = old[OUT_OF_VOCABULARY : OUT_OF_VOCABULARY + 1]
    return np.concatenate([old, np.repeat(unknown, more, axis=0)])
