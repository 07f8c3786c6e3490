"""Which requests the first stage lets in, and that nothing can jam it."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import triton_repo

FILE = Path(triton_repo.__file__).parent / "templates" / "common" / "admission.py"


def load_admission() -> Any:
    spec = importlib.util.spec_from_file_location("admission", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stages() -> Iterator[tuple[Any, Any, Any]]:
    module, bundle = load_admission(), uuid4().hex
    yield tuple(module.Admission(f"{role} 16", bundle) for role in module.ROLES)
    Path(f"/dev/shm/marquee-{os.getppid()}-admission-{bundle}").unlink()


def batch(stage: Any, tickets: Any = ()) -> None:
    stage.begin()
    stage.end(tickets)


def test_up_to_the_limit_all_are_let_in(stages: Any) -> None:
    first, between, last = stages
    for _ in range(50):
        tickets = first.admit([1] * 16)
        assert sorted(tickets) == list(range(16))
        batch(first)
        batch(between)
        batch(last, tickets)


def test_beyond_the_limit_the_later_ones_are_refused(stages: Any) -> None:
    first, between, last = stages
    tickets = first.admit([1] * 20)
    assert None not in tickets[:16] and tickets[16:] == [None] * 4
    between.begin()
    assert first.admit([1, 1]) == [None, None]
    between.end(())
    batch(last, tickets[:10])
    assert None not in first.admit([4, 3, 1])  # 6 rows under way, then 10, 13, 14
    assert [ticket is None for ticket in first.admit([5, 1])] == [False, True]  # never split


def test_what_is_no_ticket_is_ignored(stages: Any) -> None:
    first, between, last = stages
    assert None not in first.admit([1] * 16)
    between.begin()
    batch(last, [-1, 16, 2**31 - 1, -(2**31)])
    assert first.admit([1]) == [None]


def test_a_stage_asked_alone_is_not_refused_for_long(stages: Any) -> None:
    first, _, _ = stages
    for _ in range(5):
        assert None not in first.admit([16])
        batch(first)
        assert first.admit([1]) == [None]
        time.sleep(0.03)  # no later stage has worked since: nothing is under way


def test_lost_tickets_come_back_while_others_go_on(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, between, last = stages
    monkeypatch.setitem(type(first).admit.__globals__, "LEASE_NS", 200_000_000)
    assert None not in first.admit([15])  # fails on its way
    deadline = time.monotonic() + 10
    refused = 0
    while True:
        tickets = first.admit([1, 1])
        if None not in tickets:
            break
        refused += 1
        batch(between)
        batch(last, tickets[:1])
        assert time.monotonic() < deadline
    assert refused > 0
    batch(last, tickets)
    assert first.admit([1] * 20).count(None) == 4


def test_bundles_do_not_share(stages: Any) -> None:
    module, other = load_admission(), uuid4().hex
    stranger = module.Admission("first 16", other)
    assert None not in stranger.admit([16])
    assert None not in stages[0].admit([1] * 16)
    Path(f"/dev/shm/marquee-{os.getppid()}-admission-{other}").unlink()
