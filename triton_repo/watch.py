"""`marquee watch`: tell the server what a user watched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from triton_repo.catalogue import Catalogue
from triton_repo.client import Client, UserEvents
from triton_repo.server import running_server
from workflow.errors import StateUnavailableError
from workflow.run import Run, read_json


def watch(
    run: Run,
    user_id: str,
    video_id: str,
    *,
    at: int | None,
    label: int | None = None,
    watch_s: float | None = None,
) -> dict[str, Any]:
    """Send one event to the run's server (a live one, else one started for it).

    Args:
        user_id, video_id: raw ids as text.
        at: unix seconds of the event; None: as `next_second` says.
        label, watch_s: as far as known, and where the data has them.
    Returns:
        {"at", "num_events", "in_catalogue"}: num_events is how many events of the user are kept
        since the export; a video that is not in the catalogue counts once a bundle has it.
    Raises:
        ServingError: the event is refused, or cannot be kept now.
    """
    with (
        running_server(run) as server,
        Client(server.grpc_url, credentials=server.credentials) as client,
    ):
        if at is None:
            at = next_second(run, partial(client.user_events, user_id))
        kept = client.watched(user_id, video_id, time=at, label=label, watch_s=watch_s)
    ids = Catalogue.of(run).ids
    raw = video_id.encode() if ids.dtype.kind == "S" else int(video_id)
    return {"at": at, "num_events": kept.num_events, "in_catalogue": bool(np.isin(raw, ids))}


def next_second(run: Run, user_events: Callable[[], UserEvents]) -> int:
    """One second after the last event of the log or, if it is later, of the user since then.

    A log of the past is asked in its own time. Events that cannot be read do not count.
    """
    path = run.require(run.features / "spec.json", "features", "marquee features")
    last: int = read_json(path)["last_event"]
    with suppress(StateUnavailableError):
        last = max(last, user_events().last_time)
    return last + 1
