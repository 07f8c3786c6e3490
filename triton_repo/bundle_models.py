"""A bundle's models under names of their own, so that two bundles can be loaded side by side.

Bundle 17 becomes `query_tower_17`, `retrieval_17`, `ranker_17`, `fused_17` and the ensemble
`marquee_17` of the last. What clients ask are ensembles over the same fused step: `marquee`, and
`marquee_<name>` for a bundle that is deployed under a name. Replacing one of them changes all
stages at once. `events` has an ensemble of one step in front too, and `page` is one over the step
that makes pages; both belong to the live bundle.

Measured with Triton 2.51: an ensemble whose stages are loaded is replaced in milliseconds and no
request fails; one with a stage that does not load takes the old ensemble down with it. So the
bundle's own ensemble goes first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_repo.bundle import Bundle
from triton_repo.client import front_model
from triton_repo.page_tensors import PAGE
from triton_repo.tensors import ENSEMBLE, EVENTS
from workflow.run import write_bytes


def bundle_model(version: int) -> str:
    """The ensemble that is always this very bundle."""
    return f"{ENSEMBLE}_{version}"


def own_models(bundle: Bundle) -> set[str]:
    """Every model that this bundle brings along, its ensemble included."""
    return {f"{model}_{bundle.version}" for model in bundle.models}


def top_models(bundle: Bundle) -> list[str]:
    """Those of `own_models` that are a step of no other: loading them loads all."""
    wholes = [_config(bundle, model) for model in (ENSEMBLE, PAGE) if model in bundle.models]
    inner = {step.model_name for one in wholes for step in one.ensemble_scheduling.step}
    return [f"{model}_{bundle.version}" for model in bundle.models if model not in inner]


def front_models(bundle: Bundle, name: str | None) -> list[str]:
    """What clients ask of a bundle that serves live (None) or under a name."""
    if name is not None:
        return [front_model(name)]
    return [ENSEMBLE, EVENTS] + [PAGE] * (PAGE in bundle.models)


def write_models(repository: Path, bundle: Bundle) -> None:
    """Put the bundle's own models into a repository; the files stay where they are."""
    for model in bundle.models:
        config = _named(_config(bundle, model), bundle, f"{model}_{bundle.version}")
        _write_model(repository, bundle, model, config)


def write_front(repository: Path, bundle: Bundle, name: str | None) -> None:
    """Let the ensembles that clients ask mean this bundle, from their next load on."""
    for front in front_models(bundle, name):
        model = front if name is None else ENSEMBLE
        config = _config(bundle, model)
        if model == EVENTS:
            config = _one_step(config, bundle)
        _write_model(repository, bundle, model, _named(config, bundle, front))


def remove_models(repository: Path, keep: set[str]) -> None:
    """Remove every model but these from a repository."""
    for folder in repository.iterdir() if repository.exists() else ():
        if folder.name not in keep:
            shutil.rmtree(folder)


def _write_model(repository: Path, bundle: Bundle, model: str, config: Any) -> None:
    source, target = bundle.folder / model / str(bundle.version), repository / config.name
    target.mkdir(parents=True, exist_ok=True)
    for other in target.iterdir():  # Triton does not load a model with a version that is gone
        if other.is_symlink():
            other.unlink()
    # Relative: the deployment folder can be moved.
    (target / source.name).symlink_to(os.path.relpath(source, target))
    text = text_format.MessageToString(config)
    write_bytes(target / "config.pbtxt", text.encode())


def _config(bundle: Bundle, model: str) -> Any:
    text = (bundle.folder / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _named(config: Any, bundle: Bundle, name: str) -> Any:
    """A configuration under another name, its steps under those of the bundle."""
    config.name = name
    for step in config.ensemble_scheduling.step:
        step.model_name = f"{step.model_name}_{bundle.version}"
    return config


def _one_step(model: Any, bundle: Bundle) -> Any:
    """An ensemble that passes everything on to one model."""
    ensemble = model_config_pb2.ModelConfig(
        name=model.name,
        platform="ensemble",
        max_batch_size=model.max_batch_size,
        version_policy=model.version_policy,
        input=model.input,
        output=model.output,
    )
    step = ensemble.ensemble_scheduling.step.add()
    step.model_name, step.model_version = model.name, bundle.version
    for tensor in model.input:
        step.input_map[tensor.name] = tensor.name
    for tensor in model.output:
        step.output_map[tensor.name] = tensor.name
    return ensemble
