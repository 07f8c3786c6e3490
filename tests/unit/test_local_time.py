"""Hours and weekdays are local where the contract says how far clocks are ahead, UTC elsewhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.fixtures import DAY, START, make_config, make_contract, make_tables
from tests.unit.test_samples import known
from workflow.features.local_time import request_offset_s, user_offset_s
from workflow.features.samples import build_samples
from workflow.schema import Contract

OFFSETS = {"DE": 1, "US": -6, "IN": 5.5, "7": 2}
PLACES = [b"IN", b"US", b"", b"XX", None]


def contract_with(*, asked: bool = False, offsets: dict[str, float] = OFFSETS) -> Contract:
    """Users' countries tagged; `asked`: requests may say theirs, in the context column device."""
    plain = make_contract(publish_time=False).model_dump(mode="json")
    tables = ("users", "country"), ("events", "device")
    for table, name in tables[: 1 + asked]:
        [column] = [c for c in plain[table]["columns"] if c["name"] == name]
        column["tags"] = ["country"]
    return Contract.model_validate(plain | {"utc_offsets": offsets})


def test_where_users_live() -> None:
    users = pd.DataFrame({"country": ["US", None, "IN", "Atlantis"]})
    assert user_offset_s(contract_with(), users).tolist() == [0, -21_600, 0, 19_800, 0]
    numbers = pd.DataFrame({"country": [7.0, np.nan]})  # whole numbers with a null among them
    assert user_offset_s(contract_with(), numbers).tolist() == [0, 7_200, 0]


def test_a_request_says_where_it_comes_from() -> None:
    given = np.array(["IN", None, "XX", np.nan], object)
    at_home = np.full(4, 3_600, np.int32)
    assert request_offset_s(contract_with(), given, at_home).tolist() == [19_800, *[3_600] * 3]
    assert request_offset_s(contract_with(), None, at_home) is at_home


@pytest.mark.parametrize("asked", [False, True])
def test_samples_have_the_local_hour(asked: bool) -> None:
    tables = make_tables(num_users=10, num_videos=50, num_events=300)
    tables.events["device"] = np.resize(np.array(["IN", None, "US"], object), 300)
    contract = contract_with(asked=asked)
    lookup = known(tables.events, 10)
    part, config = np.zeros(300, np.int8), make_config()
    offset_s = user_offset_s(contract, tables.users)
    in_utc = build_samples(tables.events, part, contract, config, lookup)
    local = build_samples(
        tables.events, part, contract, config, replace(lookup, utc_offset_s=offset_s)
    )
    for at, event in tables.events.iterrows():
        country = tables.users["country"][event["user_row"] - 1]
        if asked and event["device"] is not None:
            country = event["device"]
        shift = OFFSETS.get(country, 0) * 3_600
        clock = datetime.fromtimestamp(event["timestamp"] + shift, UTC)
        assert (local["hour"][at], local["weekday"][at]) == (clock.hour, clock.weekday())
    assert (in_utc["hour"] != local["hour"]).mean() > 0.3
    assert in_utc["timestamp"].equals(local["timestamp"])


def test_served_as_sampled() -> None:
    """The query tower's clock is that of the samples, whatever the request says of its country."""
    from triton_repo.templates.query_tower.stage import Stage

    contract, users = contract_with(), pd.DataFrame({"country": ["US", None, "IN"]})
    stage: Any = Stage.__new__(Stage)
    stage.settings = {"country": "country"}
    stage.utc_offset_s = {name: round(hours * 3_600) for name, hours in OFFSETS.items()}
    stage.user_utc_offset_s = user_offset_s(contract, users)
    row = np.arange(4).repeat(len(PLACES))
    moment = START + np.arange(len(row)) * DAY // 7
    asked = np.array([[place or b""] for place in PLACES * 4], object)
    text = np.array([place.decode() if place else None for place in PLACES * 4], object)
    home = stage.user_utc_offset_s[row]
    served = stage.clock({"country": asked}, row, moment)
    assert served.tolist() == (moment + request_offset_s(contract, text, home)).tolist()
    assert stage.clock({}, row, moment).tolist() == (moment + home).tolist()
    stage.user_utc_offset_s = None
    assert stage.clock({"country": asked}, row, moment) is moment


def test_offsets_need_a_country() -> None:
    plain = make_contract().model_dump(mode="json")
    with pytest.raises(ValueError, match="utc_offsets: no column of users or events has the tag"):
        Contract.model_validate(plain | {"utc_offsets": OFFSETS})
    with pytest.raises(ValueError, match="less than or equal to 14"):
        contract_with(offsets={"DE": 3_600})
