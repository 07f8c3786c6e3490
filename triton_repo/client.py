"""Ask a Triton server that serves Marquee's ensemble for a page of videos, over gRPC."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from workflow.errors import ServingError

MODEL = "marquee"
_REQUEST_INPUTS = ("user_id", "top_k", "time")  # every other input is a context column
_INTEGERS: dict[str, np.dtype[np.signedinteger[Any]]] = {
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
}


def front_model(name: str | None) -> str:
    """The ensemble that answers for the live bundle, or for the one deployed under a name."""
    return MODEL if name is None else f"{MODEL}_{name}"


class Status(IntEnum):
    """How an answer came about; with every status but `ok` the page is still usable."""

    ok = 0
    unknown_user = 1
    empty_history = 2
    fewer_than_top_k = 3


class Recommendation(NamedTuple):
    """One page.

    Args:
        video_ids: raw ids, int64 or str (dtype object), [K].
        scores: float32 [K], high to low.
        status: how the page came about.
        version: of the bundle that answered.
    """

    video_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    status: Status
    version: int


@dataclass(frozen=True)
class Input:
    """One input of the ensemble. `datatype` is Triton's name: INT32, INT64 or BYTES."""

    datatype: str
    optional: bool


class Client:
    """A connection to one server; several threads may share it.

    Args:
        url: host:port of the server's gRPC endpoint.
        timeout_s: the longest that one call may take.
        name: ask the bundle that is deployed under this name instead of the live one.
    """

    def __init__(self, url: str, timeout_s: float = 5.0, *, name: str | None = None) -> None:
        self.url = url
        self.model = front_model(name)
        self.timeout_s = timeout_s
        self._client = grpc.InferenceServerClient(url)
        self._inputs: dict[str, Input] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def inputs(self) -> dict[str, Input]:
        """Inputs of the served ensemble by name; asked once.

        Raises:
            ServingError: no server answers, or it does not serve the ensemble.
        """
        if self._inputs is None:
            try:
                answer = self._client.get_model_config(
                    self.model, as_json=True, client_timeout=self.timeout_s
                )
            except InferenceServerException as error:
                raise self._error(error) from error
            self._inputs = {
                one["name"]: Input(
                    one["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES"),
                    bool(one.get("optional", False)),
                )
                for one in answer["config"]["input"]
            }
        return self._inputs

    def context_names(self) -> list[str]:
        """Context columns that a request may carry."""
        return [name for name in self.inputs() if name not in _REQUEST_INPUTS]

    def recommend(
        self,
        user_id: str | int,
        *,
        top_k: int | None = None,
        time: int | None = None,
        context: dict[str, str | int | None] | None = None,
    ) -> Recommendation:
        """The best videos for a user now.

        Args:
            user_id: raw id; text is converted when the server's ids are numbers.
            top_k: how many videos; None means the server's default.
            time: Unix seconds of the request; None means the server's choice.
            context: context column -> value; a column left out or None counts as null.
        Raises:
            ServingError: a value or name the server does not take, or no (good) answer.
        """
        context = context or {}
        known = self.context_names()
        unknown = sorted(set(context) - set(known))
        if unknown:
            raise ServingError(
                f"no context column {unknown[0]}",
                expected="one of " + (", ".join(known) if known else "none: this data has none"),
            )
        values = {"user_id": user_id, "top_k": top_k, "time": time, **context}
        tensors = [self._tensor(name, one) for name, one in values.items() if one is not None]
        try:
            answer = self._client.infer(self.model, tensors, client_timeout=self.timeout_s)
        except InferenceServerException as error:
            raise self._error(error) from error
        return _recommendation(answer)

    def request_count(self) -> int:
        """How many requests the ensemble has answered with success since the server started."""
        try:
            answer = self._client.get_inference_statistics(
                self.model, as_json=True, client_timeout=self.timeout_s
            )
        except InferenceServerException as error:
            raise self._error(error) from error
        # Protobuf's JSON leaves zeros out and writes 64-bit numbers as text.
        success = answer["model_stats"][0].get("inference_stats", {}).get("success", {})
        return int(success.get("count", 0))

    def _tensor(self, name: str, value: str | int) -> Any:
        known = self.inputs().get(name)
        if known is None:
            raise ServingError(f"the server's model has no input {name}", found=self.url)
        array = _array(name, value, known.datatype)
        tensor = grpc.InferInput(name, [1, 1], known.datatype)
        tensor.set_data_from_numpy(array)
        return tensor

    def _error(self, error: InferenceServerException) -> ServingError:
        status, message = str(error.status()), _one_line(error.message())
        if "UNAVAILABLE" in status:
            what = f"no Triton server answers at {self.url}"
            return ServingError(what, next_step="marquee serve --run RUN")
        if "DEADLINE_EXCEEDED" in status:
            what = f"the Triton server at {self.url} did not answer within {self.timeout_s:g} s"
            return ServingError(what, next_step="try again, or see the server's log")
        if "unknown model" in message:
            return ServingError(
                f"the Triton server at {self.url} does not serve the model {self.model}",
                next_step="marquee serve --run RUN",
            )
        return ServingError("the Triton server refused the request", found=message)


def _array(name: str, value: str | int, datatype: str) -> npt.NDArray[Any]:
    """`value` as [1, 1] of the dtype that the server wants."""
    if datatype == "BYTES":
        return np.array([[str(value).encode()]], dtype=np.object_)
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


def _recommendation(answer: Any) -> Recommendation:
    video_ids = answer.as_numpy("video_id")[0]
    if video_ids.dtype == np.object_:
        video_ids = np.array([one.decode() for one in video_ids], dtype=np.object_)
    status = Status(int(answer.as_numpy("status").ravel()[0]))
    version = int(answer.get_response().model_version)
    return Recommendation(video_ids, answer.as_numpy("score")[0], status, version)


def _one_line(message: str) -> str:
    message = re.sub(r"\[request id: \S+\] ", "", message.partition(" NOTE: ")[0])
    return re.sub(rf"^in ensemble '{MODEL}\w*', ", "", " ".join(message.split()))
