"""A signal stops a server at once, and never in the middle of something."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from triton_repo import server
from triton_repo.signals import SIGNALS, StopSignals
from workflow.console import Output
from workflow.errors import ServingError


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A stage that does not come up again; set once its revival was begun."""
    begun = threading.Event()

    class Watch:
        def __init__(self, *_: Any) -> None: ...

        def revive(self) -> list[str]:
            begun.set()
            time.sleep(60)
            return []

    monkeypatch.setattr(server, "StageWatch", Watch)
    return begun


def triton(alive: bool) -> Any:
    return SimpleNamespace(
        pid=0, grpc_url="", credentials=None, is_alive=lambda: alive, failure=ServingError
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_does_not_wait_for_a_revival(number: int, hanging: threading.Event) -> None:
    def send() -> None:
        hanging.wait(10)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with StopSignals() as stop:
        stop.take_note()
        server._watch(triton(alive=True), stop.came, Output(as_json=True))
        assert hanging.is_set() and stop.came.is_set()


def test_a_server_that_died_meanwhile(hanging: threading.Event) -> None:
    stop = threading.Event()
    with pytest.raises(ServingError, match="the Triton server died"):
        server._watch(triton(alive=False), stop, Output(as_json=True))
    assert stop.is_set()


def test_what_a_signal_does_in_turn() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals() as stop:
        for number in SIGNALS:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert not stop.came.is_set()
        stop.take_note()
        signal.raise_signal(signal.SIGTERM)
        assert stop.came.is_set()
        stop.ignore()
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
