"""One value of a request as the array that Triton wants."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from workflow.errors import ServingError

_INTEGERS: dict[str, np.dtype[np.signedinteger[Any]]] = {
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
}


def request_array(name: str, value: str | float, datatype: str) -> npt.NDArray[Any]:
    """`value` as [1, 1] of the dtype that the server wants.

    Args:
        name: of the input, for the error.
        value: text is converted where the server's type is a number.
        datatype: Triton's name: INT32, INT64, FP32 or BYTES.
    Raises:
        ServingError: not a number that the type holds.
    """
    if datatype == "BYTES":
        return np.array([[str(value).encode()]], dtype=np.object_)
    if datatype == "FP32":
        return np.array([[value]], np.float32)
    dtype = _INTEGERS[datatype]
    limits = np.iinfo(dtype)
    number: int | None = None
    with suppress(ValueError):
        number = int(value)
    if number is None or not limits.min <= number <= limits.max:
        raise ServingError(
            f"{name} {value!r} is not a number that the server takes",
            expected=f"{dtype.name}, {limits.min} to {limits.max}",
        )
    return np.array([[number]], dtype=dtype)
