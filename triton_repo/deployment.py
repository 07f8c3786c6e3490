"""A deployment folder: the bundles at hand, and an atomic pointer that says which of them serve.

bundles/<version>/   complete, verified copies (hard links where possible)
current.json         the pointer; replaced by one rename
repository/          what Triton reads; made from the pointer at each start
state/               what users have watched since the export
endpoint.json, logs/ of the running server
"""

from __future__ import annotations

import compileall
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from triton_repo.bundle import MANIFEST, READY, Bundle, bundle_file, read_bundle, verify
from workflow.console import Report, no_report
from workflow.errors import BundleError, ConfigError, MissingArtifactError, ServingError
from workflow.run import read_json, replaced_folder, write_json

LIVE = "live"  # what people call the bundle without a name
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Pointer:
    """Which bundles serve, by version.

    Attributes:
        live: what the model `marquee` answers with; None before the first deploy.
        previous: what `rollback` goes back to.
        named: name -> version of bundles that serve beside it, for A/B and shadow traffic.
    """

    live: int | None = None
    previous: int | None = None
    named: dict[str, int] = field(default_factory=dict)

    def deployed(self, version: int, name: str | None) -> Pointer:
        """After `version` was deployed, live or under a name."""
        if name is not None:
            return replace(self, named={**self.named, name: version})
        if version == self.live:
            return self
        return replace(self, live=version, previous=self.live)

    def rolled_back(self, name: str | None) -> Pointer:
        """Live and previous change places; a named bundle is taken away.

        Raises:
            ServingError: there is nothing to go back to, or no such name.
        """
        if name is not None:
            self.version_of(name)
            return replace(self, named={k: v for k, v in self.named.items() if k != name})
        if self.previous is None:
            raise ServingError(
                "there is no previous bundle to go back to", next_step="marquee deploy RUN"
            )
        return replace(self, live=self.previous, previous=self.live)

    def version_of(self, name: str) -> int:
        """The version of a named bundle.

        Raises:
            ServingError: there is no such name.
        """
        if name not in self.named:
            raise ServingError(f"no bundle is deployed as {name}", expected=_listed(self.named))
        return self.named[name]

    @property
    def serving(self) -> dict[str | None, int]:
        """Name (None: live) -> version, of everything that answers."""
        serving: dict[str | None, int] = {} if self.live is None else {None: self.live}
        serving.update(self.named)
        return serving

    @property
    def kept(self) -> set[int]:
        """Versions whose bundles stay on disk."""
        return {*self.serving.values(), *([] if self.previous is None else [self.previous])}


class Deployment:
    """The paths of a deployment folder, and what is done with them.

    Args:
        root: the folder; made by the first deploy.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.bundles = self.root / "bundles"
        self.repository = self.root / "repository"
        self.pointer_file = self.root / "current.json"
        self.endpoint_file = self.root / "endpoint.json"
        self.logs = self.root / "logs"
        self.state_file = self.root / "state" / "events.sqlite"

    def __str__(self) -> str:
        return str(self.root)

    def pointer(self) -> Pointer:
        """What `current.json` says; an empty pointer before the first deploy.

        Raises:
            BundleError: the file is damaged.
        """
        if not self.pointer_file.exists():
            return Pointer()
        try:
            return _parsed(read_json(self.pointer_file))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BundleError(
                f"{self.pointer_file} is damaged",
                expected='{"live": VERSION, "previous": VERSION or null, "named": {}}',
                found=f"bundles {', '.join(map(str, self.versions())) or 'none'}",
            ) from None

    def served_pointer(self) -> Pointer:
        """`pointer`, of a folder that something was deployed to.

        Raises:
            MissingArtifactError: nothing was.
        """
        pointer = self.pointer()
        if pointer.live is None:
            raise MissingArtifactError(
                f"nothing is deployed in {self.root}",
                next_step=f"marquee deploy RUN --deployment {self.root}",
            )
        return pointer

    def point(self, pointer: Pointer) -> None:
        """Replace `current.json` by one rename."""
        write_json(self.pointer_file, asdict(pointer))

    def versions(self) -> list[int]:
        """Versions of the bundles on disk."""
        folders = self.bundles.iterdir() if self.bundles.exists() else ()
        return sorted(int(path.name) for path in folders if path.name.isdigit())

    def bundle(self, version: int) -> Bundle:
        """A bundle of this folder; its files are not looked at."""
        return read_bundle(self.bundles / str(version))

    def install(self, source: Path, report: Report = no_report) -> Bundle:
        """Copy a bundle into `bundles/`; it appears there complete and verified, or not at all.

        Raises:
            BundleError: it is incomplete or changed, or another bundle has its version.
        """
        bundle = read_bundle(source)
        target = self.bundles / str(bundle.version)
        if target.exists() and _seal(target) == bundle.seal:
            installed = replace(bundle, folder=target)
            verify(installed, report)
            return installed
        if bundle.version in self.pointer().kept:
            raise BundleError(
                f"another bundle of version {bundle.version} is deployed in {self.root}",
                next_step="marquee export --force, then deploy again",
            )
        with replaced_folder(target) as folder:
            _copy(bundle, folder)
            verify(replace(bundle, folder=folder), report)
        return replace(bundle, folder=target)

    def prune(self, pointer: Pointer) -> list[int]:
        """Remove the bundles that the pointer does not keep; returns their versions."""
        old = [version for version in self.versions() if version not in pointer.kept]
        kept = set(map(str, pointer.kept))
        for path in self.bundles.iterdir() if self.bundles.exists() else ():
            if path.name not in kept:  # half copies of killed processes too
                shutil.rmtree(path, ignore_errors=True)
        return old

    @contextmanager
    def locked(self, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[None]:
        """One process at a time changes the folder; the kernel frees it when that one dies.

        Raises:
            ServingError: another process holds it for longer than `timeout_s`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as file:
            _wait_for_lock(file, timeout_s, self.root)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def check_name(name: str | None) -> None:
    """A name becomes part of a model's name.

    Raises:
        ConfigError: it does not fit.
    """
    if name is not None and (not _NAME.fullmatch(name) or name == LIVE):
        raise ConfigError(
            f"{name!r} is no name for a bundle",
            expected="a lower-case letter, then letters, digits or _ (at most 32), not " + LIVE,
        )


def _parsed(value: Any) -> Pointer:
    live, previous = (None if value[key] is None else int(value[key]) for key in
                      ("live", "previous"))  # fmt: skip
    return Pointer(live, previous, {str(k): int(v) for k, v in value["named"].items()})


def _seal(folder: Path) -> str | None:
    try:
        return read_bundle(folder).seal
    except BundleError:
        return None


def _copy(bundle: Bundle, folder: Path) -> None:
    """The manifest's files and nothing else, hard-linked; then the code compiled beside them.

    Triton loads a model again whose folder changed since, so Python must not write there later.
    """
    for name in (*bundle.sha256, MANIFEST, READY):
        source, target = bundle_file(bundle, name), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(source, target)
    compileall.compile_dir(folder, quiet=2)


def _wait_for_lock(file: Any, timeout_s: float, root: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise ServingError(
                    f"deployment {root} is being changed by process {file.read().strip()}",
                    next_step="wait for it, or choose another folder with --deployment",
                ) from None
            time.sleep(0.05)
        else:
            return


def _listed(named: dict[str, int]) -> str:
    return (
        "one of " + ", ".join(sorted(named)) if named else "none is: marquee deploy RUN --as NAME"
    )
