"""Bundles in object storage: published by one machine, fetched by those that serve.

    bundles/<version>/   the bundle's files, then bundle.json, then READY
    current.json         which bundle is the current one; replaced last, by one request

What was sent is read back and hashed before READY says that it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_repo.bundle import MANIFEST, READY, Bundle, bundle_file, read_bundle, verify
from workflow.console import Report, no_report
from workflow.errors import BundleError, ConfigError
from workflow.remote import BLOCK_BYTES, open_file, storage_errors
from workflow.run import replaced_folder

if TYPE_CHECKING:
    from upath import UPath

POINTER = "current.json"
_NEW_VERSION = "marquee export --force, then marquee publish"


def publish(folder: Path, url: UPath, report: Report = no_report) -> dict[str, Any]:
    """Copy a sealed bundle to `url` and make it the current one there.

    Whole files that an interrupted call left are not sent again. The current bundle published
    again changes nothing; an older one becomes the current one again.

    Returns:
        {"url", "version", "seal", "num_sent"}, the last in files.
    Raises:
        BundleError: the bundle is damaged, another one has its version there, or what arrived
            is not what was sent.
        StorageError: the storage refused, or cannot be reached.
    """
    bundle = read_bundle(folder)
    verify(bundle, report)
    place = url / "bundles" / str(bundle.version)
    ready, num_sent = _read(place / READY), 0
    if ready is None:
        num_sent = _send_all(bundle, place, report)
    elif ready.decode().strip() != bundle.seal:
        raise BundleError(
            f"{place} has another bundle of the same version",
            next_step=f"another URL for another target, or {_NEW_VERSION}",
        )
    pointer = json.dumps({"seal": bundle.seal, "version": bundle.version}).encode()
    if _read(url / POINTER) != pointer:
        _write(url / POINTER, pointer)
    return {"url": str(url), "version": bundle.version, "seal": bundle.seal, "num_sent": num_sent}


def fetch(
    url: UPath, target: Path, *, version: int | None = None, report: Report = no_report
) -> Bundle:
    """Copy a published bundle into `target`: all of it with the right hashes, or nothing.

    Args:
        target: a folder to make, or one with a bundle, which is replaced unless it is the same.
        version: None is the current one.
    Raises:
        ConfigError: `target` holds something else.
        BundleError: the bundle is not there, not complete, or was changed.
        StorageError: the storage refused, or cannot be reached.
    """
    _check_target(target)
    version = _current_version(url) if version is None else version
    place = url / "bundles" / str(version)
    ready = _read(place / READY)
    if ready is None:
        raise BundleError(
            f"there is no complete bundle in {place}",
            expected=f"a {READY} object, written last",
            next_step=f"marquee publish RUN {url}",
        )
    if (target / READY).exists() and (target / READY).read_bytes() == ready:
        same = read_bundle(target)
        verify(same, report)
        return same
    with replaced_folder(target) as folder:
        (folder / READY).write_bytes(ready)
        (folder / MANIFEST).write_bytes(_read(place / MANIFEST) or b"")
        bundle = read_bundle(folder)
        for done, (name, digest) in enumerate(bundle.sha256.items()):
            report(done, len(bundle.sha256), name.partition("/")[0])
            _receive(place / name, folder / name, digest)
    return replace(bundle, folder=target)


def _send_all(bundle: Bundle, place: UPath, report: Report) -> int:
    """Send what is not there yet, the READY marker last; the number of files."""
    num_sent = 2
    for done, (name, digest) in enumerate(bundle.sha256.items()):
        report(done, len(bundle.sha256), name.partition("/")[0])
        num_sent += _send(bundle_file(bundle, name), place / name, digest)
    for name in (MANIFEST, READY):
        _write(place / name, (bundle.folder / name).read_bytes())
    return num_sent


def _send(source: Path, target: UPath, digest: str) -> bool:
    """Send a file unless it is there; whether it had to be."""
    if _size(target) == source.stat().st_size and _sha256(target) == digest:
        return False
    with storage_errors("write", target):
        target.fs.put_file(str(source), target.path)
    if _sha256(target) != digest:
        raise BundleError(f"{target} is not what was sent", next_step="marquee publish again")
    return True


def _receive(source: UPath, target: Path, digest: str) -> None:
    """Copy an object to a file.

    Raises:
        BundleError: its content is not the published one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    hashed = hashlib.sha256()
    with target.open("wb") as file:
        for block in _blocks(source):
            hashed.update(block)
            file.write(block)
    if hashed.hexdigest() != digest:
        raise BundleError(
            f"{source} was changed after it was published",
            expected=f"SHA-256 {digest[:12]}…",
            found=f"{hashed.hexdigest()[:12]}…",
            next_step=_NEW_VERSION,
        )


def _check_target(target: Path) -> None:
    """Never replace a folder of something else."""
    if target.exists() and not (target / READY).exists() and any(target.iterdir()):
        raise ConfigError(
            f"{target} holds something that is not a bundle",
            expected="a new folder, an empty one, or one that marquee fetch made",
        )


def _current_version(url: UPath) -> int:
    with storage_errors("read", url / POINTER):
        return int(json.loads(url.fs.cat_file((url / POINTER).path))["version"])


# --- objects -------------------------------------------------------------------------------------
def _read(file: UPath) -> bytes | None:
    """The content of a small object, None where there is none."""
    with storage_errors("read", file):
        try:
            content: bytes = file.fs.cat_file(file.path)
        except FileNotFoundError:
            return None
        return content


def _write(file: UPath, content: bytes) -> None:
    with storage_errors("write", file):
        file.fs.pipe_file(file.path, content)


def _size(file: UPath) -> int | None:
    with storage_errors("read", file):
        try:
            size: int = file.fs.info(file.path)["size"]
        except FileNotFoundError:
            return None
        return size


def _sha256(file: UPath) -> str:
    hashed = hashlib.sha256()
    for block in _blocks(file):
        hashed.update(block)
    return hashed.hexdigest()


def _blocks(file: UPath) -> Iterator[bytes]:
    with storage_errors("read", file), open_file(file) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
