"""One user's recommendations as people and scripts read them."""

from __future__ import annotations

import time as clock
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np

from triton_repo.catalogue import added_titles
from triton_repo.client import Client, Status
from triton_repo.local import LocalPipeline, as_tensors
from triton_repo.server import running_server
from triton_repo.state import state_of
from triton_repo.watch import next_second
from workflow.errors import ServingError
from workflow.run import Run
from workflow.schema import Contract

_END_OF_9999 = 253_402_300_799


def recommend(
    run: Run,
    contract: Contract,
    user_id: str,
    *,
    top_k: int,
    at: int | None,
    context: dict[str, str],
    in_process: bool = False,
) -> dict[str, Any]:
    """Ask the run's server (a live one, else one started for this answer).

    Args:
        user_id: raw id as text.
        at: unix seconds of the request; None: as `next_second` says.
        context: raw values by context column.
        in_process: run the exported stages here, without a server.

    Returns:
        {"user_id", "status", "at", "items": [{"video_id", "score", "title"}]}.
    Raises:
        ServingError: an unknown context column, a value of the wrong type, or a refused request.
    """
    _check_context(contract, context)
    if in_process:
        ids, scores, status, at = _in_process(run, contract, user_id, top_k, at, context)
    else:
        with (
            running_server(run) as server,
            Client(server.grpc_url, credentials=server.credentials) as client,
        ):
            if at is None:
                at = next_second(run, partial(client.user_events, user_id))
            answer = client.recommend(user_id, top_k=top_k, time=at, context=dict(context))
        ids, scores, status = answer.video_ids, answer.scores, answer.status
    titles = titles_of(run, contract, ids)
    return {
        "user_id": typed_id(contract, "user_id", user_id),
        "status": status.name.lower(),
        "at": at,
        "items": [
            {
                "video_id": _plain(video),
                "score": float(score),
                "title": titles.get(_plain(video), ""),
            }
            for video, score in zip(ids, scores, strict=True)
        ],
    }


def _in_process(
    run: Run, contract: Contract, user_id: str, top_k: int, at: int | None, context: dict[str, str]
) -> tuple[Any, Any, Status, int]:
    dtypes = {column.name: column.dtype for column in contract.features("context")}
    typed = {name: cast_value(value, dtypes[name], name) for name, value in context.items()}
    user = cast_value(user_id, contract.id_column("user_id").dtype, "user_id")
    count = _within(top_k, np.int32, "top_k")
    pipeline = LocalPipeline(run, state_of(run))
    if at is None:
        at = next_second(run, partial(pipeline.user_events, user))
    tensors = as_tensors(user, top_k=count, time=at, context=typed)
    try:
        answer = pipeline.infer(tensors)
    except ValueError as error:
        raise ServingError(f"the request was refused: {error}") from None
    return answer["video_id"][0], answer["score"][0], Status(int(answer["status"][0, 0])), at


def _check_context(contract: Contract, context: dict[str, str]) -> None:
    known = [column.name for column in contract.features("context")]
    for name in context:
        if name not in known:
            raise ServingError(
                f"no context column {name!r} in this run",
                expected=", ".join(known) if known else "no context: this data has none",
            )


def cast_value(value: str, dtype: str, name: str) -> int | bytes:
    """A request's value as the stages take it.

    Raises:
        ServingError: it is no number, or one that does not fit.
    """
    if dtype == "string":
        return value.encode()
    try:
        return _within(int(value), np.int64, name)
    except ValueError:
        raise ServingError(f"{name} {value!r} is not a number", expected="an integer id") from None


def _within(value: int, dtype: Any, name: str) -> int:
    limits = np.iinfo(dtype)
    if not limits.min <= value <= limits.max:
        raise ServingError(f"{name} {value} does not fit", expected=f"{limits.min} to {limits.max}")
    return value


def typed_id(contract: Contract, role: Any, value: str) -> int | str:
    """A raw id as it stands in the data."""
    return value if contract.id_column(role).dtype == "string" else int(value)


def _plain(value: Any) -> int | str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return int(value) if isinstance(value, np.integer | int) else str(value)


def titles_of(run: Run, contract: Contract, ids: Any) -> dict[Any, str]:
    """Titles of the given raw ids, as far as the data has them."""
    import pyarrow.parquet as pq

    column = contract.videos.one("title") if contract.videos else None
    path = run.data / "videos.parquet"
    if column is None or not path.exists() or len(ids) == 0:
        return {}
    wanted = [_plain(video) for video in ids]
    # Not pandas.read_parquet: it reads through a Python file, and a process that ends right
    # after such a read may abort in pyarrow's threads (apache/arrow issue 34314).
    table = pq.read_table(
        path, columns=["video_id", "title"], filters=[("video_id", "in", wanted)]
    ).to_pydict()
    titles = {
        video: title or "" for video, title in zip(table["video_id"], table["title"], strict=True)
    }
    return titles | added_titles(run, wanted)


def parse_time(text: str) -> int:
    """Unix seconds from "now", seconds, or an ISO date and time (UTC unless it says otherwise)."""
    if text == "now":
        return int(clock.time())
    seconds = _parse_seconds(text)
    if seconds is None or not 0 <= seconds <= _END_OF_9999:
        raise ServingError(
            f"time {text!r} is not understood",
            expected='"now", unix seconds or 2026-01-31T20:00:00',
        )
    return seconds


def _parse_seconds(text: str) -> int | None:
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp())
    return None
