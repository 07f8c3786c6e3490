"""The online state's stores: one suite over SQLite and a real Redis, then what guards them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer
from triton_repo.templates.common import store as stores
from triton_repo.templates.common.store import Guarded, Profiles, UnavailableError, open_store

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "state" / "events.sqlite")
    server: RedisServer = request.getfixturevalue("redis")
    opened(server.url).client.flushdb()
    return server.url


def opened(where: str, keep: int = 5) -> Any:
    store = open_store(where, keep, 5.0)
    store.connect()
    return store


def event(second: int, video: int | str, label: int | None = None, watch_s: Any = None) -> Any:
    return [second, video, label, watch_s]


def kept(store: Any, user: bytes = b"7") -> list[Any]:
    [record] = store.read([user])
    events: list[Any] = json.loads(record)
    return events


# --- both stores ---------------------------------------------------------------------------------
def test_events_are_in_order_of_time_then_of_arrival(where: str) -> None:
    store = opened(where)
    store.add({b"7": [event(30, 3), event(10, 9)]})
    records = store.add({b"7": [event(20, 5), event(10, 2)]})
    expected = [event(10, 9), event(10, 2), event(20, 5), event(30, 3)]
    assert kept(store) == expected == json.loads(records[b"7"])


def test_users_are_apart_and_unknown_ones_have_nothing(where: str) -> None:
    store = opened(where)
    users = [b"7", b"77", "vü-7".encode(), b"\xff\0'"]
    store.add({user: [event(n, f"clip {n}/é")] for n, user in enumerate(users)})
    assert [kept(store, user) for user in users] == [[event(n, f"clip {n}/é")] for n in range(4)]
    assert store.read([b"8", b"7", b"8"])[::2] == [None, None]


def test_the_latest_events_are_kept(where: str) -> None:
    store = opened(where, keep=3)
    for second in (50, 10, 40, 20, 60, 30):
        store.add({b"7": [event(second, second)]})
    assert kept(store) == [event(second, second) for second in (40, 50, 60)]


def test_the_same_event_again_fills_in_what_was_not_known(where: str) -> None:
    store = opened(where)
    store.add({b"7": [event(10, 1), event(10, 2), event(11, 1)]})
    store.add({b"7": [event(10, 1, 1, 2.5), event(10, 1)]})
    store.add({b"7": [event(10, 1, 0)]})
    assert kept(store) == [event(10, 1, 0, 2.5), event(10, 2), event(11, 1)]


def test_another_connection_sees_what_was_added(where: str) -> None:
    first, second = opened(where), opened(where)
    first.add({b"7": [event(1, 1)]})
    assert kept(second) == [event(1, 1)]
    second.add({b"7": [event(2, 2)]})
    assert kept(first) == kept(opened(where)) == [event(1, 1), event(2, 2)]


def test_writers_at_once_lose_nothing(where: str) -> None:
    def write(number: int) -> None:
        store = opened(where, keep=1_000)
        for n in range(20):
            store.add({b"7": [event(n, number * 100 + n)], b"%d" % number: [event(n, n)]})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(100, 104)))
    videos = [video for _, video, *_ in kept(opened(where))]
    assert sorted(videos) == sorted(n * 100 + m for n in range(100, 104) for m in range(20))
    assert all(len(kept(opened(where), b"%d" % n)) == 20 for n in range(100, 104))


@pytest.mark.parametrize("seed", range(5))
def test_as_a_list_that_is_kept_the_simple_way(where: str, seed: int) -> None:
    draw = random.Random(seed)
    store, reference = opened(where, keep=8), list[Any]()
    for _ in range(30):
        new = [event(draw.randrange(6), draw.randrange(4), draw.choice([None, 0, 1])) for _ in "ab"]
        store.add({b"7": new})
        for second, video, label, watch_s in new:
            same = [old for old in reference if old[:2] == [second, video]]
            if same:
                same[0][2] = same[0][2] if label is None else label
            else:
                reference.append([second, video, label, watch_s])
        reference = sorted(reference, key=lambda one: one[0])[-8:]
        assert kept(store) == reference


# --- out of reach --------------------------------------------------------------------------------
def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_redis_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        guarded = Guarded(open_store(server.url, 5, 1.0))
        guarded.add({b"7": [event(1, 1)]})
        server.kill()
        for _ in range(2):
            with pytest.raises(UnavailableError):
                guarded.read([b"7"])
        with pytest.raises(UnavailableError, match=r"refused"):
            guarded.add({b"7": [event(2, 2)]})
        server.start()
        until(lambda: guarded.is_up)
        assert kept(guarded) == [event(1, 1)]  # kill -9 lost nothing that was acknowledged
        server.pause()
        for call in (guarded.read, guarded.read):
            with pytest.raises(UnavailableError):
                call([b"7"])
        server.go_on()
        until(lambda: guarded.is_up)
        assert kept(guarded) == [event(1, 1)]
    finally:
        server.kill()


def test_a_file_that_cannot_be_made_until_later(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    guarded = Guarded(open_store(str(tmp_path / "state" / "events.sqlite"), 5, 1.0))
    with pytest.raises(UnavailableError, match="File exists"):
        guarded.add({b"7": [event(1, 1)]})
    (tmp_path / "state").unlink()
    until(lambda: guarded.is_up)
    guarded.add({b"7": [event(1, 1)]})
    assert kept(guarded) == [event(1, 1)]


def test_a_damaged_file_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"this is no database " * 100)
    with pytest.raises(UnavailableError, match="not a database"):
        open_store(str(path), 5, 1.0).connect()


def test_a_locked_file_is_refused_and_stays_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "events.sqlite")
    first = opened(path)
    other = open_store(path, 5, 0.05)
    other.connect()
    first.database.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        other.add({b"7": [event(1, 1)]})
    assert other.read([b"7"]) == [None]  # a reader does not wait for a writer
    first.database.execute("ROLLBACK")
    other.add({b"7": [event(1, 1)]})
    assert kept(first) == [event(1, 1)]


def test_the_file_needs_the_standard_library_only(tmp_path: Path) -> None:
    """The exported repository runs where Marquee, and even redis, is not installed."""
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("store", sys.argv[1])
store = importlib.util.module_from_spec(spec)
spec.loader.exec_module(store)
opened = store.Guarded(store.open_store(sys.argv[2], 5, 1.0))
opened.add({b"7": [[1, 2, None, None]]})
print(opened.read([b"7"]))
"""
    words = [sys.executable, "-I", "-S", "-c", code, str(stores.__file__), str(tmp_path / "e.db")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[b'[[1,2,null,null]]']\n"


class Flaky:
    """A store that fails while it is told to, and counts calls."""

    def __init__(self) -> None:
        self.fails, self.calls, self.records = False, 0, dict[bytes, bytes]()

    def connect(self) -> None:
        self._maybe_fail()

    def read(self, users: list[bytes]) -> list[bytes | None]:
        self.calls += 1
        self._maybe_fail()
        return [self.records.get(user) for user in users]

    def _maybe_fail(self) -> None:
        if self.fails:
            raise UnavailableError("as told")


def test_nobody_waits_twice_for_a_store_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RETRY_S", 0.01)
    store, before = Flaky(), set(threading.enumerate())
    guarded = Guarded(store)
    store.fails = True
    for _ in range(50):
        with pytest.raises(UnavailableError, match="as told"):
            guarded.read([b"7"])
    assert store.calls == 1
    store.fails = False
    until(lambda: guarded.is_up)
    assert guarded.read([b"7"]) == [None] and store.calls == 2
    until(lambda: set(threading.enumerate()) <= before)  # the one that tried again has ended


def test_last_known_profiles() -> None:
    store = Flaky()
    profiles = Profiles(Guarded(store), json.loads, size=2)
    store.records = {b"1": b"[1]", b"2": b"[2]"}
    users = [b"1", b"2", b"3"]
    assert profiles.read(users) == ([[1], [2], None], [True, True, True])
    store.fails = True
    assert profiles.read(users) == ([[1], [2], None], [False, False, False])
    store.fails = False
    until(lambda: profiles.store.is_up)
    store.records |= {b"1": b"[1, 10]", b"2": b"damaged"}
    assert profiles.read(users) == ([[1, 10], [2], None], [True, False, True])
    store.records |= {b"3": b"[3]"}
    profiles.read([b"1"])
    profiles.read([b"3"])
    assert list(profiles.known) == [b"1", b"3"]  # the two that were read last
    del store.records[b"3"]
    assert profiles.read([b"3"]) == ([None], [True])
    store.fails = True
    assert profiles.read([b"1", b"3"])[0] == [[1, 10], None]


def test_parsing_is_done_once_per_change() -> None:
    parsed: list[bytes] = []

    def parse(record: bytes) -> bytes:
        parsed.append(record)
        return record

    store = Flaky()
    store.records = {b"1": b"a"}
    profiles = Profiles(Guarded(store), parse)
    assert [profiles.read([b"1"])[0] for _ in range(3)] == [[b"a"]] * 3
    store.records = {b"1": b"b"}
    assert [profiles.read([b"1"])[0] for _ in range(2)] == [[b"b"]] * 2
    assert parsed == [b"a", b"b"]
