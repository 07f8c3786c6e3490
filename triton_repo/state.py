"""Where users' events since the export are kept: a file of the run, or Redis for a fleet."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from workflow.errors import ConfigError

STATE_VARIABLE = "MARQUEE_STATE"  # what the served models read


class Keeper(Protocol):
    """A folder that can keep events: a run or a deployment."""

    @property
    def state_file(self) -> Path: ...


def state_of(place: Keeper, chosen: str | None = None) -> str:
    """`chosen`, else what the environment names, else the folder's own file.

    Returns:
        A redis:// (rediss://, unix://) address or a path, for templates/common/store.py.
    Raises:
        ConfigError: an address of another kind.
    """
    state = chosen or os.environ.get(STATE_VARIABLE) or str(place.state_file.absolute())
    if "://" in state and not re.match(r"(redis|rediss|unix)://.", state):
        raise ConfigError(
            f"state {state.partition('://')[0]}:// is not understood",
            expected="redis://host:port/0, rediss://…, unix://… or the path of a file",
        )
    return state


def state_in_use(place: Keeper) -> str:
    """As `state_of`, but "" where that is a file which does not exist: nothing was kept yet."""
    state = state_of(place)
    return state if "://" in state or Path(state).exists() else ""
