"""The web page's gateway: who may ask, what is refused, and how errors look."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triton_repo.ui.gateway import FILES, LONGEST_BODY, STATIC, Gateway, Reply, Request
from triton_repo.ui.web import WebServer
from workflow.errors import ServingError, StateUnavailableError

OWN = {"host": "127.0.0.1:8080"}
JSON = {"content-type": "application/json"}
WATCH = {"user": "5", "video": "7", "at": 9, "watch_s": 1.5, "label": 1}


class Fake:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def setup(self) -> dict[str, Any]:
        return {"name": "fake"}

    def users(self) -> list[dict[str, Any]]:
        return []

    def page(self, user: str, **options: Any) -> dict[str, Any]:
        self.asked.append((user, options))
        if user == "gone":
            raise ServingError("no Triton server answers", next_step="marquee serve --run RUN")
        if user == "odd":
            raise ServingError("user_id 'odd' is not a number", expected="int64")
        if user == "broken":
            raise ZeroDivisionError("half\na line")
        return {"user": user}

    def video(self, video_id: str) -> dict[str, Any] | None:
        return {"id": video_id} if video_id == "7" else None

    def watch(self, user: str, video: str, **options: Any) -> dict[str, Any]:
        self.asked.append((user, video, options))
        if user == "locked":
            raise StateUnavailableError("the online state is unavailable")
        return {"next": 10}

    def health(self) -> dict[str, Any]:
        return {}


def ask(
    gateway: Gateway,
    target: str,
    method: str = "GET",
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    text = b"" if body is None else json.dumps(body).encode()
    return gateway.respond(Request(method, target, {**OWN, **(headers or {})}, text))


def error(reply: Reply) -> tuple[int, dict[str, Any]]:
    told = json.loads(reply.body)["error"]
    assert set(told) == {"what", "expected", "found", "next"} and told["what"]
    return reply.status, told


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(Fake())


def asked(gateway: Gateway) -> list[Any]:
    assert isinstance(gateway.source, Fake)
    return gateway.source.asked


def test_a_page_is_asked_for_with_its_context(gateway: Gateway) -> None:
    reply = ask(gateway, "/api/page?user=v%C3%BC%205&at=12&device=tv&country=&cursor=abc")
    assert (reply.status, json.loads(reply.body)) == (200, {"user": "vü 5"})
    assert asked(gateway) == [("vü 5", {"at": 12, "cursor": "abc", "context": {"device": "tv"}})]


def test_a_watch_is_passed_on(gateway: Gateway) -> None:
    reply = ask(gateway, "/api/watch", "POST", WATCH, JSON)
    assert json.loads(reply.body) == {"next": 10}
    assert asked(gateway) == [("5", "7", {"at": 9, "watch_s": 1.5, "label": 1})]


@pytest.mark.parametrize(
    ("host", "given", "answered"),
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "localhost:8080", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("127.0.0.1", "evil.example:8080", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "10.0.0.7:8080", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False),
        ("0.0.0.0", "10.0.0.7:8080", True),
        ("0.0.0.0", "evil.example:8080", False),
        ("box.lan", "box.lan:8080", True),
        ("box.lan", "evil.example", False),
    ],
)
def test_only_names_of_this_machine(host: str, given: str, answered: bool) -> None:
    for target in ("/", "/api/setup", "/api/page?user=5"):
        gateway = Gateway(Fake(), host)
        reply = ask(gateway, target, headers={"host": given})
        assert reply.status == (200 if answered else 421)
        assert answered or error(reply)[1]["what"] == "the request is for another host"
        assert answered or asked(gateway) == []


@pytest.mark.parametrize(
    "foreign",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8080"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_foreign_pages_may_not_ask(gateway: Gateway, foreign: dict[str, str]) -> None:
    assert error(ask(gateway, "/api/watch", "POST", WATCH, JSON | foreign))[0] == 403
    assert error(ask(gateway, "/api/page?user=5", headers=foreign))[0] == 403
    assert asked(gateway) == []


def test_our_own_page_may_ask(gateway: Gateway) -> None:
    own = {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    assert ask(gateway, "/api/watch", "POST", WATCH, JSON | own).status == 200


def test_what_a_foreign_form_can_send_is_no_watch(gateway: Gateway) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, told = error(ask(gateway, "/api/watch", "POST", WATCH, {"content-type": kind}))
        assert status == 415 and told["expected"] == "Content-Type: application/json"
    assert error(ask(gateway, "/api/watch"))[0] == 405
    assert asked(gateway) == []


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {"user": "5"},
        WATCH | {"user": 5},
        WATCH | {"video": ""},
        WATCH | {"user": "x" * 2_000},
        WATCH | {"watch_s": "long"},
        WATCH | {"watch_s": True},
        WATCH | {"label": 2},
        WATCH | {"label": True},
        WATCH | {"at": -1},
        WATCH | {"at": "soon"},
        WATCH | {"at": True},
        WATCH | {"planet": "Mars"},
    ],
)
def test_bodies_that_are_no_watch(gateway: Gateway, body: Any) -> None:
    assert error(ask(gateway, "/api/watch", "POST", body, JSON))[0] == 400
    assert asked(gateway) == []


@pytest.mark.parametrize(
    "target",
    [
        "/api/page",
        "/api/page?user=",
        "/api/page?user=5&at=yesterday",
        "/api/page?user=5&at=99999999999999999999",
        "/api/page?user=" + "x" * 2_000,
        "/api/page?" + "&".join(f"c{i}=1" for i in range(40)),
        "/api/page?user=%ff",
    ],
)
def test_questions_that_are_not_understood(gateway: Gateway, target: str) -> None:
    assert error(ask(gateway, target))[0] == 400
    assert asked(gateway) == []


def test_errors_say_what_and_what_next(gateway: Gateway) -> None:
    status, told = error(ask(gateway, "/api/page?user=gone"))
    assert (status, told["next"]) == (502, "marquee serve --run RUN")
    assert error(ask(gateway, "/api/page?user=odd"))[0] == 400
    status, told = error(ask(gateway, "/api/page?user=broken"))
    assert (status, told["what"]) == (500, "ZeroDivisionError: half a line")
    assert error(ask(gateway, "/api/watch", "POST", WATCH | {"user": "locked"}, JSON))[0] == 503
    assert error(ask(gateway, "/api/video?id=8"))[0] == 404
    assert error(ask(gateway, "/../gateway.py"))[0] == 404
    assert error(ask(gateway, "/", "DELETE"))[0] == 404


# --- files ---------------------------------------------------------------------------------------
def test_every_file_of_the_page_is_served_and_no_other(gateway: Gateway) -> None:
    assert {name for name, _ in FILES.values()} == {path.name for path in STATIC.iterdir()}
    for target in FILES:
        reply = ask(gateway, target)
        assert reply.status == 200 and reply.body


def test_files_name_nothing_outside_and_make_no_markup_of_text() -> None:
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert "<style" not in page and not re.search(r"\son\w+=|\sstyle=", page)


# --- on a socket ---------------------------------------------------------------------------------
@pytest.fixture
def web(gateway: Gateway) -> Iterator[WebServer]:
    with WebServer(gateway, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def talk(web: WebServer, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", web.server_port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer, read


def test_headers_of_every_answer(web: WebServer) -> None:
    for path in ("/", "/api/setup", "/nothing"):
        answer, _ = talk(web, "GET", path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in answer.headers["Server"]


def test_bodies_on_the_socket(web: WebServer, gateway: Gateway) -> None:
    text = json.dumps(WATCH).encode()
    answer, read = talk(web, "POST", "/api/watch", text, Content_Type="application/json")
    assert (answer.status, json.loads(read)) == (200, {"next": 10})
    for status, asked_for in (
        (413, talk(web, "POST", "/api/watch", b"x" * (LONGEST_BODY + 1))),
        (411, talk(web, "POST", "/api/watch", None, Content_Length="-1")),
        (414, talk(web, "GET", "/api/page?cursor=" + "x" * 70_000)),
        (501, talk(web, "PUT", "/api/watch", b"{}")),
    ):
        answer, read = asked_for
        assert answer.status == status and answer.headers["Connection"] == "close"
        assert json.loads(read)["error"]["what"]
    answer, read = talk(web, "HEAD", "/")
    assert answer.status == 200 and read == b"" and int(answer.headers["Content-Length"]) > 500
    assert len(asked(gateway)) == 1


def test_a_port_that_is_taken(web: WebServer, gateway: Gateway) -> None:
    with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1 port {web.server_port}"):
        WebServer(gateway, "127.0.0.1", web.server_port)


def test_the_picture_in_the_readme_is_small() -> None:
    picture = Path(STATIC).parent / "screenshot.png"
    assert picture.stat().st_size < 400_000
