"""Which bundle answers whom: A/B by a hash of the user, and shadow traffic."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from triton_repo.client import Client, Recommendation
from workflow.errors import ConfigError, ServingError

_HASH_RANGE = 2**64


class Split:
    """Gives each user one bundle, the same one in every process and on every day.

    A user's place between 0 and 1 is the SHA-256 of salt and id; the names take their shares from
    0 up in alphabetical order, the live bundle has the rest. So a share can grow without
    moving anybody who had that bundle, and another salt draws other users.

    Args:
        shares: name -> share of the users, more than 0; together at most 1.
        salt: the experiment's name.
    Raises:
        ConfigError: shares that cannot be.
    """

    def __init__(self, shares: dict[str, float], salt: str) -> None:
        if any(not 0 < share <= 1 for share in shares.values()) or sum(shares.values()) > 1:
            raise ConfigError(
                f"shares {shares} cannot be", expected="each more than 0, together at most 1"
            )
        self.salt = salt
        self._ends: list[tuple[float, str]] = []
        end = 0.0
        for name in sorted(shares):
            end += shares[name]
            self._ends.append((end, name))

    @property
    def names(self) -> list[str]:
        """The named bundles, without the live one."""
        return [name for _, name in self._ends]

    def name_of(self, user_id: str | int) -> str | None:
        """The name of this user's bundle; None means the live one. 5 and "5" are one user."""
        place = self.place(user_id)
        return next((name for end, name in self._ends if place < end), None)

    def place(self, user_id: str | int) -> float:
        """Where the user stands, in [0, 1)."""
        digest = hashlib.sha256(f"{self.salt}\0{user_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / _HASH_RANGE


class SplitClient:
    """A client that asks for each user the bundle that the split gives; threads may share it.

    Args:
        url: host:port of the server's gRPC endpoint.
        options: as those of `Client`.
    """

    def __init__(self, url: str, split: Split, **options: Any) -> None:
        self.split = split
        self._clients = {name: Client(url, name=name, **options) for name in (None, *split.names)}

    def __enter__(self) -> SplitClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients.values():
            client.close()

    def recommend(self, user_id: str | int, **options: Any) -> Recommendation:
        """As `Client.recommend`; the answer's version says which bundle it is of."""
        return self._clients[self.split.name_of(user_id)].recommend(user_id, **options)


@dataclass(frozen=True)
class Shadowed:
    """One request that two bundles answered.

    Attributes:
        answer: what the caller got, from the live bundle.
        shadow: the other bundle's answer; None when it gave none, then `error` says why.
    """

    user_id: str | int
    answer: Recommendation
    answer_ms: float
    shadow: Recommendation | None
    shadow_ms: float
    error: str | None


class ShadowClient:
    """A client of the live bundle that asks another one the same, for the record only.

    The caller waits for the live answer alone. The other bundle is asked in the background, at
    most `max_waiting` requests behind; what would come on top is not asked but counted. A full
    or failing shadow never touches an answer.

    Args:
        url: host:port of the server's gRPC endpoint.
        name: what the other bundle is deployed as.
        record: called with each pair, in a background thread.
        max_waiting: requests that may wait for the other bundle.
        options: as those of `Client`.
    """

    def __init__(
        self,
        url: str,
        name: str,
        record: Callable[[Shadowed], None],
        *,
        max_waiting: int = 64,
        **options: Any,
    ) -> None:
        self.dropped = 0
        self._live, self._other = Client(url, **options), Client(url, name=name, **options)
        self._record = record
        self._room = threading.BoundedSemaphore(max_waiting)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="shadow")

    def __enter__(self) -> ShadowClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until everything accepted was recorded."""
        self._background.shutdown()
        self._live.close()
        self._other.close()

    def recommend(self, user_id: str | int, **options: Any) -> Recommendation:
        """As `Client.recommend`, of the live bundle."""
        started = time.perf_counter()
        answer = self._live.recommend(user_id, **options)
        answer_ms = 1000 * (time.perf_counter() - started)
        if self._room.acquire(blocking=False):
            self._background.submit(self._ask, user_id, options, answer, answer_ms)
        else:
            self.dropped += 1
        return answer

    def _ask(
        self, user_id: str | int, options: dict[str, Any], answer: Recommendation, answer_ms: float
    ) -> None:
        started = time.perf_counter()
        shadow, error = None, None
        try:
            shadow = self._other.recommend(user_id, **options)
        except ServingError as failure:
            error = str(failure)
        finally:
            self._room.release()
        shadow_ms = 1000 * (time.perf_counter() - started)
        self._record(Shadowed(user_id, answer, answer_ms, shadow, shadow_ms, error))
