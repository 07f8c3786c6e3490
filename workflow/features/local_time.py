"""Local time: how far the clocks of users and requests are ahead of UTC, by their country."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workflow.schema import Contract

if TYPE_CHECKING:
    import pandas as pd

HOUR_S = 3_600


def user_offset_s(contract: Contract, users: pd.DataFrame) -> npt.NDArray[np.int32]:
    """Seconds ahead of UTC where each user lives; int32 [num_users + 1], 0 where not known."""
    column = contract.tagged("users", "country")
    result = np.zeros(len(users) + 1, np.int32)
    if column is not None:
        result[1:] = _offset_s(contract, users[column.name].to_numpy(object), result[1:])
    return result


def request_offset_s(
    contract: Contract, country: npt.NDArray[Any] | None, user_s: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Seconds ahead of UTC of requests: in the country that they name, else where the user lives.

    Args:
        country: raw values [n] of the events' column with the tag country; None without one.
        user_s: int32 [n], of the user of each.
    """
    return user_s if country is None else _offset_s(contract, country, user_s)


def _offset_s(
    contract: Contract, values: npt.NDArray[Any], otherwise: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """By value of a country; `otherwise` where it is null or has no offset."""
    offsets = {name: round(hours * HOUR_S) for name, hours in contract.utc_offsets.items()}
    found = [
        offsets.get(_text(value), other)
        for value, other in zip(values, otherwise.tolist(), strict=True)
    ]
    return np.array(found, np.int32)


def _text(value: Any) -> str:
    # Whole numbers with nulls among them are read as floats.
    return f"{value:.0f}" if isinstance(value, float) else str(value)
