"""Ctrl-C is status 130, whatever the code that it interrupts makes of it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from workflow import cli


@pytest.mark.parametrize("masked", [True, False])
def test_ctrl_c_behind_another_error(
    masked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """numpy's tofile, for one, turns KeyboardInterrupt into TypeError."""

    def app(**_: object) -> None:
        if not masked:
            raise TypeError("of its own")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise TypeError("expected str, bytes or os.PathLike object") from None

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(cli, "app", app)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == (130 if masked else 1)
    assert capsys.readouterr().err.startswith("Stopped." if masked else "TypeError: of")
