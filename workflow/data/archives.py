"""Named members out of a zip or tar.gz archive; nothing else leaves it."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from workflow.console import Report
from workflow.errors import DataError

_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError,
    NotImplementedError,
)  # fmt: skip
_Member = tuple[str, int, Callable[[], Any]]  # name, bytes, how to open it


def copy_members(
    archive: Path,
    names: tuple[str, ...],
    folder: Path,
    *,
    max_bytes: int,
    title: str,
    next_step: str,
    report: Report,
) -> None:
    """Copy the files called `names`, wherever they lie in `archive`, into `folder`.

    A member is written under its bare name, so that no path or link in the archive leads outside.

    Args:
        archive: a .zip, else a gzipped tar file.
        max_bytes: a member larger than this is not what was published.
        title: what people call the archive; for messages.
    Raises:
        DataError: the archive is damaged, or a member is missing or too large.
    """
    missing = dict.fromkeys(names)
    members = _zip_members if archive.suffix == ".zip" else _tar_members
    try:
        for name, size, opened in members(archive):
            if name not in missing or size > max_bytes:
                continue
            report(len(names) - len(missing), len(names), f"unpacking {name}")
            with opened() as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            del missing[name]
            if not missing:  # a tar archive need not be read to its end
                return
    except _DAMAGED as error:
        raise DataError(
            f"the {title} archive is damaged", found=str(error), next_step=next_step
        ) from error
    raise DataError(f"the {title} archive has no usable {next(iter(missing))}", next_step=next_step)


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if not info.is_dir():
                yield PurePosixPath(info.filename).name, info.file_size, partial(opened.open, info)


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:gz") as opened:
        for info in opened:
            if info.isreg():
                name = PurePosixPath(info.name).name
                yield name, info.size, partial(opened.extractfile, info)
