"""What is wrong, and what to do, when a Triton server gives no answer or refuses a request."""

from __future__ import annotations

import re

from tritonclient.utils import InferenceServerException

from workflow.errors import ServingError, StateUnavailableError

# Part of Triton's message -> what is wrong, what to do. Most of them are "unavailable" to gRPC.
_REFUSALS = (
    ("protocol is restricted", "{} wants another key", "ask whoever runs it for the API key"),
    ("the server is overloaded", "{} is overloaded", "try again later"),
    ("is not healthy", "a stage of {} died and is being restarted", "try again in a second"),
)


def serving_error(
    error: InferenceServerException, model: str, url: str, timeout_s: float
) -> ServingError:
    """The error to raise for what the Triton client raised.

    Args:
        error: with Triton's or gRPC's status and message.
        model: the model that was asked.
        url: host:port of the server's gRPC endpoint.
        timeout_s: how long an answer was waited for.
    """
    status, message = str(error.status()), _one_line(error.message())
    _, is_state, reason = message.partition("the online state is unavailable: ")
    if is_state:
        return StateUnavailableError(
            "the online state is unavailable", found=reason, next_step="send it again"
        )
    for sign, meaning, next_step in _REFUSALS:
        if sign in message.lower():
            what = meaning.format(f"the Triton server at {url}")
            return ServingError(what, found=message, next_step=next_step)
    if "UNAVAILABLE" in status:
        what = f"no Triton server answers at {url}"
        return ServingError(what, next_step="marquee serve --run RUN")
    if "DEADLINE_EXCEEDED" in status:
        what = f"the Triton server at {url} did not answer within {timeout_s:g} s"
        return ServingError(what, next_step="try again, or see the server's log")
    if "unknown model" in message:
        return ServingError(
            f"the Triton server at {url} does not serve the model {model}",
            next_step="marquee serve --run RUN",
        )
    return ServingError("the Triton server refused the request", found=message)


def _one_line(message: str) -> str:
    message = re.sub(r"\[request id: \S+\] ", "", message.partition(" NOTE: ")[0])
    return re.sub(r"^in ensemble '\w+', ", "", " ".join(message.split()))
