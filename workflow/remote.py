"""Folders in object storage, by URL: s3://bucket/prefix, and what else fsspec has a driver for.

Credentials and endpoints come from where the driver looks for them; for S3 that is the chain of the
AWS tools (AWS_ACCESS_KEY_ID, ~/.aws, the machine's role; AWS_ENDPOINT_URL for other servers).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union, cast

from workflow.errors import ConfigError, DataError, MarqueeError, StorageError

if TYPE_CHECKING:
    from upath import UPath

Folder: TypeAlias = Union[Path, "UPath"]  # or a file in one
BLOCK_BYTES = 4 << 20  # what one request reads of an object
_CHECK = "check the URL, the credentials (AWS_ACCESS_KEY_ID, ~/.aws) and AWS_ENDPOINT_URL"


def is_url(text: str) -> bool:
    """Whether `text` names a place by URL, and not a path on this machine."""
    return "://" in text


def as_folder(text: str) -> Folder:
    """A path, or a folder in object storage, which is not asked yet.

    Raises:
        ConfigError: the URL's scheme is not known.
    """
    if not is_url(text):
        return Path(text)
    from upath import UPath

    try:
        folder = UPath(text)
    except ValueError as error:
        raise ConfigError(
            f"{text} cannot be read", expected="a URL like s3://bucket/prefix", found=str(error)
        ) from None
    return Path(folder.path) if folder.protocol in ("file", "local") else folder


def as_bucket(text: str) -> UPath:
    """A folder in object storage to write to or to fetch from.

    Raises:
        ConfigError: it is not a URL of object storage, or its driver is not installed.
    """
    folder = as_folder(text)
    if isinstance(folder, Path):
        raise ConfigError(
            f"{text} is not in object storage", expected="a URL like s3://bucket/models"
        )
    _driver(folder).invalidate_cache()
    return folder


def check_folder(folder: Folder) -> None:
    """Raise unless the folder is there and may be listed; forgets what was listed before.

    Raises:
        DataError: it is not, with the reason that the storage gave.
        ConfigError: the driver for its URL is not installed.
    """
    if isinstance(folder, Path):
        if not folder.is_dir():
            raise DataError(f"no source folder {folder}", next_step="correct --source")
        return
    try:
        _driver(folder).invalidate_cache()
        folder.fs.ls(folder.path, detail=False)
    except MarqueeError:
        raise
    except Exception as error:
        raise DataError(
            f"no source folder {folder}", found=reason(error), next_step=_CHECK
        ) from error


def open_file(file: Folder) -> BinaryIO:
    """Open for reading; an object is read block by block, as asked for."""
    if isinstance(file, Path):
        return file.open("rb")
    options: dict[str, Any] = {"block_size": BLOCK_BYTES, "cache_type": "readahead"}
    return cast(BinaryIO, file.open("rb", **options))


def content_mark(file: Folder, name: str) -> Any:
    """Changes when the file does, for `content_key`: a path, or an object's size and ETag.

    Args:
        name: of the file within its folder.
    """
    if isinstance(file, Path):
        return file
    with as_os_errors(file):
        known = file.fs.info(file.path)
        mark = known.get("ETag") or known.get("etag") or file.fs.modified(file.path)
    return [name, known["size"], str(mark)]


@contextmanager
def as_os_errors(file: Folder) -> Iterator[None]:
    """What a driver raises in its own words becomes OSError, as from a disk."""
    try:
        yield
    except (OSError, MarqueeError):
        raise
    except Exception as error:
        if isinstance(file, Path):
            raise
        raise OSError(reason(error)) from error


@contextmanager
def storage_errors(what: str, url: Folder) -> Iterator[None]:
    """What goes wrong with an object becomes a StorageError.

    Args:
        what: such as "read".
    """
    try:
        yield
    except MarqueeError:
        raise
    except Exception as error:
        raise StorageError(f"cannot {what} {url}", found=reason(error), next_step=_CHECK) from error


def reason(error: Exception) -> str:
    """An error's own words, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _driver(folder: UPath) -> Any:
    try:
        return folder.fs
    except ImportError as error:
        raise ConfigError(
            f"{folder} needs a driver that is not installed",
            found=reason(error),
            next_step="pip install it beside marquee",
        ) from None
