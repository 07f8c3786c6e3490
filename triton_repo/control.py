"""Triton's explicit model control: load and unload models of a running server, and try them."""

from __future__ import annotations

import json
import re
import time
from types import TracebackType
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from triton_repo.access import NOBODY, Credentials, connect
from triton_repo.bundle import Bundle
from workflow.errors import BundleError, ServingError

_LOAD_TIMEOUT_S = 120.0
_ASK_TIMEOUT_S = 30.0


class ModelControl:
    """A connection that changes what a server has loaded.

    Args:
        url: host:port of the server's gRPC endpoint.
        credentials: what the server wants for that.
    """

    def __init__(self, url: str, credentials: Credentials = NOBODY) -> None:
        self.url = url
        self._client = connect(url, credentials)

    def __enter__(self) -> ModelControl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def loaded(self) -> dict[str, int]:
        """Name -> version of the models that answer."""
        try:
            index = self._client.get_model_repository_index(
                as_json=True, client_timeout=_ASK_TIMEOUT_S
            )
        except InferenceServerException as error:
            raise self._error("its models cannot be listed", error) from error
        models = index.get("models", [])
        return {m["name"]: int(m["version"]) for m in models if m.get("state") == "READY"}

    def python_models(self) -> set[str]:
        """Those of the Python backend that Triton believes to answer."""
        return {name for name in self.loaded() if self._config(name).get("backend") == "python"}

    def restart(self, name: str) -> None:
        """Load a model again whose files are the same: with a parameter more, which nobody reads.

        Without a change Triton would do nothing. Raises what `load` does.
        """
        config = self._config(name)
        restarted = {"restarted_at": {"string_value": str(time.time())}}
        config["parameters"] = {**config.get("parameters", {}), **restarted}
        self.load(name, json.dumps(config))

    def _config(self, name: str) -> dict[str, Any]:
        try:
            answer = self._client.get_model_config(
                name, as_json=True, client_timeout=_ASK_TIMEOUT_S
            )
        except InferenceServerException as error:
            raise self._error(f"it does not tell the settings of {name}", error) from error
        return dict(answer["config"])

    def load(self, name: str, config: str | None = None) -> None:
        """Load a model and the models that it needs; returns when they are warm.

        Args:
            config: JSON in place of its config.pbtxt.
        Raises:
            BundleError: it does not load or its warm-up fails.
            ServingError: the server does not answer.
        """
        try:
            self._client.load_model(name, config=config, client_timeout=_LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            if "UNAVAILABLE" in str(error.status()) or "DEADLINE" in str(error.status()):
                raise self._error(f"model {name} was not loaded", error) from error
            raise BundleError(f"model {name} does not load", found=_reason(error)) from None

    def unload(self, name: str) -> None:
        """Unload a model; requests that it is answering are answered."""
        try:
            self._client.unload_model(name, client_timeout=_LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._error(f"model {name} was not unloaded", error) from error

    def try_out(self, name: str, bundle: Bundle) -> None:
        """Ask an ensemble for unknown users, one and a full batch.

        Raises:
            BundleError: an answer is missing, from another bundle, or not a sorted page.
        """
        for size in dict.fromkeys((1, bundle.schema["max_batch_size"])):
            try:
                answer = self._client.infer(
                    name, _blank_request(bundle, size), client_timeout=_ASK_TIMEOUT_S
                )
            except InferenceServerException as error:
                raise BundleError(
                    f"model {name} does not answer a batch of {size}", found=_reason(error)
                ) from None
            problem = _problem(answer, bundle, size)
            if problem:
                raise BundleError(f"model {name} answers a batch of {size} badly", found=problem)

    def _error(self, what: str, error: InferenceServerException) -> ServingError:
        return ServingError(f"the Triton server at {self.url} failed: {what}", found=_reason(error))


def _blank_request(bundle: Bundle, size: int) -> list[Any]:
    """The required inputs, zeros or empty text."""
    tensors = []
    for name, one in bundle.schema["inputs"].items():
        if not one["optional"]:
            datatype = one["dtype"].replace("STRING", "BYTES")
            fill = b"" if datatype == "BYTES" else 0
            array = np.full([size, *one["dims"]], fill, triton_to_np_dtype(datatype))
            tensors.append(grpc.InferInput(name, list(array.shape), datatype))
            tensors[-1].set_data_from_numpy(array)
    return tensors


def _problem(answer: Any, bundle: Bundle, size: int) -> str | None:
    version = answer.get_response().model_version
    if version != str(bundle.version):
        return f"the answer is of version {version}, not {bundle.version}"
    for name in bundle.schema["outputs"]:
        values = answer.as_numpy(name)
        if values is None or len(values) != size:
            return f"output {name} has {0 if values is None else len(values)} rows"
    scores = answer.as_numpy("score")
    if np.isnan(scores).any() or not (np.sort(-scores, axis=1) == -scores).all():
        return "the scores are not sorted numbers"
    return None


def _reason(error: InferenceServerException) -> str:
    """The cause within Triton's message, on one line."""
    message = str(error.message())
    cause = re.split(r"loading failed with error: |UNAVAILABLE state: ", message)[-1]
    return " ".join(cause.split("\n\nAt:")[0].split())[:300]
