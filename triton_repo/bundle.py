"""A bundle: everything that is exported, verified and swapped as one version.

A folder in the layout of a Triton model repository with two more files: `bundle.json` (version,
request and answer tensors, the SHA-256 of every file) and `READY` (the SHA-256 of bundle.json),
which is written last.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workflow.console import Report, no_report
from workflow.errors import BundleError
from workflow.run import write_bytes, write_json

FORMAT = 1
MANIFEST, READY = "bundle.json", "READY"
_EXPORT_AGAIN = "marquee export --force"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A sealed bundle.

    Attributes:
        folder: where it is.
        version: UTC unix second of the export; Triton's version of every model in it.
        schema: {"inputs", "outputs": {name: {"dtype", "dims", "optional"}}, "max_batch_size"}.
        sha256: digest of each file, by path within the folder.
        seal: digest of the manifest; two bundles with the same seal are the same.
    """

    folder: Path
    version: int
    schema: dict[str, Any]
    sha256: dict[str, str]
    seal: str

    @property
    def models(self) -> list[str]:
        """Names of the models in it."""
        return sorted(name.split("/")[0] for name in self.sha256 if name.endswith("/config.pbtxt"))


def next_version(folder: Path) -> int:
    """For a bundle that replaces the one in `folder`: the UTC second, above the replaced one's."""
    with suppress(BundleError):
        return max(int(time.time()), read_bundle(folder).version + 1)
    return int(time.time())


def seal(
    folder: Path, version: int, schema: dict[str, Any], known: dict[str, str] | None = None
) -> None:
    """Write the manifest of what is in `folder`, then the READY marker.

    Args:
        known: digests of files that were taken over from a sealed bundle; the others are read.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    given = known or {}
    hashes = {name: given.get(name) or file_sha256(folder / name) for name in names}
    manifest = {"format": FORMAT, "version": version, "schema": schema, "sha256": hashes}
    write_json(folder / MANIFEST, manifest)
    write_bytes(folder / READY, f"{file_sha256(folder / MANIFEST)}\n".encode())


def read_bundle(folder: Path) -> Bundle:
    """What a sealed folder says of itself; its files are not looked at.

    Raises:
        BundleError: no READY marker, or a manifest that is not the sealed one.
    """
    if not (folder / READY).exists():
        raise BundleError(
            f"the bundle in {folder} is not complete",
            expected=f"a {READY} file, written last",
            next_step=_EXPORT_AGAIN,
        )
    try:
        content = (folder / MANIFEST).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != (folder / READY).read_text(encoding="ascii").strip():
            raise ValueError("its SHA-256 is not the one in READY")
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {FORMAT}")
        bundle = Bundle(
            folder, int(manifest["version"]), manifest["schema"], manifest["sha256"], digest
        )
        _check_names(bundle)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(
            f"{MANIFEST} of the bundle in {folder} is damaged",
            found=reason,
            next_step=_EXPORT_AGAIN,
        ) from None
    return bundle


def _check_names(bundle: Bundle) -> None:
    """A manifest from elsewhere must not name files outside its folder."""
    for name in bundle.sha256:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} is outside the bundle")


def verify(bundle: Bundle, report: Report = no_report) -> None:
    """Check that every file of the manifest is there, byte for byte; others are of no account.

    Raises:
        BundleError: a file is missing or changed.
    """
    for done, (name, expected) in enumerate(bundle.sha256.items()):
        report(done, len(bundle.sha256), name.partition("/")[0])
        found = file_sha256(bundle_file(bundle, name))
        if found != expected:
            raise BundleError(
                f"{name} of bundle {bundle.version} was changed after the export",
                expected=f"SHA-256 {expected[:12]}…",
                found=f"{found[:12]}…",
                next_step=_EXPORT_AGAIN,
            )


def bundle_file(bundle: Bundle, name: str) -> Path:
    """Where a file of the manifest is.

    Raises:
        BundleError: it is missing, or not a plain file.
    """
    path = bundle.folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(
            f"{name} of bundle {bundle.version} is missing",
            expected=f"a plain file in {bundle.folder}",
            next_step=_EXPORT_AGAIN,
        )
    return path


def verified_bundle(folder: Path) -> Bundle:
    """`read_bundle`, then `verify`."""
    bundle = read_bundle(folder)
    verify(bundle)
    return bundle


def check_compatible(new: Bundle, live: Bundle) -> None:
    """Whoever asks the live bundle must be able to ask the new one the same way.

    Raises:
        BundleError: a tensor is gone, changed or newly required, or batches must be smaller.
    """
    theirs, ours = live.schema, new.schema
    problems = [
        f"{kind[:-1]} {name}: {_words(ours[kind].get(name))}, was {_words(tensor)}"
        for kind in ("inputs", "outputs")
        for name, tensor in theirs[kind].items()
        if not _replaces(ours[kind].get(name), tensor)
    ]
    problems += [
        f"input {name}: new and required"
        for name, tensor in ours["inputs"].items()
        if name not in theirs["inputs"] and not tensor["optional"]
    ]
    if ours["max_batch_size"] < theirs["max_batch_size"]:
        problems.append(f"max_batch_size: {ours['max_batch_size']}, was {theirs['max_batch_size']}")
    if problems:
        raise BundleError(
            f"bundle {new.version} does not answer the requests of the live bundle {live.version}",
            found="; ".join(problems),
            next_step="deploy it to a folder of its own with --deployment",
        )


def _replaces(new: dict[str, Any] | None, old: dict[str, Any]) -> bool:
    return (
        new is not None
        and (new["dtype"], new["dims"]) == (old["dtype"], old["dims"])
        and (new["optional"] or not old["optional"])
    )


def _words(tensor: dict[str, Any] | None) -> str:
    if tensor is None:
        return "gone"
    required = "" if tensor["optional"] else " required"
    return f"{tensor['dtype']} {tensor['dims']}{required}"


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
