"""What the signals that stop a server do, at each part of its life."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt in a `with` block, until it says else.

    The handlers that were there before come back at its end. Main thread only.

    Attributes:
        came: set by a signal after `take_note`.
    """

    def __init__(self) -> None:
        self.came = threading.Event()

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        _set_all(_interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_note(self) -> None:
        """From now on a signal only sets `came`: nothing is left half done, no lock is kept."""
        _set_all(lambda number, frame: self.came.set())

    def ignore(self) -> None:
        """From now on a signal does nothing: a second Ctrl-C must not leave half a stop behind."""
        _set_all(signal.SIG_IGN)


def _set_all(handler: Any) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
