"""Watch events since the export: one record a user, in SQLite or in Redis.

A record is JSON: [[unix seconds, raw video id, label, seconds watched], ...], oldest first, events
of one second as they came, null where not known. Ids are raw, so records outlive bundles.

A store has three methods. `connect()` (again), `read(users)` -> a record or None of each user,
and `add(events)` of {user: [[time, video, label, watch_s], ...]} -> the users' new records; when
`add` returns, the events are kept. All raise `UnavailableError` within the store's time limit.
"""

import json
import sqlite3
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

RETRY_S = 0.5
_KEY = b"marquee:events:"
_TRIES = 50  # of an update that other servers get in the way of


class UnavailableError(OSError):
    """The store did not answer; the text says why."""


def open_store(where, keep, timeout_s):
    """The store at `where`: redis://host:port/db (or rediss://, unix://), or an SQLite file.

    Args:
        keep: how many events of a user to keep, the latest ones.
        timeout_s: how long one call may wait.
    """
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore(where, keep, timeout_s)
    return SqliteStore(where, keep, timeout_s)


def updated(record, events, keep):
    """`record` with `events` in it; one of the same second and video is the same event again.

    What the later one knows (label, seconds watched) replaces what the earlier one said.
    """
    known = json.loads(record) if record else []
    for event in events:
        same = next((old for old in known if old[:2] == event[:2]), None)
        if same is None:
            known.append(list(event))
        else:
            same[2:] = [
                old if new is None else new for old, new in zip(same[2:], event[2:], strict=True)
            ]
    known.sort(key=itemgetter(0))
    return json.dumps(known[-keep:], separators=(",", ":"), ensure_ascii=False).encode()


class SqliteStore:
    """A file that the processes of one machine share; what was added survives a power cut."""

    def __init__(self, path, keep, timeout_s):
        self.path, self.keep, self.timeout_s = Path(path), keep, timeout_s

    def connect(self):
        with _unavailable(sqlite3.Error, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(
                self.path, self.timeout_s, isolation_level=None, check_same_thread=False
            )
            database.execute("PRAGMA journal_mode = WAL")  # readers never wait for the writer
            database.execute("PRAGMA synchronous = FULL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS history (user BLOB PRIMARY KEY, record BLOB NOT NULL)"
            )
            self.database = database

    def read(self, users):
        with _unavailable(sqlite3.Error):
            return [self._record(user) for user in users]

    def _record(self, user):
        found = self.database.execute("SELECT record FROM history WHERE user = ?", (user,))
        row = found.fetchone()
        return row and row[0]

    def add(self, events):
        with _unavailable(sqlite3.Error):
            self.database.execute("BEGIN IMMEDIATE")
            try:
                records = {
                    user: updated(self._record(user), new, self.keep)
                    for user, new in events.items()
                }
                self.database.executemany(
                    "INSERT OR REPLACE INTO history VALUES (?, ?)", records.items()
                )
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")
                raise
        return records


class RedisStore:
    """A server that a fleet shares; how safe its data is, is its own setting (appendonly)."""

    def __init__(self, url, keep, timeout_s):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self.errors, self.changed = redis.RedisError, redis.WatchError
        self.keep = keep
        self.client = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )  # fmt: skip

    def connect(self):
        with _unavailable(self.errors, OSError):
            self.client.ping()

    def read(self, users):
        with _unavailable(self.errors, OSError):
            return self.client.mget([_KEY + user for user in users])

    def add(self, events):
        with _unavailable(self.errors, OSError):
            return {user: self._add(_KEY + user, new) for user, new in events.items()}

    def _add(self, key, new):
        """Read, change, write if nobody else has written since."""
        with self.client.pipeline() as pipe:
            for _ in range(_TRIES):
                try:
                    pipe.watch(key)
                    record = updated(pipe.get(key), new, self.keep)
                    pipe.multi()
                    pipe.set(key, record)
                    pipe.execute()
                except self.changed:
                    continue
                return record
        raise UnavailableError("others keep changing this user's events")


@contextmanager
def _unavailable(*errors):
    try:
        yield
    except UnavailableError:
        raise
    except errors as error:
        raise UnavailableError(f"{type(error).__name__}: {error}") from error


class Guarded:
    """A store that nobody waits for twice: after a failure it is tried in the background.

    Until that succeeds every call fails at once.
    """

    def __init__(self, store):
        self.store, self.reason = store, "not connected yet"
        try:
            store.connect()
            self.is_up = True
        except UnavailableError as error:
            self._fail(error)

    def read(self, users):
        return self._call(self.store.read, users)

    def add(self, events):
        return self._call(self.store.add, events)

    def _call(self, method, argument):
        if not self.is_up:
            raise UnavailableError(self.reason)
        try:
            return method(argument)
        except UnavailableError as error:
            self._fail(error)
            raise

    def _fail(self, error):
        self.is_up, self.reason = False, str(error)
        threading.Thread(target=self._recover, daemon=True).start()

    def _recover(self):
        while True:
            time.sleep(RETRY_S)
            try:
                self.store.connect()
            except UnavailableError as error:
                self.reason = str(error)
            else:
                self.is_up = True
                return


class Profiles:
    """Users' events, parsed; the last known ones where the store does not answer.

    Args:
        store: a guarded store.
        parse: record -> what `read` gives for it; raises ValueError where it is damaged.
        size: of how many users to remember the events.
    """

    def __init__(self, store, parse, size=10_000):
        self.store, self.parse, self.size = store, parse, size
        self.known = OrderedDict()  # user -> (record, parsed)

    def read(self, users):
        """(parsed events or None by user, whether they are up to date by user)."""
        try:
            records = self.store.read(users)
        except UnavailableError:
            return [self.known.get(user, (None, None))[1] for user in users], [False] * len(users)
        pairs = [self._profile(*pair) for pair in zip(users, records, strict=True)]
        return [profile for profile, _ in pairs], [is_good for _, is_good in pairs]

    def _profile(self, user, record):
        last, profile = self.known.pop(user, (None, None))
        if record is None:
            return None, True
        if record != last:
            try:
                profile = self.parse(record)
            except ValueError:
                return profile, False
        self.known[user] = (record, profile)
        if len(self.known) > self.size:
            self.known.popitem(last=False)
        return profile, True
