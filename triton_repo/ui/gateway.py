"""The gateway between a browser and Triton: a thin JSON API and the files of the page.

It holds no state of its own but a window of what it saw, for the health tab. It answers only
to names of this machine and, for what changes something, only to its own page: a foreign web site
can neither read through it (DNS rebinding) nor send watches (CSRF).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from triton_repo.access import is_loopback
from triton_repo.ui.source import Source
from workflow.errors import MarqueeError, ServingError, StateUnavailableError

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html"),
    **{
        f"/{name}": (name, kind)
        for name, kind in {
            "style.css": "text/css",
            "app.js": "text/javascript",
            "api.js": "text/javascript",
            "art.js": "text/javascript",
            "dom.js": "text/javascript",
            "drawer.js": "text/javascript",
            "rows.js": "text/javascript",
            "health.js": "text/javascript",
            "icon.svg": "image/svg+xml",
        }.items()
    },
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LONGEST_BODY = 10_000  # bytes
LONGEST_TEXT = 1_024  # characters of a parameter; a cursor may be longer
_WATCH = {"user", "video", "at", "watch_s", "label"}


class Request(NamedTuple):
    """One request; header names are lower-case."""

    method: str
    target: str  # path and query
    headers: Mapping[str, str]
    body: bytes = b""


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    kind: str
    body: bytes


class RefusedError(MarqueeError):
    """A request that is not answered.

    Args:
        status: of HTTP.
    """

    def __init__(self, status: HTTPStatus, what: str, **more: str) -> None:
        super().__init__(what, **more)
        self.status = status


@dataclass(frozen=True)
class Gateway:
    """Answers requests of the web page.

    Args:
        source: where pages come from.
        host: address that it listens on.
    """

    source: Source
    host: str = "127.0.0.1"

    def respond(self, request: Request) -> Reply:
        """Never raises: an error is JSON with `what`, `expected`, `found` and `next`."""
        try:
            check_host(request.headers.get("host", ""), self.host)
            path = urlsplit(request.target).path
            if request.method in ("GET", "HEAD") and path in FILES:
                name, kind = FILES[path]
                return Reply(200, f"{kind}; charset=utf-8", (STATIC / name).read_bytes())
            return _json(200, self._api(request, path))
        except MarqueeError as error:
            return failure(error)
        except Exception as error:  # the page says what; the gateway goes on
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return failure(MarqueeError(what, next_step="start marquee ui again"), 500)

    def _api(self, request: Request, path: str) -> dict[str, Any]:
        routes: dict[str, tuple[str, Callable[[Request], dict[str, Any]]]] = {
            "/api/setup": ("GET", lambda _: self.source.setup()),
            "/api/users": ("GET", lambda _: {"users": self.source.users()}),
            "/api/page": ("GET", self._page),
            "/api/video": ("GET", self._video),
            "/api/health": ("GET", lambda _: self.source.health()),
            "/api/watch": ("POST", self._watch),
        }
        if path not in routes:
            known = ", ".join(routes)
            raise RefusedError(HTTPStatus.NOT_FOUND, f"nothing is at {path[:80]}", expected=known)
        method, answer = routes[path]
        if request.method != method:
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{path} is asked with {method}",
                found=request.method[:20],
            )  # fmt: skip
        check_origin(request.headers, needed=method == "POST")
        return answer(request)

    def _page(self, request: Request) -> dict[str, Any]:
        given = _parameters(request.target)
        user = given.pop("user", "")
        if not user:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "a page is for a user", expected="user=ID")
        at, cursor = _whole(given.pop("at", None), "at"), given.pop("cursor", "")
        context = {name: value for name, value in given.items() if value}
        return self.source.page(user, at=at, cursor=cursor, context=context)

    def _video(self, request: Request) -> dict[str, Any]:
        found = self.source.video(_parameters(request.target).get("id", ""))
        if found is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "the bundle has no such video")
        return found

    def _watch(self, request: Request) -> dict[str, Any]:
        given = _object(request)
        for name in ("user", "video"):
            if not isinstance(given.get(name), str) or not 0 < len(given[name]) <= LONGEST_TEXT:
                what = f"a watch has a {name}, as text"
                raise RefusedError(HTTPStatus.BAD_REQUEST, what)
        watch_s, label = given.get("watch_s"), given.get("label")
        if isinstance(watch_s, bool) or not isinstance(watch_s, int | float | None):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "watch_s is a number of seconds")
        if label not in (0, 1, None) or isinstance(label, bool):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "label is 0 or 1")
        at = _whole(given.get("at"), "at")
        return self.source.watch(given["user"], given["video"], at=at, watch_s=watch_s, label=label)


# --- who may ask ---------------------------------------------------------------------------------
def check_host(given: str, host: str) -> None:
    """The name that the browser thinks it talks to is this machine's, not one made to point here.

    Args:
        given: the header Host.
        host: address that the gateway listens on.
    Raises:
        RefusedError: it is a foreign name.
    """
    name, is_address = "", False
    with suppress(ValueError):
        name = urlsplit(f"//{given}").hostname or ""
        is_address = bool(ipaddress.ip_address(name))
    opened = not is_loopback(host)
    if name and (is_loopback(name) or name == host.lower() or (opened and is_address)):
        return
    raise RefusedError(
        HTTPStatus.MISDIRECTED_REQUEST, "the request is for another host", expected=host,
        found=given[:100] or "no host",
    )  # fmt: skip


def check_origin(headers: Mapping[str, str], *, needed: bool) -> None:
    """Only our own page asks; programs, which send no Origin, may read and, as JSON, write.

    Args:
        needed: the request changes something: it must be JSON, which no foreign form can send.
    Raises:
        RefusedError: another site's page asks.
    """
    origin, own = headers.get("origin"), f"http://{headers.get('host', '')}"
    if (origin is not None and origin.lower() != own.lower()) or headers.get(
        "sec-fetch-site", "none"
    ) not in ("same-origin", "none"):
        raise RefusedError(
            HTTPStatus.FORBIDDEN, "another site may not ask", expected=f"the page at {own}",
            found=(origin or "a foreign page")[:100],
        )  # fmt: skip
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if needed and kind != "application/json":
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "this is sent as JSON",
            expected="Content-Type: application/json", found=kind[:100] or "none",
        )  # fmt: skip


# --- in and out ----------------------------------------------------------------------------------
def _parameters(target: str) -> dict[str, str]:
    try:
        given = dict(parse_qsl(urlsplit(target).query, max_num_fields=30, errors="strict"))
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the query is not understood") from None
    for name, value in given.items():
        if name != "cursor" and len(value) > LONGEST_TEXT:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name[:50]} is too long")
    return given


def _object(request: Request) -> dict[str, Any]:
    try:
        given = json.loads(request.body)
    except ValueError:
        given = None
    if not isinstance(given, dict) or not given.keys() <= _WATCH:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, "the body is not understood",
            expected="a JSON object of " + ", ".join(sorted(_WATCH)),
        )  # fmt: skip
    return given


def _whole(value: Any, name: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 2**53 or isinstance(value, bool):
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} is a time in unix seconds")
    return number


def failure(error: MarqueeError, status: int | None = None) -> Reply:
    """An error as JSON."""
    told = {"what": error.what, "expected": error.expected, "found": error.found}
    return _json(status or _status(error), {"error": {**told, "next": error.next_step}})


def _status(error: MarqueeError) -> int:
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, StateUnavailableError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, ServingError):  # what was expected, it says of the request's values
        return HTTPStatus.BAD_REQUEST if error.expected else HTTPStatus.BAD_GATEWAY
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _json(status: int, value: dict[str, Any]) -> Reply:
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return Reply(int(status), "application/json; charset=utf-8", body)
