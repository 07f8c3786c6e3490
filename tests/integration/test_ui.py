"""The web page in a real browser, over the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.web_page import ask, chromium, showing
from triton_repo.page_tensors import STEPS

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def announced(marquee: Any, sim_run: Any, sim_server: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`marquee ui` beside the session's server."""
    with showing(marquee, "--run", sim_run.folder) as found:
        assert found["grpc_url"] == sim_server["grpc_url"]
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def users(announced: dict[str, Any]) -> list[str]:
    """Examples that the page proposes: from many watches to none."""
    _, found = ask(announced, "GET", "/api/users")
    return [one["id"] for one in found["users"]]


@pytest.fixture
def opened(browser: Browser, announced: dict[str, Any]) -> Iterator[Callable[..., Page]]:
    """opened(query, size) is a page; at the end it must have been quiet, and asked us alone.

    With `refused`, the browser's own note of an answer with that status is no noise.
    """
    contexts, wrong = [], []

    def start(query: str, size: dict[str, int] = DESKTOP, refused: int = 0) -> Page:
        context = browser.new_context(viewport=size, reduced_motion="reduce")  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        note = f"responded with a status of {refused} "
        page.on("console", lambda one: None if note in one.text else wrong.append(one.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: wrong.append(one.url) if not ours(one.url) else None)
        page.goto(announced["url"] + query)
        page.locator('#rows[aria-busy="false"]').wait_for()
        return page

    def ours(url: str) -> bool:
        return url.startswith((announced["url"], "data:"))

    yield start
    for context in contexts:
        context.close()
    assert wrong == []


def ids(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        ".tile", "tiles => tiles.map(tile => tile.dataset.id)"
    )
    return found


def titles(page: Page) -> list[str]:
    return page.locator(".row h2").all_text_contents()


def in_row(page: Page, title: str) -> Locator:
    return page.locator(".row", has=page.get_by_role("heading", name=title, exact=True))


# --- the page ------------------------------------------------------------------------------------
def test_the_health_tab(opened: Any, users: list[str], announced: dict[str, Any]) -> None:
    """First, while there are few pages to judge by."""
    page = opened(f"?user={users[1]}&device=web")
    page.get_by_role("tab", name="Health").click()
    page.locator(".card").first.wait_for()

    def card(title: str) -> Locator:
        return page.locator(".card", has=page.get_by_role("heading", name=title, exact=True))

    expect(card("Bundle")).to_contain_text(str(announced["version"]))
    expect(card("Coverage")).to_contain_text("pages of the log's requests")
    expect(card("Latency")).to_contain_text("query tower")
    expect(card("Latency")).to_contain_text("Triton, since its start")
    expect(card("Calibration")).to_contain_text("held-out events")
    assert card("Calibration").locator("circle").count() == 10
    expect(card("Drift of requests")).to_contain_text("Too few to say")
    features = card("Drift of features").locator("tbody th").all_inner_texts()
    assert {"device", "country", "genres", "video age days", "label"} <= set(features)
    expect(card("A/B split")).to_contain_text("A run serves one bundle")


def test_rows_with_reasons(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=tv")
    assert page.title() == "Marquee" and {"Top picks", "New releases"} <= set(titles(page))
    found = ids(page)
    assert len(found) > 100 and len(set(found)) == len(found)
    for head in page.locator(".row-head").all():
        assert len(head.locator("p").text_content() or "") > 20
    expect(page.locator("#rows .tile svg").first).to_be_visible()
    stages = page.locator(".legend li").all()
    assert [stage.get_attribute("data-stage") for stage in stages] == list(STEPS)
    assert all(float(stage.locator("b").inner_text().split()[0]) > 0 for stage in stages)


def test_a_poster_is_always_the_same_one(opened: Any, users: list[str]) -> None:
    def drawn(page: Page) -> Any:
        page.locator(".tile svg").first.wait_for()
        return page.eval_on_selector(".tile svg g", "art => art.innerHTML")

    query = f"?user={users[1]}&device=web"
    first, again = drawn(opened(query)), drawn(opened(query))
    assert first == again and len(first) > 100


def test_scrolling_goes_on_without_a_repeat(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=phone", PHONE)
    seen = set(ids(page))
    for _ in range(30):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        if page.locator("#end").is_visible():
            break
        page.wait_for_timeout(200)
    found = ids(page)
    assert len(found) > len(seen) + 50 and len(set(found)) == len(found)
    expect(page.locator("#end")).to_have_text("That is all there is for this viewer.")


def test_controls_change_the_page(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=tv")
    assert page.locator(".row").count() > 20
    page.get_by_role("radio", name="phone").click()
    expect(page.locator(".row")).to_have_count(15)
    assert page.get_by_role("radio", name="phone").get_attribute("aria-checked") == "true"
    page.get_by_label("country").select_option("JP")
    page.locator('#rows[aria-busy="false"]').wait_for()
    assert "country=JP" in page.url
    before = ids(page)
    page.get_by_role("button", name="Another").click()
    page.wait_for_function(f"document.querySelector('#control-user').value === '{users[2]}'")
    page.locator('#rows[aria-busy="false"]').wait_for()
    expect(page.locator("#about-user")).to_contain_text("watch")
    page.wait_for_function(f"document.querySelector('.tile').dataset.id !== '{before[0]}'")
    page.get_by_label("Time, UTC").fill("2025-12-20T08:30")
    page.get_by_label("Time, UTC").blur()
    expect(page.locator(".strip")).to_contain_text("20 Dec 2025, 08:30")
    page.get_by_role("button", name="Log's now").click()
    expect(page.locator(".strip")).to_contain_text("Jan 2026")


def test_the_drawer_says_why(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=web")
    chosen = in_row(page, "Top picks").locator(".tile").nth(1)
    name = chosen.locator(".art-title").inner_text(timeout=5_000).lower()
    chosen.click()
    drawer = page.get_by_role("dialog")
    assert drawer.get_by_role("heading").first.inner_text().lower().split() == name.split()
    text = drawer.inner_text()
    assert "Top picks. The ranker's best" in text and "The sources proposed" in text
    sources = drawer.locator(".reasons strong").all_inner_texts()
    assert set(sources) <= {
        "Fits this person",
        "Like what was watched",
        "Trending",
        "New release",
        "Popular",
    }
    assert sources
    meters = {
        one.locator("dt").inner_text(): one.locator("strong").inner_text()
        for one in drawer.locator(".meter").all()
    }
    assert 0 < float(meters["P(clicked)"].removesuffix("%")) < 100
    assert meters["Expected watch time"].split()[-1] in ("s", "min") or "h" in text
    assert float(meters["Score"])
    alone, here = drawer.locator(".journey strong").all_inner_texts()
    assert alone.startswith("#") and here.startswith("#")
    expect(drawer).to_contain_text("May be shown in")


def test_a_drawn_place_says_its_chance(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=tv")
    page.locator(".tile", has=page.locator(".badge.chance")).first.click()
    drawer = page.get_by_role("dialog")
    expect(drawer).to_contain_text("Its place was drawn: 1 chance in")
    expect(drawer.locator(".reasons")).to_contain_text("By chance")


def test_the_keyboard_reaches_everything(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=web")
    focused = "document.activeElement.dataset.id"
    rows = [[one.get_attribute("data-id") for one in row.locator(".tile").all()] for row in
            page.locator(".row").all()[:3]]  # fmt: skip
    page.locator('.tile[tabindex="0"]').focus()
    assert page.evaluate(focused) == rows[0][0]
    for key, wanted in (
        ("ArrowRight", rows[0][1]),
        ("ArrowLeft", rows[0][0]),
        ("ArrowLeft", rows[0][0]),
        ("ArrowDown", rows[1][0]),
        ("End", rows[1][-1]),
        ("Home", rows[1][0]),
        ("ArrowRight", rows[1][1]),
        ("ArrowDown", rows[2][1]),
        ("ArrowUp", rows[1][1]),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == wanted, key
    ring = page.evaluate("getComputedStyle(document.activeElement.querySelector('.art')).outline")
    assert "solid 3px" in ring or "3px solid" in ring
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "watch"
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert page.evaluate(focused) == rows[1][1]
    page.get_by_role("tab", name="Home").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Health").get_attribute("aria-selected") == "true"


def test_a_watch_changes_the_next_page(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[3]}&device=web")
    chosen = in_row(page, "Top picks").locator(".tile").nth(2)
    video, title = chosen.get_attribute("data-id"), chosen.get_attribute("aria-label").split(",")[0]
    assert video in ids(page) and page.locator(".row.is-new").count() == 0
    chosen.click()
    page.locator("#watch").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#notice")).to_contain_text(f"Watched “{title}”.")
    expect(page.locator("#notice")).to_contain_text(f"“Because you watched {title}”")
    assert video not in ids(page)
    row = in_row(page, f"Because you watched {title}")
    expect(row.locator(".badge.fresh").first).to_have_text("new row")
    page.get_by_role("button", name="Show the new row").click()
    expect(row.locator(".tile").first).to_be_focused()
    page.reload()
    page.locator('#rows[aria-busy="false"]').wait_for()
    assert f"Because you watched {title}" in titles(page) and video not in ids(page)
    assert page.locator(".is-new").count() == 0


@pytest.mark.parametrize("width", [360, 390, 1440])
def test_nothing_is_wider_than_the_screen(opened: Any, users: list[str], width: int) -> None:
    page = opened(f"?user={users[1]}", {"width": width, "height": 740})

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    assert fits()
    if width < 600:
        page.get_by_role("button", name="Adjust").click()
        assert page.get_by_role("radio", name="phone").get_attribute("aria-checked") == "true"
        for field in page.locator(".controls .field:visible").all():
            box = field.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert fits()
    page.locator(".tile").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width and fits()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Health").click()
    page.locator(".card").first.wait_for()
    assert fits()


# --- what goes wrong -----------------------------------------------------------------------------
def test_errors_are_text_with_a_next_step(opened: Any, users: list[str]) -> None:
    page = opened(f"?user={users[1]}&device=web", refused=400)
    page.get_by_label("User").fill("<img src=x onerror=alert(1)>")
    page.get_by_label("User").press("Enter")
    expect(page.locator("#notice")).to_contain_text("is not a number that the server takes")
    expect(page.locator("#notice")).to_contain_text("<img src=x")
    assert page.locator("main img, dialog img").count() == 0


def test_nobody_knows_this_user(opened: Any) -> None:
    page = opened("?user=1&device=phone", PHONE)
    expect(page.locator("#notice")).to_have_text("Nobody knows this user: a page for somebody new.")
    assert len(ids(page)) >= 100


def test_who_may_ask(announced: dict[str, Any], users: list[str]) -> None:
    watch = {"user": users[4], "video": "1"}
    kind = {"Content_Type": "application/json"}
    status, found = ask(
        announced, "POST", "/api/watch", watch, Origin="http://evil.example", **kind
    )
    assert (status, found["error"]["what"]) == (403, "another site may not ask")
    status, found = ask(announced, "POST", "/api/watch", watch, Host="evil.example", **kind)
    assert (status, found["error"]["what"]) == (421, "the request is for another host")
    status, _ = ask(announced, "GET", f"/api/page?user={users[4]}", Host="evil.example:80")
    assert status == 421
    status, found = ask(announced, "POST", "/api/watch", watch, **kind)
    assert (status, found["error"]["what"]) == (400, "the bundle has no such video")
    status, found = ask(announced, "GET", f"/api/page?user={users[4]}&cursor=nonsense")
    assert status == 502 and "cursor" in found["error"]["found"]
    status, found = ask(announced, "GET", f"/api/page?user={users[4]}&planet=Mars")
    assert status == 400 and "device" in found["error"]["expected"]


def test_it_listens_on_this_machine_only(announced: dict[str, Any]) -> None:
    connections = psutil.Process(announced["pid"]).net_connections()
    listening = [one.laddr for one in connections if one.status == "LISTEN"]
    assert [one.ip for one in listening] == ["127.0.0.1"]
    assert urlsplit(announced["url"]).port == listening[0].port
