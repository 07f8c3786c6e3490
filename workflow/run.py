"""A run folder: every artefact's path, atomic writes, and the manifest of finished stages."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow.errors import MissingArtifactError, StorageError

FORMAT_VERSION = 1


class Run:
    """The artefacts of one run. Stages do I/O only through these paths.

    Args:
        root: the run folder; made when a stage writes into it.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    # --- inputs of the run -------------------------------------------------------------------
    @property
    def config_file(self) -> Path:
        return self.root / "config.json"

    @property
    def contract_file(self) -> Path:
        return self.root / "contract.json"

    @property
    def source(self) -> Path:
        """Raw files of built-in datasets: simulated, or converted from the published ones."""
        return self.root / "source"

    # --- stage outputs -----------------------------------------------------------------------
    @property
    def data(self) -> Path:
        """Validated tables: events/part-*.parquet, users.parquet, videos.parquet, report.json."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """Fitted workflows, encoded tables, histories, samples, spec.json."""
        return self.root / "features"

    @property
    def retriever(self) -> Path:
        return self.root / "models" / "retriever"

    @property
    def ranker(self) -> Path:
        return self.root / "models" / "ranker"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def repository(self) -> Path:
        """The Triton model repository."""
        return self.root / "model_repository"

    @property
    def container_repository(self) -> Path:
        """The same bundle for a stock Triton in a container."""
        return self.root / "container_repository"

    @property
    def catalogue(self) -> Path:
        """What `marquee refresh` added and withdrew, by version of the bundle that has it."""
        return self.root / "catalogue"

    @property
    def state_file(self) -> Path:
        """What users have watched since the export (SQLite)."""
        return self.root / "state" / "events.sqlite"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def benchmark(self) -> Path:
        return self.root / "benchmark"

    @property
    def batch(self) -> Path:
        """Recommendations for many users: part-*.parquet and _manifest.json."""
        return self.root / "batch"

    @property
    def frontier(self) -> Path:
        """What serving could trade: frontier.json, frontier.html, and the configurations tried."""
        return self.root / "frontier"

    @property
    def staged(self) -> Path:
        """What `marquee update` makes, itself laid out as a run, until it takes its place."""
        return self.root / "update"

    # --- bookkeeping -------------------------------------------------------------------------
    @property
    def manifest_file(self) -> Path:
        return self.root / "manifest.json"

    @property
    def endpoint_file(self) -> Path:
        """Where a running `marquee serve` of this run says its process id and ports."""
        return self.root / "endpoint.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def manifest(self) -> dict[str, Any]:
        """Stage name -> what the stage recorded; empty when nothing was made yet."""
        if not self.manifest_file.exists():
            return {}
        try:
            manifest: dict[str, Any] = json.loads(self.manifest_file.read_text())
        except json.JSONDecodeError:
            return {}
        return manifest if manifest.get("format") == FORMAT_VERSION else {}

    def record(self, stage: str, key: str, seconds: float, summary: dict[str, Any]) -> None:
        """Note that `stage` finished with the inputs that `key` stands for."""
        manifest = self.manifest() or {"format": FORMAT_VERSION, "stages": {}}
        manifest["stages"][stage] = {
            "key": key,
            "seconds": round(seconds, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "summary": summary,
        }
        write_json(self.manifest_file, manifest)

    def updates(self) -> list[dict[str, Any]]:
        """What `marquee update` recorded of each day that it appended, oldest first."""
        updates: list[dict[str, Any]] = self.manifest().get("updates", [])
        return updates

    def recorded(self, stage: str) -> dict[str, Any] | None:
        entry: dict[str, Any] | None = self.manifest().get("stages", {}).get(stage)
        return entry

    def require(self, path: Path, what: str, next_step: str) -> Path:
        """`path` if it exists, else an error that says what was found instead.

        Raises:
            MissingArtifactError: the run folder or the artefact is missing.
        """
        if not self.root.exists():
            raise MissingArtifactError(
                f"no run folder {self.root}", next_step=f"marquee run --run {self.root}"
            )
        if not path.exists():
            made = sorted(self.manifest().get("stages", {})) or ["nothing yet"]
            raise MissingArtifactError(
                f"no {what} in run {self.root}",
                expected=f"{path.relative_to(self.root)}",
                found="finished stages: " + ", ".join(made),
                next_step=f"{next_step} --run {self.root}",
            )
        return path


def content_key(*parts: Any) -> str:
    """A short hash of JSON-like values (paths stand for their names, sizes and mtimes)."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_plain(item) for item in part]
    if isinstance(part, Path):
        if part.is_dir():
            return [_plain(path) for path in sorted(part.rglob("*")) if path.is_file()]
        stat = part.stat() if part.exists() else None
        return [part.name, stat.st_size, stat.st_mtime_ns] if stat else [part.name, None]
    return part.model_dump(mode="json") if hasattr(part, "model_dump") else part


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder; on success it replaces `target`, on any failure `target` stays.

    Raises:
        StorageError: the disk is full or refuses the write.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    with storage_errors(target):
        temporary.mkdir()
        try:
            yield temporary
            swap_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def swap_folder(new: Path, target: Path) -> None:
    """Let `new` take the place and name of `target` (which need not exist), all on one disk."""
    sync_tree(new)
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _sync(target.parent)
    for one in target.parent.glob(f".{target.name}.old-*"):  # one that a kill left, too
        shutil.rmtree(one, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Clear what a killed process left; bring back a target that it had moved aside."""
    for old in target.parent.glob(f".{target.name}.old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for temporary in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically: temporary name, fsync, rename. Only its owner may read `private`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with storage_errors(path):
        try:
            with temporary.open("wb") as file:
                if private:
                    os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write JSON atomically, keys sorted."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    write_bytes(path, text.encode(), private=private)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "disk full", "quota" and "read-only" into a StorageError that names the path."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        free = shutil.disk_usage(_existing(path)).free / 1e6
        raise StorageError(
            f"cannot write {path}: {reason}",
            found=f"{free:.0f} MB free",
            next_step="free some space or choose another folder with --run",
        ) from error


_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def _refusal(error: Exception) -> str | None:
    """Why the disk refused, if it did; TensorFlow and FAISS only say so in their message."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in _REFUSALS else None
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return os.strerror(errno.ENOSPC)  # how numpy reports a write that was cut short
    reasons = (os.strerror(number) for number in _REFUSALS)
    return next((reason for reason in reasons if reason in str(error)), None)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def sync_tree(folder: Path) -> None:
    """Wait until everything in the folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
