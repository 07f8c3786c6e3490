"""Deployments on the real Triton: what is refused, while the old bundle goes on serving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import reseal, variant
from tests.deployments import OUTPUT, Bundles, Load, control_of, served
from triton_repo.bundle import read_bundle
from triton_repo.client import Client
from triton_repo.deploy import deploy, rollback
from triton_repo.deployment import Deployment, Pointer
from workflow.errors import BundleError
from workflow.run import Run


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
