"""Bundles that differ in a known way, made from an exported one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from triton_repo.bundle import MANIFEST, READY, read_bundle, seal

# What each stage of a marked bundle does to its own answer: every mixture shows in the page.
_MARKED = """

import numpy as np

class Stage(Stage):
    def run(self, inputs):
        out = super().run(inputs)
        {change}
        return out
"""
_CHANGES = {
    "query_tower": "out['query_value'] = out['query_value'] + np.float32(0.1 * {mark})",
    "retrieval": "out['candidate_row'] = np.roll(out['candidate_row'], {mark}, axis=1)",
    "ranker": "out['scores'] = out['scores'] + np.float32({mark})",
}


def variant(source: Path, target: Path, version: int, mark: int = 0) -> Path:
    """A copy of an exported bundle under another version whose answers differ by `mark`."""
    old = read_bundle(source)
    ignored = shutil.ignore_patterns("__pycache__", MANIFEST, READY)
    shutil.copytree(source, target, ignore=ignored)
    for model in old.models:
        (target / model / str(old.version)).rename(target / model / str(version))
        config = target / model / "config.pbtxt"
        config.write_text(config.read_text().replace(str(old.version), str(version)))
        if mark and model in _CHANGES:
            code = target / model / str(version) / "stage.py"
            change = _CHANGES[model].format(mark=mark)
            code.write_text(code.read_text() + _MARKED.format(change=change))
    seal(target, version, old.schema)
    return target


def reseal(folder: Path, **changes: Any) -> None:
    """Seal a changed bundle again, as an exporter with a mistake would."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).unlink()
    (folder / READY).unlink()
    seal(folder, manifest["version"], manifest["schema"])


class Mixtures:
    """What the stages of one or two bundles answer together, without a server."""

    def __init__(self, folders: dict[int, Path]) -> None:
        self.stages = {
            (name, version): _stage(folder / name / str(version))
            for version, folder in folders.items()
            for name in _CHANGES
        }
        self.versions = sorted(folders)

    def answer(self, inputs: dict[str, Any], versions: tuple[int, ...]) -> dict[str, Any]:
        """The answer when each stage comes from the bundle given for it."""
        known: dict[str, Any] = {"top_k": None, "time": None, **inputs}
        for name, version in zip(_CHANGES, versions, strict=True):
            stage = self.stages[name, version]
            assert not stage.check(known, [len(inputs["user_id"])])
            known |= stage.finish(stage.run(known))
        return known

    def mixed(self) -> list[tuple[int, ...]]:
        """All ways to take the stages from more than one bundle."""
        ways = product(self.versions, repeat=len(_CHANGES))
        return [way for way in ways if len(set(way)) > 1]


def _stage(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"stage_{folder.name}", folder / "stage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Stage(folder)
