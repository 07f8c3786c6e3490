"""Settings of the page."""

from __future__ import annotations

import pytest

from workflow.config import LAYOUTS, Config, PageConfig, load_config, parse_config
from workflow.errors import ConfigError


def test_one_layout_changes_and_the_others_stay() -> None:
    page = load_config("sim", None, ["page.layouts.tv=[8, 4]", "page.layouts.car=[2, 3]"]).page
    assert page.layouts == {**LAYOUTS, "tv": (8, 4), "car": (2, 3)}
    assert parse_config(Config(dataset="sim", page=page).model_dump(mode="json")).page == page


def test_the_default_device_has_a_layout() -> None:
    with pytest.raises(ConfigError, match="default_device car: it has no layout"):
        load_config("sim", None, ["page.default_device=car"])


def test_the_quotas_are_what_is_ranked() -> None:
    quotas = PageConfig().quotas
    assert quotas.total == quotas.two_tower + quotas.neighbours + quotas.trending + quotas.fresh


def test_the_worth_of_one_kind_of_row_changes_and_the_others_stay() -> None:
    worth = load_config("sim", None, ["page.row_worth.trending=1"]).page.row_worth
    assert worth == PageConfig().row_worth.model_copy(update={"trending": 1.0})
    with pytest.raises(ConfigError, match=r"row_worth\.new"):
        load_config("sim", None, ["page.row_worth.new=0"])
