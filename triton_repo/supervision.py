"""Bring back a stage whose process died: Triton itself never does.

Until then every request that needs the stage fails, after a second.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

from triton_repo.access import Credentials
from triton_repo.control import ModelControl
from triton_repo.embedded import STUB
from workflow.errors import BundleError, ServingError

_LOOK_AGAIN_S = 2.0


class StageWatch:
    """Watches the Python stages of one running server.

    Args:
        pid: of tritonserver.
        grpc_url, credentials: where it takes model control, and what it wants for that.
    """

    def __init__(self, pid: int, grpc_url: str, credentials: Credentials) -> None:
        self.pid = pid
        self._control = ModelControl(grpc_url, credentials)
        self._stubs: dict[int, str] = {}
        self._looked_at = 0.0
        self._sound: set[str] = set()  # the living stages when none was missing

    def revive(self) -> list[str]:
        """Load stages again whose process is gone; returns their names. Cheap when all live."""
        fresh = time.monotonic() - self._looked_at < _LOOK_AGAIN_S
        if fresh and all(map(_is_running, self._stubs)):
            return []
        living = self._living()
        if living == self._sound:
            return []
        try:
            missing = sorted(self._control.python_models() - living - self._living())
            for name in missing:
                self._control.restart(name)
        except (BundleError, ServingError):  # busy or stopping: the next look tries again
            self._looked_at = 0.0
            return []
        if not missing:
            self._sound = living
        return missing

    def _living(self) -> set[str]:
        """Models that have a stub process; each is started with the path of its model.py."""
        self._looked_at = time.monotonic()
        self._stubs = {}
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    words = child.cmdline()  # empty once it is dead
                    if len(words) > 1 and Path(words[0]).name == STUB:
                        self._stubs[child.pid] = Path(words[1]).parents[1].name
        return set(self._stubs.values())


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
