"""Bundles: sealed, read, verified, compared; each kind of damage is refused in plain words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_repo.bundle import (
    MANIFEST,
    READY,
    check_compatible,
    read_bundle,
    seal,
    verified_bundle,
)
from workflow.errors import BundleError

SCHEMA: dict[str, Any] = {
    "inputs": {
        "user_id": {"dtype": "INT64", "dims": [1], "optional": False},
        "device": {"dtype": "STRING", "dims": [1], "optional": True},
    },
    "outputs": {"video_id": {"dtype": "INT64", "dims": [-1], "optional": False}},
    "max_batch_size": 8,
}


def make(folder: Path, version: int = 7, schema: dict[str, Any] = SCHEMA) -> Path:
    for model in ("marquee", "ranker"):
        (folder / model / str(version)).mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(f'name: "{model}"\n')
    (folder / "ranker" / str(version) / "ranker.onnx").write_bytes(b"weights")
    seal(folder, version, schema)
    return folder


def test_what_is_sealed_is_read_back(tmp_path: Path) -> None:
    bundle = verified_bundle(make(tmp_path))
    assert (bundle.version, bundle.schema, bundle.models) == (7, SCHEMA, ["marquee", "ranker"])
    assert set(bundle.sha256) == {
        "marquee/config.pbtxt", "ranker/config.pbtxt", "ranker/7/ranker.onnx",
    }  # fmt: skip
    assert (tmp_path / READY).read_text().strip() == bundle.seal
    (tmp_path / "ranker" / "7" / "__pycache__").mkdir()
    (tmp_path / "ranker" / "7" / "__pycache__" / "model.pyc").write_bytes(b"x")
    assert verified_bundle(tmp_path) == bundle  # what Python or Triton add is of no account


def change_a_byte(folder: Path) -> None:
    path = folder / "ranker" / "7" / "ranker.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"S")


def replace_by_a_link(folder: Path) -> None:
    path = folder / "ranker" / "7" / "ranker.onnx"
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text()) | changes
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed byte": (change_a_byte, "ranker/7/ranker.onnx of bundle 7 was changed"),
    "a missing file": (
        lambda folder: (folder / "ranker" / "7" / "ranker.onnx").unlink(),
        "ranker/7/ranker.onnx of bundle 7 is missing",
    ),
    "a link": (replace_by_a_link, "ranker/7/ranker.onnx of bundle 7 is missing"),
    "no READY": (lambda folder: (folder / READY).unlink(), "is not complete.*READY"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "bundle.json.*is damaged"),
    "half a manifest": (
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:50]),
        "SHA-256 is not the one in READY",
    ),
    "an edited manifest": (edit_manifest(version=8), "SHA-256 is not the one in READY"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(tmp_path: Path, kind: str) -> None:
    make(tmp_path)
    damage, words = DAMAGE[kind]
    damage(tmp_path)
    with pytest.raises(BundleError, match=words) as caught:
        verified_bundle(tmp_path)
    assert caught.value.next_step == "marquee export --force"


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "ranker/../../x"])
def test_names_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    """Even in a manifest that is sealed well."""
    make(tmp_path)
    (tmp_path / READY).unlink()
    edit_manifest(sha256={name: "0" * 64})(tmp_path)
    digest = hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()
    (tmp_path / READY).write_text(digest)
    with pytest.raises(BundleError, match="outside the bundle"):
        read_bundle(tmp_path)


# --- compatibility -------------------------------------------------------------------------------
def changed(path: str, value: Any) -> dict[str, Any]:
    """SCHEMA with one value replaced, or removed when it is None."""
    schema: dict[str, Any] = json.loads(json.dumps(SCHEMA))
    *parents, last = path.split(".")
    inner = schema
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return schema


TENSOR = {"dtype": "INT64", "dims": [1], "optional": True}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("inputs.device", None, "input device: gone, was STRING"),
        ("inputs.device.dtype", "INT64", r"input device: INT64 \[1\], was STRING \[1\]"),
        ("inputs.device.optional", False, "input device: .* required, was"),
        ("inputs.slot", TENSOR | {"optional": False}, "input slot: new and required"),
        ("outputs.video_id", None, "output video_id: gone"),
        ("outputs.video_id.dims", [1], r"output video_id: INT64 \[1\]"),
        ("max_batch_size", 4, "max_batch_size: 4, was 8"),
    ],
)
def test_what_clients_would_notice_is_refused(
    tmp_path: Path, path: str, value: Any, words: str
) -> None:
    live = read_bundle(make(tmp_path / "live"))
    new = read_bundle(make(tmp_path / "new", 8, changed(path, value)))
    with pytest.raises(BundleError, match=words):
        check_compatible(new, live)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("inputs.slot", TENSOR),
        ("inputs.user_id.optional", True),
        ("outputs.reason", TENSOR),
        ("max_batch_size", 16),
    ],
)
def test_what_clients_do_not_notice_is_accepted(tmp_path: Path, path: str, value: Any) -> None:
    live = read_bundle(make(tmp_path / "live"))
    check_compatible(read_bundle(make(tmp_path / "new", 8, changed(path, value))), live)
