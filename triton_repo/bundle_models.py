"""A bundle's models under names of their own, so that two bundles can be loaded side by side.

Bundle 17 becomes `query_tower_17`, `retrieval_17`, `ranker_17` and the ensemble `marquee_17` of
just these. What clients ask are ensembles over the same stages: `marquee`, and `marquee_<name>`
for a bundle that is deployed under a name. Replacing one of them changes all its stages at once.

Measured with Triton 2.51: an ensemble whose stages are loaded is replaced in milliseconds and no
request fails; one with a stage that does not load takes the old ensemble down with it. So the
bundle's own ensemble goes first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_repo.bundle import Bundle
from triton_repo.client import front_model
from triton_repo.tensors import ENSEMBLE
from workflow.run import write_bytes


def bundle_model(version: int) -> str:
    """The ensemble that is always this very bundle."""
    return f"{ENSEMBLE}_{version}"


def own_models(bundle: Bundle) -> set[str]:
    """Every model that this bundle brings along, its ensemble included."""
    return {f"{model}_{bundle.version}" for model in bundle.models}


def write_models(repository: Path, bundle: Bundle) -> None:
    """Put the bundle's own models into a repository; the files stay where they are."""
    for model in bundle.models:
        _write_model(repository, bundle, model, f"{model}_{bundle.version}")


def write_front(repository: Path, bundle: Bundle, name: str | None) -> None:
    """Let the ensemble that clients ask mean this bundle, from its next load on."""
    _write_model(repository, bundle, ENSEMBLE, front_model(name))


def remove_models(repository: Path, keep: set[str]) -> None:
    """Remove every model but these from a repository."""
    for folder in repository.iterdir() if repository.exists() else ():
        if folder.name not in keep:
            shutil.rmtree(folder)


def _write_model(repository: Path, bundle: Bundle, model: str, name: str) -> None:
    source, target = bundle.folder / model, repository / name
    target.mkdir(parents=True, exist_ok=True)
    for other in target.iterdir():  # Triton does not load a model with a version that is gone
        if other.is_symlink():
            other.unlink()
    version = target / str(bundle.version)
    # Relative: the deployment folder can be moved.
    version.symlink_to(os.path.relpath(source / version.name, target))
    text = (source / "config.pbtxt").read_text(encoding="utf-8")
    write_bytes(target / "config.pbtxt", _renamed(text, name, bundle.version).encode())


def _renamed(text: str, name: str, version: int) -> str:
    """A model's configuration under another name, its steps under those of the bundle."""
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    config.name = name
    for step in config.ensemble_scheduling.step:
        step.model_name = f"{step.model_name}_{version}"
    return str(text_format.MessageToString(config))
