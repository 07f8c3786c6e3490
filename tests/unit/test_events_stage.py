"""The model `events`: what it refuses, what it stores, what it says."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triton_repo.export import TEMPLATES
from triton_repo.templates.common.store import open_store
from triton_repo.templates.events.stage import Stage

NOW = int(time.time())


def make_stage(folder: Path, *, only_positive: bool = False, state: str | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    shutil.copy(TEMPLATES / "common" / "store.py", folder)
    settings = {"longest_history": 4, "only_positive": only_positive}
    (folder / "stage.json").write_text(json.dumps(settings))
    return Stage(folder, str(folder / "events.sqlite") if state is None else state)


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    return make_stage(tmp_path)


def tensors(users: list[Any], videos: list[Any] | None, **more: list[Any]) -> dict[str, Any]:
    def ids(values: list[Any]) -> np.ndarray:
        return np.array(values, object if isinstance(values[0], bytes) else np.int64)[:, None]

    dtypes = {"time": np.int64, "label": np.int32, "watch_s": np.float32}
    inputs = {name: np.array(more[name], dtypes[name])[:, None] for name in more}
    absent = dict.fromkeys(dtypes.keys() - more.keys())
    video = None if videos is None else ids(videos)
    return {"user_id": ids(users), "video_id": video, **absent, **inputs}


def ask(stage: Any, sizes: list[int], inputs: dict[str, Any]) -> tuple[dict[int, str], Any]:
    refused = stage.check(inputs, sizes)
    return refused, stage.run(inputs)


def kept(stage: Any, user: bytes) -> list[Any]:
    [record] = stage.store.read([user])
    return json.loads(record) if record else []


def test_an_event_is_stored_and_counted(stage: Any) -> None:
    inputs = tensors([7, 7, 8], [70, 71, 70], time=[NOW - 5, NOW - 9, NOW - 7])
    refused, answer = ask(stage, [1, 1, 1], inputs)
    assert refused == {}
    assert {name: values[:, 0].tolist() for name, values in answer.items()} == {
        "stored": [1, 1, 1], "num_events": [2, 2, 1], "last_time": [NOW - 5, NOW - 5, NOW - 7],
    }  # fmt: skip
    assert kept(stage, b"7") == [[NOW - 9, 71, None, None], [NOW - 5, 70, None, None]]
    other = open_store(str(stage.store.store.path), 4, 1.0)
    other.connect()
    assert other.read([b"8"]) == [b"[[%d,70,null,null]]" % (NOW - 7)]


def test_label_and_watch_time_where_they_are_known(stage: Any) -> None:
    more: Any = {"time": [1, 2, 3], "label": [1, 0, -1], "watch_s": [2.5, float("nan"), 0]}
    assert ask(stage, [3], tensors([7, 7, 7], [1, 2, 3], **more))[0] == {}
    assert kept(stage, b"7") == [[1, 1, 1, 2.5], [2, 2, 0, None], [3, 3, None, 0.0]]


@pytest.mark.parametrize("times", [None, [-1]])
def test_without_a_time_it_is_now(stage: Any, times: Any) -> None:
    more = {} if times is None else {"time": times}
    ask(stage, [1], tensors([7], [70], **more))
    [[second, *_]] = kept(stage, b"7")
    assert NOW <= second <= time.time()


def test_asking_stores_nothing(stage: Any) -> None:
    ask(stage, [1], tensors([7], [70], time=[5]))
    _, answer = ask(stage, [2], tensors([7, 9], None))
    assert answer["stored"].tolist() == [[0], [0]]
    assert answer["num_events"].tolist() == [[1], [0]]
    assert answer["last_time"].tolist() == [[5], [0]]
    # What warm-up sends: an empty id.
    assert ask(stage, [1], tensors([b""], None))[1]["num_events"].tolist() == [[0]]
    assert stage.store.read([b"9", b""]) == [None, None]


@pytest.mark.parametrize(
    ("users", "videos", "more", "message"),
    [
        ([b""], [b"v"], {}, "user_id has 1 to 1024 bytes, received 0"),
        ([b"u"], [b""], {}, "video_id has 1 to 1024 bytes, received 0"),
        ([b"u"], [b"v" * 1025], {}, "video_id has 1 to 1024 bytes, received 1025"),
        ([b"u"], [b"\xff"], {}, "video_id is not UTF-8"),
        ([7], [70], {"time": [NOW * 1000]}, "time is in unix seconds"),
        ([7], [70], {"time": [NOW + 2 * 86_400]}, "at most a day ahead"),
        ([7], [70], {"label": [2]}, "label is 0 or 1"),
        ([7], [70], {"watch_s": [-1.0]}, "watch_s is a number of seconds"),
        ([7], [70], {"watch_s": [float("inf")]}, "watch_s is a number of seconds"),
    ],
)
def test_refused(stage: Any, users: Any, videos: Any, more: Any, message: str) -> None:
    inputs = tensors(users, videos, **more)
    refused, _ = ask(stage, [1], inputs)
    assert message in refused[0]
    assert kept(stage, b"u") == kept(stage, b"7") == []


def test_refused_requests_of_a_batch_leave_nothing(stage: Any) -> None:
    inputs = tensors([7, 7, 7, 7], [1, 2, 3, 4], time=[1, 2, NOW * 1000, 4])
    refused, answer = ask(stage, [1, 2, 1], inputs)
    assert refused.keys() == {1}  # its first event is good; the request is refused as a whole
    assert [video for _, video, *_ in kept(stage, b"7")] == [1, 4]
    assert answer["num_events"][[0, 3], 0].tolist() == [2, 2]


def test_where_only_positives_are_watches(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, only_positive=True)
    refused, _ = ask(stage, [1, 1, 1], tensors([7, 7, 7], [1, 2, 3], label=[0, 1, -1]))
    assert refused == {0: "an event with label 0 is no watch in this data"}
    assert [video for _, video, *_ in kept(stage, b"7")] == [2, 3]


def test_without_a_store(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, state="")
    refused, _ = ask(stage, [1], tensors([7], [70]))
    assert "keeps no online state" in refused[0]
    refused, answer = ask(stage, [1], tensors([7], None))
    assert refused == {} and answer["num_events"].tolist() == [[0]]


def test_a_store_that_does_not_answer_acknowledges_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stage = make_stage(tmp_path, state=str(tmp_path / "file" / "events.sqlite"))
    inputs = tensors([7], [70])
    assert stage.check(inputs, [1]) == {}
    with pytest.raises(OSError, match="the online state is unavailable: "):
        stage.run(inputs)
    (tmp_path / "file").unlink()  # or it would be tried again until the tests end


def test_where_the_store_is_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_stage(tmp_path).store.store.path.parent
    monkeypatch.delenv("MARQUEE_STATE", raising=False)
    assert Stage(folder).store is None
    monkeypatch.setenv("MARQUEE_STATE", str(tmp_path / "elsewhere" / "e.sqlite"))
    ask(Stage(folder), [1], tensors([7], [70]))
    assert (tmp_path / "elsewhere" / "e.sqlite").exists()
