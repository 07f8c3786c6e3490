"""Deployments on the real Triton: swaps under load, refusals, kill -9, names, rollback.

The bundles are copies of one exported bundle of which each stage answers differently, so that an
answer made by stages of two bundles is the answer of neither.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.bundles import Mixtures, reseal, variant
from tests.servers import serving
from triton_repo.bundle import read_bundle
from triton_repo.client import Client
from triton_repo.control import ModelControl
from triton_repo.deploy import deploy, rollback
from triton_repo.deployment import Deployment, Pointer
from triton_repo.page_tensors import FUSED_PAGE, PAGE, PAGE_STAGE
from triton_repo.server import running_process
from triton_repo.tensors import ENSEMBLE, EVENTS, FUSED, STAGES
from workflow.console import Output
from workflow.errors import BundleError, ServingError
from workflow.run import Run

USERS = 12
MOMENT = int(time.time())
OUTPUT = Output(as_json=True)


class Bundles:
    """Run folders with bundles 1, 2, … of the simulated run, and what each must answer."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.source = source
        self.runs = {version: Run(folder / str(version)) for version in (1, 2, 3)}
        for version, run in self.runs.items():
            variant(source, run.repository, version, mark=version)
        ids = np.load(next((source / "query_tower").glob("*/user_id.npy")))
        self.users = [int(user) for user in ids[:: len(ids) // USERS][:USERS]]
        self.local = Mixtures({version: run.repository for version, run in self.runs.items()})
        self.expected = {version: self.pages((version,) * 3) for version in self.runs}

    def pages(self, way: tuple[int, ...]) -> list[tuple[list[int], Any]]:
        """(ids, scores) per user when the stages come from these bundles."""
        inputs = {
            "user_id": np.array(self.users)[:, None],
            "time": np.full((len(self.users), 1), MOMENT),
        }
        answer = self.local.answer(inputs, way)
        return list(zip(answer["video_id"].tolist(), answer["score"], strict=True))

    def is_of(self, version: int, row: int, answer: Any) -> bool:
        """Whether an answer for user number `row` is the one of this bundle."""
        ids, scores = self.expected[version][row]
        return answer.video_ids.tolist() == ids and bool(
            np.allclose(answer.scores, scores, rtol=0, atol=1e-4)
        )

    def ask(self, client: Client, row: int) -> Any:
        return client.recommend(self.users[row], time=MOMENT)


@pytest.fixture(scope="module")
def bundles(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"), sim_run.folder / "model_repository")


@contextmanager
def served(
    marquee: Any, place: Deployment, killed: bool = False
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """`marquee serve --deployment`; yields the process and what it printed when ready."""
    with serving(marquee, "--deployment", place.root, killed=killed) as server:
        yield server.process, server.endpoint


@pytest.fixture
def place(bundles: Bundles, tmp_path: Path) -> Deployment:
    """A deployment of bundle 1; nothing serves it yet."""
    made = Deployment(tmp_path / "deployment")
    made.install(bundles.runs[1].repository)
    made.point(Pointer(1))
    return made


def control_of(place: Deployment) -> ModelControl:
    server = running_process(place)
    assert server is not None
    return ModelControl(server.grpc_url, server.credentials)


def stubs_are_of(pid: int, versions: set[int]) -> bool:
    lines = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            lines.append(" ".join(process.cmdline()))
    stubs = [line.split("/model.py")[0] for line in lines if "/model.py" in line]
    return {int(stub.rsplit("/", 1)[1]) for stub in stubs} == versions


# --- the proof itself ----------------------------------------------------------------------------
def test_every_mixture_of_two_bundles_shows(bundles: Bundles) -> None:
    """Otherwise the tests below would prove nothing."""
    pure = [scores for pages in bundles.expected.values() for _, scores in pages]
    assert len({scores.tobytes() for scores in pure}) == 3 * USERS
    mixed = bundles.local.mixed()
    assert len(mixed) == 3**3 - 3
    for way in mixed:
        for row, (ids, scores) in enumerate(bundles.pages(way)):
            for version in bundles.runs:
                want_ids, want_scores = bundles.expected[version][row]
                gap = np.abs(scores - want_scores).max()
                assert ids != want_ids or gap > 1e-3, (way, version, row)


# --- swaps ---------------------------------------------------------------------------------------
class Load:
    """Callers that check each answer against the bundle that it says it is of."""

    def __init__(self, bundles: Bundles, url: str, concurrency: int) -> None:
        self.bundles, self.url = bundles, url
        self.stopped = threading.Event()
        self.failed: list[str] = []
        self.mixed: list[tuple[int, int]] = []
        self.seen: dict[int, int] = {}
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(concurrency)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, first: int) -> None:
        row = first
        with Client(self.url, timeout_s=60) as client:
            while not self.stopped.is_set():
                row = (row + 1) % USERS
                try:
                    answer = self.bundles.ask(client, row)
                except ServingError as error:
                    self.failed.append(str(error))
                    continue
                self.seen[answer.version] = self.seen.get(answer.version, 0) + 1
                if not self.bundles.is_of(answer.version, row, answer):
                    self.mixed.append((answer.version, row))

    def wait_for(self, version: int, count: int = 20, timeout_s: float = 60) -> None:
        """Until `count` more answers of this bundle came."""
        goal = self.seen.get(version, 0) + count
        deadline = time.monotonic() + timeout_s
        while self.seen.get(version, 0) < goal:
            assert time.monotonic() < deadline, (version, self.seen, self.failed[:3])
            time.sleep(0.01)


def test_swaps_under_load(marquee: Any, bundles: Bundles, place: Deployment) -> None:
    """No request fails, no answer mixes two bundles, each says which bundle it is of."""
    with served(marquee, place) as (_, endpoint), Load(bundles, endpoint["grpc_url"], 8) as load:
        load.wait_for(1)
        for version in (2, 3):
            result = deploy(place, bundles.runs[version], None, OUTPUT)
            assert (result["live"], result["previous"]) == (version, version - 1)
            load.wait_for(version)
        for version in (2, 3):
            assert rollback(place, None, OUTPUT)["live"] == version
            load.wait_for(version)
        assert deploy(place, bundles.runs[1], None, OUTPUT)["removed"] == [2]
        load.wait_for(1)
        assert rollback(place, None, OUTPUT)["live"] == 3
        load.wait_for(3)
        with control_of(place) as control:
            models = (ENSEMBLE, FUSED, *STAGES, EVENTS, PAGE, FUSED_PAGE, PAGE_STAGE)
            own = {f"{model}_3" for model in models}
            assert control.loaded() == dict.fromkeys(own | {"marquee", "events", "page"}, 3)
        deadline = time.monotonic() + 30
        while not stubs_are_of(endpoint["pid"], {3}):  # the old stages ended
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert load.failed == [] and load.mixed == []
    assert set(load.seen) == {1, 2, 3}
    assert place.versions() == [1, 3]


def test_two_bundles_side_by_side(
    marquee: Any, bundles: Bundles, sim_run: Any, place: Deployment
) -> None:
    with served(marquee, place) as (_, endpoint):
        url = endpoint["grpc_url"]
        words = ["deploy", bundles.runs[2].root, "--deployment", place.root, "--as", "candidate"]
        assert marquee.json(*words)["named"] == {"candidate": 2}
        with Client(url) as live, Client(url, name="candidate") as candidate:
            for row in range(USERS):
                for client, version in ((live, 1), (candidate, 2)):
                    answer = bundles.ask(client, row)
                    assert answer.version == version and bundles.is_of(version, row, answer)
            check_comparison(marquee, sim_run.folder, place)
            words = ["rollback", "--deployment", place.root, "--as", "candidate"]
            assert marquee.json(*words)["named"] == {}
            with pytest.raises(ServingError, match="does not serve the model marquee_candidate"):
                bundles.ask(candidate, 0)
            assert bundles.is_of(1, 0, bundles.ask(live, 0))
    assert place.versions() == [1]


def test_what_users_watch_outlives_the_bundle(
    marquee: Any, bundles: Bundles, place: Deployment
) -> None:
    user = bundles.users[0]
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        best = int(client.recommend(user, time=MOMENT + 9).video_ids[0])
        client.watched(user, best, time=MOMENT)
        for version in (2, 3):
            deploy(place, bundles.runs[version], None, OUTPUT)
            assert client.user_events(user) == (1, MOMENT)
            answer = client.recommend(user, time=MOMENT + 9)
            assert answer.version == version and best not in answer.video_ids
    assert place.state_file.exists()


def check_comparison(marquee: Any, run: Path, place: Deployment) -> None:
    """Scores of bundle 2 are about 1 above those of bundle 1, and another order."""
    words = ["compare-bundles", run, "--deployment", place.root, "--requests", 60]
    result = marquee.json(*words, "--top-k", 10)
    assert result["versions"] == {"live": 1, "candidate": 2}
    assert (result["requests"], result["top_k"], sum(result["status"].values())) == (60, 10, 60)
    assert 0 < result["overlap"]["10"] < 1 and result["same_page"] < 1
    assert 0.5 < result["score_difference"]["mean"] < 2
    assert all(0 < ms["p50"] <= ms["p99"] for ms in result["latency_ms"].values())
    shown = marquee(*words).out
    assert "rank correlation" in shown and "overlap@20" in shown
    assert "no bundle is deployed as x" in marquee(*words, "--with", "x", "--json").error


# --- refusals ------------------------------------------------------------------------------------
def change_a_byte(folder: Path) -> None:
    path = next(folder.glob("ranker/*/ranker.onnx"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def remove_a_file(folder: Path) -> None:
    next(folder.glob("retrieval/*/index.faiss")).unlink()


def other_inputs(folder: Path) -> None:
    schema = read_bundle(folder).schema
    del schema["inputs"]["device"]
    reseal(folder, schema=schema)


def junk_weights(folder: Path) -> None:
    """Sealed well, and still it cannot be loaded."""
    next(folder.glob("ranker/*/ranker.onnx")).write_bytes(b"junk")
    reseal(folder)


def fails_at_warm_up(folder: Path) -> None:
    code = next(folder.glob("retrieval/*/stage.py"))
    code.write_text(code.read_text().replace("def run(self, inputs):", "def run(self, _):", 1))
    reseal(folder)


def unsorted_scores(folder: Path) -> None:
    code = next(folder.glob("ranker/*/stage.py"))
    code.write_text(code.read_text().replace("np.argsort(-scores", "np.argsort(scores"))
    reseal(folder)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a changed byte": (change_a_byte, "ranker.onnx of bundle 9 was changed"),
    "a missing file": (remove_a_file, "index.faiss of bundle 9 is missing"),
    "no READY": (lambda folder: (folder / "READY").unlink(), "is not complete"),
    "another schema": (other_inputs, "input device: gone"),
    "junk weights": (junk_weights, "bundle 9 does not load.*InvalidProtobuf"),
    "a failing warm-up": (fails_at_warm_up, "bundle 9 does not load"),
    "an answer that is no page": (unsorted_scores, "the scores are not sorted numbers"),
}


@pytest.fixture
def spoiled(bundles: Bundles, tmp_path: Path) -> Callable[[str], Run]:
    def make(kind: str) -> Run:
        run = Run(tmp_path / kind.replace(" ", "-"))
        variant(bundles.source, run.repository, 9, mark=4)
        REFUSED[kind][0](run.repository)
        return run

    return make


def test_refused_bundles_leave_the_old_one_serving(
    marquee: Any, bundles: Bundles, place: Deployment, spoiled: Callable[[str], Run]
) -> None:
    with served(marquee, place) as (_, endpoint), Load(bundles, endpoint["grpc_url"], 2) as load:
        for kind, (_, words) in REFUSED.items():
            run = spoiled(kind)
            with pytest.raises(BundleError, match=words):
                deploy(place, run, None, OUTPUT)
            assert place.pointer() == Pointer(1) and place.versions() == [1], kind
            load.wait_for(1)
        error = marquee("deploy", run.root, "--deployment", place.root, "--json").error
        assert error.startswith("BundleError: ") and "sorted" in error
        with control_of(place) as control:
            assert set(control.loaded().values()) == {1}
        assert not any("_9" in path.name for path in place.repository.iterdir())
        deploy(place, bundles.runs[2], None, OUTPUT)  # the server took no harm
        load.wait_for(2)
    assert load.failed == [] and load.mixed == []


def test_refused_without_a_live_server(place: Deployment, spoiled: Callable[[str], Run]) -> None:
    with pytest.raises(BundleError, match="bundle 9 does not load"):
        deploy(place, spoiled("junk weights"), None, OUTPUT)
    assert place.pointer() == Pointer(1) and place.versions() == [1]


def test_a_pointer_that_cannot_be_written(
    marquee: Any, bundles: Bundles, place: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new bundle already answered; the old one comes back."""

    def refuse(self: Deployment, pointer: Pointer) -> None:
        raise OSError("disk full")

    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Deployment, "point", refuse)
            with pytest.raises(OSError, match="disk full"):
                deploy(place, bundles.runs[2], None, OUTPUT)
        assert bundles.is_of(1, 0, bundles.ask(client, 0))
        assert place.pointer() == Pointer(1) and place.versions() == [1]


def test_a_damaged_live_bundle_is_not_served(
    marquee: Any, bundles: Bundles, place: Deployment
) -> None:
    """Nor is anything else in its place, until somebody says so."""
    place.install(bundles.runs[2].repository)
    place.point(Pointer(2, 1))
    path = next((place.bundles / "2").glob("ranker/*/stage.json"))
    content = path.read_bytes()
    path.unlink()  # the run's own copy is the same file: it stays
    path.write_bytes(content + b" ")
    error = marquee("serve", "--deployment", place.root, "--json").error
    assert "stage.json of bundle 2 was changed" in error and "marquee rollback" in error
    assert rollback(place, None, OUTPUT)["live"] == 1
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        assert bundles.is_of(1, 0, bundles.ask(client, 0))


# --- kill -9 -------------------------------------------------------------------------------------
# Where a deploying process kills itself: before this call in triton_repo.deploy or its helpers.
POINTS = {
    "try_out": "loaded in a server of its own",
    "write_front": "loaded beside the old one",
    "point": "the new one already answers, the pointer is old",
    "unload": "the pointer is new, the old one still loaded",
}
SUICIDE = """
import os, signal, sys
from triton_repo import deploy as deploying, swap
from triton_repo.control import ModelControl
from triton_repo.deployment import Deployment
from workflow.console import Output
from workflow.run import Run

def die(*_, **__):
    os.kill({victim}, signal.SIGKILL)
    {then}

point = sys.argv[3]
owners = [owner for owner in (ModelControl, Deployment, swap) if hasattr(owner, point)]
setattr(owners[0], point, die)
deploying.deploy(Deployment(sys.argv[1]), Run(sys.argv[2]), None, Output(True))
"""


def deploy_and_kill(
    place: Deployment, run: Run, point: str, victim: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Deploy in a process that kills itself, or `victim` instead, at `point`."""
    code = SUICIDE.format(
        victim=victim or "os.getpid()",
        then="raise SystemExit(7)" if victim else "",
    )
    words = [sys.executable, "-c", code, str(place.root), str(run.root), point]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_of_the_deploying_process(
    marquee: Any, bundles: Bundles, tmp_path: Path, point: str
) -> None:
    """The server answers on; a restart serves what the pointer says; the next deploy tidies up."""
    place = Deployment(tmp_path / "deployment")
    place.install(bundles.runs[3].repository)
    place.install(bundles.runs[1].repository)
    place.point(Pointer(1, 3))
    with served(marquee, place) as (_, endpoint), Load(bundles, endpoint["grpc_url"], 2) as load:
        load.wait_for(1)
        killed = deploy_and_kill(place, bundles.runs[2], point)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        expected = 2 if point == "unload" else 1
        assert place.pointer().live == expected
        load.wait_for(2 if point in ("point", "unload") else 1)
        if point in ("write_front", "point"):  # another deploy, on the server as it was left
            deploy(place, bundles.runs[3], None, OUTPUT)
            load.wait_for(3)
            with control_of(place) as control:
                assert set(control.loaded().values()) == {3}
            expected = 3
    assert load.failed == [] and load.mixed == []
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        assert bundles.is_of(expected, 0, bundles.ask(client, 0))
        with control_of(place) as control:
            assert set(control.loaded().values()) == {expected}
        assert set(place.versions()) == place.pointer().kept
        assert not list(place.bundles.glob(".*"))


@pytest.mark.parametrize("point", ["write_front", "unload"])
def test_kill_9_of_the_server_during_a_deploy(
    marquee: Any, bundles: Bundles, place: Deployment, point: str
) -> None:
    with served(marquee, place, killed=True) as (process, endpoint):
        done = deploy_and_kill(place, bundles.runs[2], point, victim=endpoint["pid"])
        assert done.returncode == 7, done.stderr
        assert process.wait(timeout=60) != 0  # `marquee serve` says that its server died
    expected = 2 if point == "unload" else 1
    assert place.pointer().live == expected
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        for row in range(USERS):
            assert bundles.is_of(expected, row, bundles.ask(client, row))
        with control_of(place) as control:
            assert set(control.loaded().values()) == {expected}


def test_a_server_that_dies_while_loading(
    marquee: Any, bundles: Bundles, place: Deployment
) -> None:
    """The deploying process says so, and the pointer stays."""
    with served(marquee, place, killed=True) as (process, endpoint), ThreadPoolExecutor(1) as pool:
        future = pool.submit(deploy, place, bundles.runs[2], None, OUTPUT)
        deadline = time.monotonic() + 60
        while not (place.repository / "marquee_2").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(endpoint["pid"], signal.SIGKILL)
        with pytest.raises(ServingError, match="the Triton server at"):
            future.result(timeout=120)
        assert process.wait(timeout=60) != 0
    assert place.pointer() == Pointer(1) and place.versions() == [1]


# --- the command ---------------------------------------------------------------------------------
def test_deploy_serve_and_roll_back_by_command(
    marquee: Any, bundles: Bundles, sim_run: Any, tmp_path: Path
) -> None:
    place = Deployment(tmp_path / "deployment")
    where = ("--deployment", place.root)
    assert "nothing is deployed" in marquee("serve", *where, "--json").error
    first = marquee.json("deploy", sim_run.folder, *where)
    version = read_bundle(sim_run.folder / "model_repository").version
    assert first["live"] == first["version"] == version and first["server"] is None
    assert marquee.json("deploy", bundles.runs[2].root, *where)["previous"] == version
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        assert bundles.ask(client, 0).version == 2
        assert "is served already" in marquee("serve", *where, "--json").error
        back = marquee("rollback", *where)
        assert f"live {version}" in back.out and endpoint["grpc_url"] in back.out
        assert bundles.ask(client, 0).version == version
        shutil.rmtree(bundles.runs[2].repository / "ranker" / "2" / "__pycache__", True)
    error = marquee("serve", *where, "--run", sim_run.folder, "--json").error
    assert "both given" in error
