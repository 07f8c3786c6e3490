"""The exported stages in this process: the same files and code as on the server, without Triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from triton_repo.bundle import read_bundle
from triton_repo.tensors import STAGES
from workflow.run import Run


class LocalPipeline:
    """Runs an exported repository's stages one after the other.

    Args:
        run: the run whose repository is used.
    Raises:
        MissingArtifactError: nothing was exported yet.
        BundleError: what was exported is not complete.
    """

    def __init__(self, run: Run) -> None:
        folder = run.require(run.repository, "model repository", "marquee export")
        version = str(read_bundle(folder).version)
        self.stages = {name: _load_stage(folder / name / version) for name in STAGES}

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Answer a batch given as the ensemble's input tensors (leave out what is absent).

        Returns:
            video_id [batch, n], score float32 [batch, n], status int32 [batch, 1].
        Raises:
            ValueError: a stage refuses the request; the text is what the server would say.
        """
        known: dict[str, Any] = {"top_k": None, "time": None, **inputs}
        sizes = [len(inputs["user_id"])]
        for stage in self.stages.values():
            refused = stage.check(known, sizes)
            if refused:
                raise ValueError(refused[0])
            known |= stage.finish(stage.run(known))
        return {name: known[name] for name in ("video_id", "score", "status")}


def _load_stage(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location(
        f"marquee_{folder.parent.name}", folder / "stage.py"
    )
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Stage(folder)


def as_tensors(
    user_id: int | bytes,
    *,
    top_k: int | None = None,
    time: int | None = None,
    context: dict[str, int | bytes] | None = None,
) -> dict[str, Any]:
    """One request as the ensemble's input tensors, each [1, 1]."""
    tensors: dict[str, Any] = {"user_id": _one(user_id)}
    if top_k is not None:
        tensors["top_k"] = np.array([[top_k]], np.int32)
    if time is not None:
        tensors["time"] = np.array([[time]], np.int64)
    return tensors | {name: _one(value) for name, value in (context or {}).items()}


def _one(value: int | bytes) -> Any:
    return np.array([[value]], object if isinstance(value, bytes) else np.int64)
