"""The exported stages in this process: the same files and code as on the server, without Triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from triton_repo.bundle import read_bundle
from triton_repo.client import UserEvents
from triton_repo.page_answer import Page, page_of
from triton_repo.page_tensors import FUSED_PAGE
from triton_repo.tensors import EVENTS, FUSED
from workflow.errors import StateUnavailableError
from workflow.run import Run


class LocalPipeline:
    """Runs an exported repository's fused step: `fused.query_tower` and so on are the stages.

    Args:
        run: the run whose repository is used.
        state: where users' events since the export are (triton_repo.state); None: nowhere.
    Raises:
        MissingArtifactError: nothing was exported yet.
        BundleError: what was exported is not complete.
    """

    def __init__(self, run: Run, state: str | None = None) -> None:
        self.run = run
        self.state = state or ""
        self.fused = self._load_stage(FUSED)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Answer a batch given as the ensemble's input tensors (leave out what is absent).

        Returns:
            video_id [batch, n], score float32 [batch, n], status int32 [batch, 1].
        Raises:
            ValueError: a stage refuses the request; the text is what the server would say.
        """
        known: dict[str, Any] = {"top_k": None, "time": None, **inputs}
        return _answer(self.fused, known)

    def user_events(self, user_id: int | bytes) -> UserEvents:
        """What the online state has of a user; nothing where there is none.

        Raises:
            StateUnavailableError: it does not answer.
        """
        stage = self._load_stage(EVENTS)
        try:
            answer = stage.run({"user_id": _one(user_id), "video_id": None})
        except OSError as error:
            raise StateUnavailableError(str(error)) from None
        return UserEvents(int(answer["num_events"][0, 0]), int(answer["last_time"][0, 0]))

    def _load_stage(self, name: str) -> Any:
        return load_stage(self.run, name, self.state)


class LocalPage:
    """Makes pages with an exported repository's stages.

    Args:
        run, state: as for LocalPipeline.
    Raises:
        MissingArtifactError, BundleError: as for LocalPipeline.
    """

    def __init__(self, run: Run, state: str | None = None) -> None:
        self.stage = load_stage(run, FUSED_PAGE, state or "")
        self.version = read_bundle(run.repository).version

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The output tensors for a batch given as the ensemble's input tensors.

        Raises:
            ValueError: a request is refused; the text is what the server would say.
        """
        return _answer(self.stage, inputs)

    def page(self, inputs: dict[str, Any]) -> Page:
        """The Page of a request for one user."""
        return page_of(self.infer(inputs), self.version)


def _answer(stage: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A stage's answer to one request, or ValueError with its reason to refuse it."""
    refused = stage.check(inputs, [len(inputs["user_id"])])
    if refused:
        raise ValueError(refused[0])
    answer: dict[str, Any] = stage.finish(stage.run(inputs))
    return answer


def load_stage(run: Run, name: str, *arguments: Any) -> Any:
    """An exported stage, without a server.

    Raises:
        MissingArtifactError: nothing was exported yet.
    """
    return open_stage(stage_folder(run, name), *arguments)


def open_stage(folder: Path, *arguments: Any) -> Any:
    """The stage in a version folder of a bundle."""
    return _module(f"marquee_{folder.parent.name}", folder / "stage.py").Stage(folder, *arguments)


def stage_folder(run: Run, name: str) -> Path:
    """Where the code and files of an exported stage are.

    Raises:
        MissingArtifactError: nothing was exported yet.
    """
    folder = run.require(run.repository, "model repository", "marquee export")
    return folder / name / str(read_bundle(folder).version)


def bundle_key(run: Run) -> str:
    """Changes with every export."""
    return read_bundle(run.require(run.repository, "model repository", "marquee export")).seal


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
