"""More requests than may wait: some are refused at once, the rest is right."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from triton_repo.client import Client
from workflow.errors import ServingError

LIMIT, CALLERS, EACH = 4, 24, 40


@pytest.fixture(scope="module")
def narrow(marquee: Any, serve: Any, sim_run: Any, copied_once: Path) -> Any:
    """A run where four requests may wait, served."""
    marquee.json("export", "--run", copied_once, "--set", f"serving.max_waiting={LIMIT}")
    with serve(copied_once) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def copied_once(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("narrow") / "run"
    shutil.copytree(sim_run.folder, folder, ignore=shutil.ignore_patterns("logs"))
    return folder


def test_beyond_the_limit_callers_are_told_at_once(narrow: dict[str, Any], sim_run: Any) -> None:
    page = sim_run.result["recommendations"]
    with Client(narrow["grpc_url"], timeout_s=20) as client:
        expected = client.recommend(page["user_id"], time=page["at"]).video_ids.tolist()
        ends = Counter[str]()
        lock = threading.Lock()

        def ask() -> None:
            for _ in range(EACH):
                try:
                    answer = client.recommend(page["user_id"], time=page["at"])
                    end = "right" if answer.video_ids.tolist() == expected else "wrong"
                except ServingError as error:
                    end = "overloaded" if "is overloaded" in str(error) else str(error)
                with lock:
                    ends[end] += 1

        threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(ends) == {"right", "overloaded"}, ends
        assert ends.total() == CALLERS * EACH and ends["right"] >= CALLERS
        for _ in range(3 * LIMIT):  # and afterwards nobody is
            assert client.recommend(page["user_id"], time=page["at"]).video_ids.tolist() == expected
