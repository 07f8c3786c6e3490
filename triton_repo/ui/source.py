"""Where the gateway gets its answers: Triton, the bundle's files, and a window of what was seen."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from triton_repo.client import EVENTS, PAGE, Client
from triton_repo.deployment import Deployment
from triton_repo.page_answer import Page
from triton_repo.server import RunningServer
from triton_repo.ui.explain import page_view
from triton_repo.ui.health import health
from triton_repo.ui.reference import read_log
from triton_repo.ui.seen import Seen
from triton_repo.ui.shelf import Shelf
from workflow.errors import BundleError, ServingError, StateUnavailableError
from workflow.run import Run, read_json
from workflow.schema import Contract


class Source(Protocol):
    """What the gateway needs; a test gives it one of its own."""

    def setup(self) -> dict[str, Any]: ...
    def users(self) -> list[dict[str, Any]]: ...
    def page(
        self, user: str, *, at: int | None, cursor: str, context: dict[str, str]
    ) -> dict[str, Any]: ...
    def video(self, video_id: str) -> dict[str, Any] | None: ...
    def watch(
        self,
        user: str,
        video: str,
        *,
        at: int | None,
        watch_s: float | None,
        label: int | None,
    ) -> dict[str, Any]: ...
    def health(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Served:
    """A run or a deployment, and its live server.

    Args:
        name: what people call it.
        run: None for a deployment: its bundles know nothing of the log.
    """

    name: str
    server: RunningServer
    run: Run | None = None
    deployment: Deployment | None = None

    def bundle_folder(self, version: int) -> Path:
        """Where the bundle of a version is.

        Raises:
            BundleError: it is no longer there.
        """
        folder = self.run.repository if self.run else None
        if self.deployment:
            folder = self.deployment.bundles / str(version)
        if folder is None or not (folder / PAGE / str(version)).exists():
            raise BundleError(
                f"bundle {version}, which the server answers with, is no longer in {self.name}",
                next_step="start marquee ui again",
            )
        return folder


class LiveSource:
    """Answers from a live server; several threads may ask.

    Args:
        served: what to show.
        contract: of the run, for the names of its columns.
    """

    def __init__(self, served: Served, client: Client, contract: Contract | None = None) -> None:
        self.served, self.client, self.contract = served, client, contract
        self.seen = Seen()
        self._shelves: dict[int, Shelf] = {}
        self._logs: dict[int, dict[str, Any]] = {}  # what health compares with, by bundle
        self._lock = threading.Lock()  # of `seen`
        self._reading = threading.Lock()  # of `_logs`

    def shelf(self, version: int) -> Shelf:
        """The files of a bundle."""
        if version not in self._shelves:
            self._shelves[version] = Shelf(self.served.bundle_folder(version), version)
        return self._shelves[version]

    @property
    def newest(self) -> Shelf:
        """That of the bundle that answers."""
        return self.shelf(self.client.version(PAGE))

    # --- routes ----------------------------------------------------------------------------------
    def setup(self) -> dict[str, Any]:
        """What the page has to know before the first row."""
        column = None if self.contract is None else self.contract.events.one("label")
        label = None if column is None else column.name
        return {"name": self.served.name, "label": label, **self.newest.controls()}

    def users(self) -> list[dict[str, Any]]:
        return self.newest.users()

    def video(self, video_id: str) -> dict[str, Any] | None:
        shelf = self.newest
        row = shelf.row_of(video_id)
        return None if row is None else shelf.details(row)

    def page(
        self, user: str, *, at: int | None, cursor: str, context: dict[str, str]
    ) -> dict[str, Any]:
        if at is None:
            at = self.now(user)
        page, ms = self.ask(user, time=at, cursor=cursor, context=dict(context))
        view = page_view(page, self.shelf(page.version))
        with self._lock:
            self.seen.add(view, at, context, ms)
        return {"user": user, "at": at, **view}

    def ask(self, user: str, **options: Any) -> tuple[Page, float]:
        """(explained page, milliseconds until it was here)."""
        started = time.perf_counter()
        page = self.client.page(user, explain=True, timing=True, **options)
        return page, 1000 * (time.perf_counter() - started)

    def watch(
        self,
        user: str,
        video: str,
        *,
        at: int | None,
        watch_s: float | None,
        label: int | None,
    ) -> dict[str, Any]:
        known = self.client.inputs(EVENTS)
        row = self.newest.row_of(video)
        if row is None:
            raise ServingError(
                "the bundle has no such video", expected="an id of it", found=video[:100]
            )
        kept = self.client.watched(
            user,
            video,
            time=self.now(user) if at is None else at,
            label=label if "label" in known else None,
            watch_s=watch_s if "watch_s" in known else None,
        )
        return {"num_events": kept.num_events, "last": kept.last_time, "next": kept.last_time + 1}

    def health(self) -> dict[str, Any]:
        version = self.newest.version
        with self._reading:
            if version not in self._logs:  # the log does not change while it is served
                self._logs[version] = read_log(self)
        with self._lock:
            return health(self, self._logs[version])

    # --- time ------------------------------------------------------------------------------------
    @cached_property
    def log_end(self) -> int:
        """Unix seconds of the last event of the log; without the log, of the last watch."""
        if self.served.run is not None:
            path = self.served.run.features / "spec.json"
            if path.exists():
                return int(read_json(path)["last_event"])
        return self.newest.last_watch() or int(time.time())

    def now(self, user: str) -> int:
        """One second after all that is known: a log of the past is asked in its own time."""
        last = self.log_end
        with suppress(StateUnavailableError):
            last = max(last, self.client.user_events(user).last_time)
        return last + 1
