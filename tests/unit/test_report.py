"""The report page: every number is the JSON's, nothing comes from elsewhere, text is escaped."""

from __future__ import annotations

import base64
import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from models.evaluation import names
from models.evaluation.figures import Axis, axis, reliability, waterfall
from models.evaluation.report import render_report, write_report
from tests.results import RANKER, RETRIEVAL, planted_result

VOID = {"meta", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: numbers with their exact values, text, attributes, ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[float, str]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._value: str | None = None
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID and f"<{tag}" in (self.get_starttag_text() or ""):
            self._open.append(tag)
        if tag == "data":
            self._value = dict(attrs)["value"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.text += data
        if self._value is not None:
            self.numbers.append((json.loads(self._value), data))
            self._value = None


def numbers_in(value: Any) -> set[float]:
    if isinstance(value, dict):
        return set().union(*(numbers_in(v) for v in value.values()), set())
    if isinstance(value, list):
        return set().union(*(numbers_in(v) for v in value), set())
    return {float(value)} if isinstance(value, int | float) else set()


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return planted_result()


@pytest.fixture(scope="module")
def html(result: dict[str, Any]) -> str:
    return render_report(result)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_shown_number_is_in_the_json(page: Page, result: dict[str, Any]) -> None:
    known = numbers_in(result)
    assert len(page.numbers) > 500
    for value, text in page.numbers:
        assert value in known, (value, text)
        shown = float(re.sub("[,%]", "", text.replace("−", "-")))
        scale = 100 if text.endswith("%") else 1
        digits = len(text.rstrip("%").partition(".")[2])
        assert shown == pytest.approx(value * scale, abs=0.5000001 * 10**-digits), (value, text)


def test_every_number_of_the_json_is_shown(page: Page, result: dict[str, Any]) -> None:
    shown = {value for value, _ in page.numbers}
    expected = copy.deepcopy(result)
    for name in ("format", "seeds"):
        del expected[name]
    del expected["ranker"]["reliability"]  # a plot
    for part in (expected["ranker"], expected["end_to_end"]):
        for model in (part.get("models") or part["metrics"]).values():
            for value in model.values():
                del value["per_seed"]
    for model in expected["off_policy"]["rewards"].values():
        assert set(model) == {"logged", "policies"}
    missing = numbers_in(expected) - shown
    in_plots = numbers_in([expected["ranker"]["paired"], expected["end_to_end"]["paired"]])
    assert missing <= in_plots, sorted(missing)


def test_rows_show_their_own_models_numbers(html: str, result: dict[str, Any]) -> None:
    """In the temporal table, EASE's row holds EASE's values in the order of the columns."""
    table = html.split('id="temporal"')[1].split("</table>", maxsplit=1)[0]
    row = next(part for part in table.split("<tr") if ">EASE</th>" in part)
    ease = result["retrieval"]["temporal"]["models"]["ease"]
    values = [json.loads(v) for v in re.findall(r'<data value="([^"]+)"', row)]
    expected = [ease[m][k] for m in RETRIEVAL for k in ("mean", "low", "high")]
    assert values == expected
    names_shown = re.findall(r'<th scope="row">([^<]+)</th>', table)
    assert names_shown == [
        "Two-tower", "Popularity", "30-day popularity", "ItemKNN", "EASE", "iALS"
    ]  # fmt: skip


def test_marks_and_verdicts(html: str, page: Page) -> None:
    table = html.split('id="temporal"')[1].split("</table>", maxsplit=1)[0]
    rows = {name: next(r for r in table.split("<tr") if f">{name}</th>" in r)
            for name in ("Popularity", "EASE", "iALS", "Two-tower")}  # fmt: skip
    assert rows["Popularity"].count("▲") == 5 and "▼" not in rows["Popularity"]
    assert rows["iALS"].count("▼") == 5 and "▲" not in rows["iALS"]
    assert not re.search("[▲▼]", rows["EASE"] + rows["Two-tower"])
    verdict = html.split('class="verdict">')[1].split("</p>", maxsplit=1)[0]
    assert "popularity, 30-day popularity and ItemKNN" in verdict
    assert "worse than iALS" in verdict and "not shown to differ from EASE" in verdict
    assert "the ranker is better than LightGBM and user + item bias" in page.text  # the ranker


def test_less_is_better_where_it_is() -> None:
    assert names.verdict("log_loss", -0.02, -0.01) == "better"
    assert names.verdict("recall@100", -0.02, -0.01) == "worse"
    assert names.verdict("recall@100", -0.02, 0.01) == "none"
    assert names.verdict("novelty@10", 1.0, 2.0) == "none"  # neither more nor less is better


def test_the_best_value_of_a_column_is_marked(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    models = changed["ranker"]["models"]
    models["bias"]["log_loss"]["mean"] = 0.01
    models["lightgbm"]["auc"]["mean"] = 0.99
    table = render_report(changed).split('id="ranker"')[1].split("</table>")[0]
    best = {json.loads(v) for v in re.findall(r'class="best"><data value="([^"]+)"', table)}
    expected = [
        (min if m in ("log_loss", "ece", "watch_mae_s") else max)(
            values[m]["mean"] for values in models.values()
        )
        for m in RANKER
    ]
    assert best == set(expected)


def test_nothing_is_loaded_from_elsewhere(html: str, page: Page) -> None:
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,\S+", "", html))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src"):
            assert value.startswith(("#", "data:application/json;base64,")), value


def test_links_lead_somewhere(page: Page, result: dict[str, Any]) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert {link[1:] for link in links if link.startswith("#")} == set(ids)
    saved = [link for link in links if link.startswith("data:")]
    assert len(saved) == 1
    assert json.loads(base64.b64decode(saved[0].partition("base64,")[2])) == result


def test_text_is_escaped(html: str, page: Page) -> None:
    assert "movies <b>&amp;" in page.text
    assert "<b>&amp;" not in html and "available &amp; published" in html
    assert "Ease(l2=<200>)" in page.text


def test_coverage_says_what_chance_alone_would_do(page: Page) -> None:
    assert "With that many logs, 85% to 100% is in keeping with 95%." in page.text


def test_same_result_same_bytes(html: str, tmp_path: Path) -> None:
    path = write_report(planted_result(), tmp_path / "deep" / "report.html")
    assert path.read_bytes() == html.encode()
    assert render_report(planted_result(2)) != html


def test_light_dark_and_phone(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html


@pytest.mark.parametrize("missing", ["off_policy", "ranker", "end_to_end"])
def test_parts_may_be_missing(missing: str, result: dict[str, Any]) -> None:
    page = Page(render_report({**result, missing: None}))
    if missing == "off_policy":
        assert "no propensities" in page.text
    else:
        assert ("#" + missing.replace("_", "-")) not in [v for _, _, v in page.attributes]


def test_odd_values(result: dict[str, Any]) -> None:
    """No truth, undefined estimates, metrics that one model lacks, empty segments, one seed."""
    changed = copy.deepcopy(result)
    changed["seeds"] = [7]
    for reward in changed["off_policy"]["rewards"].values():
        for policy in reward["policies"].values():
            del policy["truth"]
            policy["snips"] = {"mean": None, "low": None, "high": None}
    changed["off_policy"]["coverage"] = None
    temporal = changed["retrieval"]["temporal"]["models"]
    del temporal["item_knn"]["mrr"]
    temporal["ials"]["mrr"]["mean"] = float("nan")
    for model in temporal.values():
        model["segments"]["new"] = {"users": 0}
    del temporal["ease"], changed["retrieval"]["temporal"]["paired"]["ease"]
    changed["retrieval"]["temporal"]["skipped"] = {"ease": "too <many> videos"}
    page = Page(render_report(changed))
    assert "Truth" not in page.text and "one seed" in page.text and "–" in page.text
    assert "EASE was not run: too <many> videos." in page.text
    assert not re.search(r"\bnan\b", page.text, re.I)


def test_fewer_than_ten_candidates(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    for model in changed["end_to_end"]["metrics"].values():
        del model["recall@10"]
    page = Page(render_report(changed))
    assert "what the ranker adds" in page.text and "on the way to the first 10" not in page.text


# --- figures -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("low", "high"), [(-0.013, 0.042), (0, 1), (-3, -1), (5, 5), (0, 2e5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    scale = axis([low, high], 10, 110)
    ticks = scale.ticks
    assert 2 <= len(ticks) <= 7
    for tick in ticks:
        value = float(tick["text"].replace("−", "-"))
        assert scale.low <= value + 1e-9 and value - 1e-9 <= scale.high
        assert tick["at"] == pytest.approx(scale.at(value), abs=0.2)
    assert Axis(0, 2, 100, 300).at(0.5) == 150


def test_waterfall_steps_start_where_the_last_one_ended() -> None:
    steps = [
        {"label": ["a"], "value": 0.2, "total": True, "text": ""},
        {"label": ["b"], "value": 0.1, "total": False, "text": ""},
        {"label": ["c"], "value": -0.05, "total": False, "text": ""},
        {"label": ["d"], "value": 0.25, "total": True, "text": ""},
    ]
    plot = waterfall(steps)
    first, gain, loss, last = plot["bars"]
    assert gain["y"] + gain["tall"] == pytest.approx(first["y"], abs=0.2)
    assert loss["y"] == pytest.approx(gain["y"], abs=0.2)
    assert last["y"] == pytest.approx(loss["y"] + loss["tall"], abs=0.2)
    assert [bar["kind"] for bar in plot["bars"]] == ["total", "gain", "loss", "total"]


def test_reliability_dots_lie_on_the_diagonal_when_calibrated() -> None:
    plot = reliability([{"predicted": p, "observed": p, "count": 9} for p in (0.1, 0.4)])
    across, up = plot["right"] - plot["left"], plot["bottom"] - plot["top"]
    for dot in plot["dots"]:
        assert (dot["x"] - plot["left"]) / across == pytest.approx(
            (plot["bottom"] - dot["y"]) / up, abs=0.01
        )
