"""The brake between the stages: what the first lets in, and that nothing can jam it."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import triton_repo

FILE = Path(triton_repo.__file__).parent / "templates" / "common" / "flow.py"


def load_flow() -> Any:
    spec = importlib.util.spec_from_file_location("flow", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stages() -> Iterator[tuple[Any, Any, Any]]:
    flow, bundle = load_flow(), uuid4().hex
    yield tuple(flow.Flow(f"{role} 16", bundle) for role in flow.ROLES)
    Path(f"/dev/shm/marquee-{os.getppid()}-flow-{bundle}").unlink()


def begins_late(first: Any, rows: int, meanwhile: Any) -> bool:
    """Whether `begin` waited for what `meanwhile` does."""
    thread = threading.Thread(target=first.begin, args=(rows,))
    thread.start()
    thread.join(0.05)
    waited = thread.is_alive()
    meanwhile()
    thread.join(5)
    assert not thread.is_alive()
    return waited


def pass_through(stage: Any, rows: int) -> None:
    stage.begin(rows)
    stage.end(rows)


def test_below_the_limit_nobody_waits(stages: Any) -> None:
    first, between, last = stages
    for _ in range(10):
        for stage in (first, between, last):
            pass_through(stage, 15)
    assert first.under_way() == 0 and first.lost == 0


def test_the_first_waits_for_the_last(stages: Any) -> None:
    first, between, last = stages
    pass_through(first, 16)
    pass_through(between, 16)
    last.begin(16)
    assert begins_late(first, 8, lambda: last.end(16))
    assert first.under_way() == 8 and first.lost == 0


def test_the_first_waits_while_rows_are_between(stages: Any) -> None:
    first, between, last = stages
    pass_through(first, 20)
    between.begin(20)

    def rest() -> None:
        between.end(20)
        pass_through(last, 20)

    assert begins_late(first, 1, rest)


def test_lost_rows_do_not_jam_it(stages: Any) -> None:
    """A stage asked alone, or requests that failed on the way."""
    first, _, last = stages
    for _ in range(5):
        pass_through(first, 16)
        time.sleep(0.03)  # longer than a hand-over: nobody is at work
    started = time.monotonic()
    first.begin(16)
    assert time.monotonic() - started < 0.5
    assert first.under_way() == 16
    for _ in range(6):  # they come after all, and the last stage is asked alone too
        pass_through(last, 16)
    assert first.under_way() == 0
    first.begin(4)
    assert first.under_way() == 4


def test_a_last_stage_that_died_at_work_does_not_jam_it(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, last = stages
    monkeypatch.setitem(type(last).begin.__globals__, "LONGEST_BATCH_NS", 100_000_000)
    pass_through(first, 32)
    last.begin(32)  # and never ends
    started = time.monotonic()
    first.begin(1)
    assert 0.05 < time.monotonic() - started < 5


def test_bundles_do_not_share(stages: Any) -> None:
    flow, other = load_flow(), uuid4().hex
    stranger = flow.Flow("first 16", other)
    pass_through(stranger, 100)
    assert stages[0].under_way() == 0
    Path(f"/dev/shm/marquee-{os.getppid()}-flow-{other}").unlink()
