"""Where the packages come from, and who may import what."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("workflow", "models", "triton_repo")
TEMPLATES = ROOT / "triton_repo" / "templates"


def imported_by(file: Path) -> set[str]:
    """Top-level names of every import in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def importers_of(*names: str) -> set[str]:
    """The packages with a file that imports one of `names`."""
    wanted = set(names)
    return {file.relative_to(ROOT).parts[0] for file in modules() if imported_by(file) & wanted}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_the_one_in_this_repository(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ == str(ROOT / package / "__init__.py")


def test_only_models_imports_tensorflow() -> None:
    assert importers_of("tensorflow", "keras", "tf_keras") <= {"models"}


def test_only_triton_repo_imports_the_triton_client() -> None:
    assert importers_of("tritonclient", "pytriton") <= {"triton_repo"}


def test_served_files_import_none_of_our_packages() -> None:
    ours = set(PACKAGES)
    guilty = [str(file) for file in TEMPLATES.rglob("*.py") if imported_by(file) & ours]
    assert not guilty, f"an exported repository runs without our packages: {guilty}"


def test_nothing_imports_pickle() -> None:
    assert not importers_of("pickle", "cloudpickle", "dill", "joblib", "shelve")


@pytest.mark.parametrize("folder", ["docker", "notebooks", "tests"])
def test_folders_that_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_workflow_module_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip() for layer in layers for name in layer.split(":")}
    existing = {
        f"workflow.{path.stem}"
        for path in (ROOT / "workflow").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    missing = existing - named - {"workflow.__init__"}
    assert not missing, f"name them in [tool.importlinter] layers of pyproject.toml: {missing}"
