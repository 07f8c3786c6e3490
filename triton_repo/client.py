"""Ask a Triton server that serves Marquee's ensemble for a page of videos, over gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from triton_repo.access import NOBODY, Credentials, connect
from triton_repo.client_errors import serving_error
from triton_repo.page_answer import OUTPUTS, Page, page_of
from triton_repo.page_tensors import PAGE_TIMINGS
from triton_repo.request_array import request_array
from triton_repo.tensors import TIMINGS
from workflow.errors import ServingError

MODEL, EVENTS, PAGE = "marquee", "events", "page"
_REQUEST_INPUTS = ("user_id", "top_k", "time")  # every other input is a context column
_PAGE_INPUTS = ("user_id", "time", "cursor", "want_record")
_ANSWER = ("video_id", "score", "status")


def front_model(name: str | None) -> str:
    """The ensemble that answers for the live bundle, or for the one deployed under a name."""
    return MODEL if name is None else f"{MODEL}_{name}"


class Status(IntEnum):
    """How an answer came about; with every status but `ok` the page is still usable."""

    ok = 0
    unknown_user = 1
    empty_history = 2
    fewer_than_top_k = 3
    state_unavailable = 4


class Recommendation(NamedTuple):
    """One page.

    Args:
        video_ids: raw ids, int64 or str (dtype object), [K].
        scores: float32 [K], high to low.
        status: how the page came about.
        version: of the bundle that answered.
        stage_us: microseconds that each stage took for the batch that the request was in, where
            that was asked for.
    """

    video_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    status: Status
    version: int
    stage_us: dict[str, int] | None = None


class UserEvents(NamedTuple):
    """What the online state has of a user.

    Args:
        num_events: how many watches since the export, as far as they are kept.
        last_time: Unix seconds of the latest one; 0 when there is none.
    """

    num_events: int
    last_time: int


@dataclass(frozen=True)
class Input:
    """One input of a served model. `datatype` is Triton's name: INT32, INT64 or BYTES."""

    datatype: str
    optional: bool


class Client:
    """A connection to one server; several threads may share it.

    Args:
        url: host:port of the server's gRPC endpoint.
        timeout_s: the longest that one call may take.
        credentials: keys that the server wants, and the certificates to trust.
        name: ask the bundle that is deployed under this name instead of the live one.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 5.0,
        *,
        credentials: Credentials = NOBODY,
        name: str | None = None,
    ) -> None:
        self.url = url
        self.model = front_model(name)
        self.timeout_s = timeout_s
        self._client = connect(url, credentials)
        self._inputs: dict[str, dict[str, Input]] = {}

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

    def inputs(self, model: str | None = None) -> dict[str, Input]:
        """Inputs of a served model by name, of the ensemble if none is given; asked once.

        Raises:
            ServingError: no server answers, or it does not serve the model.
        """
        model = model or self.model
        if model not in self._inputs:
            try:
                answer = self._client.get_model_config(
                    model, as_json=True, client_timeout=self.timeout_s
                )
            except InferenceServerException as error:
                raise self._error(error, model) from error
            self._inputs[model] = {
                one["name"]: Input(
                    one["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES"),
                    bool(one.get("optional", False)),
                )
                for one in answer["config"]["input"]
            }
        return self._inputs[model]

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
        timing: bool = False,
    ) -> Recommendation:
        """The best videos for a user now.

        Args:
            user_id: raw id; text is converted when the server's ids are numbers.
            top_k: how many videos; None means the server's default.
            time: Unix seconds of the request; None means the server's choice.
            context: context column -> value; a column left out or None counts as null.
            timing: ask how long each stage took too.
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
        wanted = _ANSWER + (TIMINGS if timing else ())
        return _recommendation(self._infer(self.model, values, wanted))

    def page(
        self,
        user_id: str | int,
        *,
        time: int | None = None,
        context: dict[str, str | int | None] | None = None,
        cursor: str = "",
        record: bool = False,
        explain: bool = False,
        timing: bool = False,
    ) -> Page:
        """The homepage for a user now: titled rows of videos.

        Args:
            time: Unix seconds of the request; None means the server's now.
            context: context column -> value, and of `device`, `country` and `maturity` what the
                data has no column for; what is left out or None counts as not known.
            cursor: that of the page before, for the rows after it.
            record: ask for the log record that the page can be made from again.
            explain: ask for one that also says what the ranker's heads think of each video.
            timing: ask how long each stage took too.
        Raises:
            ServingError: a value or name the server does not take, or no (good) answer.
        """
        context = context or {}
        known = [name for name in self.inputs(PAGE) if name not in _PAGE_INPUTS]
        unknown = sorted(set(context) - set(known))
        if unknown:
            expected = "one of " + ", ".join(known)
            raise ServingError(f"no context column {unknown[0]}", expected=expected)
        values = {"user_id": user_id, "time": time, **context, "cursor": cursor or None}
        values["want_record"] = 2 if explain else int(record) or None
        wanted = OUTPUTS + (("record",) if record or explain else ())
        wanted += PAGE_TIMINGS if timing else ()
        answer = self._infer(PAGE, values, wanted)
        tensors = {name: answer.as_numpy(name) for name in wanted}
        return page_of(tensors, int(answer.get_response().model_version))

    def watched(
        self,
        user_id: str | int,
        video_id: str | int,
        *,
        time: int | None = None,
        label: int | None = None,
        watch_s: float | None = None,
    ) -> UserEvents:
        """Tell that a user watched a video; when this returns, the event is kept.

        The same user, video and time once more is the same event: what it says of label and
        watch time is then filled in.

        Args:
            time: Unix seconds; None means the server's now.
            label: 1 or 0, where the data has labels.
            watch_s: seconds watched, where the data has watch times.
        Returns:
            What is kept of the user, with this event.
        Raises:
            StateUnavailableError: the event may not be kept; send it again, with its time.
            ServingError: the event is refused, or no answer.
        """
        values = {"user_id": user_id, "video_id": video_id, "time": time, "label": label}
        return _user_events(self._infer(EVENTS, {**values, "watch_s": watch_s}))

    def user_events(self, user_id: str | int) -> UserEvents:
        """What the online state has of a user; nothing where the server keeps none.

        Raises:
            StateUnavailableError: the online state does not answer.
            ServingError: no answer.
        """
        return _user_events(self._infer(EVENTS, {"user_id": user_id}))

    def version(self, model: str | None = None) -> int:
        """Of the bundle that a served model answers with; of the ensemble if none is given.

        Raises:
            ServingError: no server answers, or it does not serve the model.
        """
        model = model or self.model
        try:
            answer = self._client.get_model_metadata(
                model, as_json=True, client_timeout=self.timeout_s
            )
        except InferenceServerException as error:
            raise self._error(error, model) from error
        return max(int(version) for version in answer["versions"])

    def request_count(self) -> int:
        """How many requests the ensemble has answered with success since the server started."""
        try:
            answer = self._client.get_inference_statistics(
                self.model, as_json=True, client_timeout=self.timeout_s
            )
        except InferenceServerException as error:
            raise self._error(error, self.model) from error
        # Protobuf's JSON leaves zeros out and writes 64-bit numbers as text.
        success = answer["model_stats"][0].get("inference_stats", {}).get("success", {})
        return int(success.get("count", 0))

    def _infer(self, model: str, values: dict[str, Any], wanted: tuple[str, ...] = ()) -> Any:
        """The answer to one request; values that are None are left out.

        Args:
            wanted: the outputs to ask for; all if empty.
        """
        given = {name: value for name, value in values.items() if value is not None}
        tensors = [self._tensor(model, name, value) for name, value in given.items()]
        try:
            return self._client.infer(
                model,
                tensors,
                outputs=[grpc.InferRequestedOutput(name) for name in wanted] or None,
                client_timeout=self.timeout_s,
            )
        except InferenceServerException as error:
            raise self._error(error, model) from error

    def _tensor(self, model: str, name: str, value: str | float) -> Any:
        known = self.inputs(model).get(name)
        if known is None:
            raise ServingError(f"the server's model {model} has no input {name}", found=self.url)
        array = request_array(name, value, known.datatype)
        tensor = grpc.InferInput(name, [1, 1], known.datatype)
        tensor.set_data_from_numpy(array)
        return tensor

    def _error(self, error: InferenceServerException, model: str) -> ServingError:
        return serving_error(error, model, self.url, self.timeout_s)


def _recommendation(answer: Any) -> Recommendation:
    video_ids = answer.as_numpy("video_id")[0]
    if video_ids.dtype == np.object_:
        video_ids = np.array([one.decode() for one in video_ids], dtype=np.object_)
    status = Status(int(answer.as_numpy("status").ravel()[0]))
    version = int(answer.get_response().model_version)
    scores = answer.as_numpy("score")[0]
    return Recommendation(video_ids, scores, status, version, _stage_us(answer))


def _stage_us(answer: Any) -> dict[str, int] | None:
    if answer.get_output(TIMINGS[0]) is None:
        return None
    return {name.removesuffix("_us"): int(answer.as_numpy(name)[0, 0]) for name in TIMINGS}


def _user_events(answer: Any) -> UserEvents:
    return UserEvents(*(int(answer.as_numpy(name)[0, 0]) for name in UserEvents._fields))
