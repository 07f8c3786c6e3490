"""Deployment folders: the pointer, copies of bundles, what is kept, one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_repo import bundle_models
from triton_repo.bundle import read_bundle, seal
from triton_repo.deploy import deploy, rollback
from triton_repo.deployment import Deployment, Pointer, check_name
from workflow.console import Output
from workflow.errors import BundleError, ConfigError, MissingArtifactError, ServingError
from workflow.run import Run

STEP = 'step [ {{ model_name: "ranker" model_version: {0} }} ]'


def make(folder: Path, version: int, content: bytes = b"weights") -> Path:
    """A bundle with one stage, and the events model beside it."""
    for model in ("marquee", "ranker", "events"):
        (folder / model / str(version)).mkdir(parents=True)
    for model in ("ranker", "events"):
        (folder / model / "config.pbtxt").write_text(f'name: "{model}"\nbackend: "python"\n')
    (folder / "events" / str(version) / "model.py").write_text("X = 1\n")
    steps = f"ensemble_scheduling {{ {STEP.format(version)} }}"
    (folder / "marquee" / "config.pbtxt").write_text(f'name: "marquee"\n{steps}\n')
    (folder / "marquee" / str(version) / "README").write_text("")
    (folder / "ranker" / str(version) / "model.py").write_text("X = 1\n")
    (folder / "ranker" / str(version) / "w.npy").write_bytes(content)
    schema = {"inputs": {}, "outputs": {}, "max_batch_size": 1}
    seal(folder, version, schema)
    return folder


# --- the pointer ---------------------------------------------------------------------------------
def test_live_and_previous() -> None:
    first = Pointer().deployed(1, None)
    assert (first.live, first.previous, first.kept) == (1, None, {1})
    third = first.deployed(2, None).deployed(3, None)
    assert (third.live, third.previous, third.kept) == (3, 2, {2, 3})
    assert third.deployed(3, None) == third  # once more changes nothing
    back = third.rolled_back(None)
    assert (back.live, back.previous) == (2, 3)
    assert back.rolled_back(None) == third
    with pytest.raises(ServingError, match="no previous bundle"):
        first.rolled_back(None)


def test_names() -> None:
    pointer = Pointer(1).deployed(2, "candidate")
    assert pointer.serving == {None: 1, "candidate": 2}
    assert pointer.kept == {1, 2} and pointer.previous is None
    assert pointer.rolled_back("candidate") == Pointer(1)
    with pytest.raises(ServingError, match="one of candidate"):
        pointer.rolled_back("other")
    with pytest.raises(ServingError, match="deploy RUN --as NAME"):
        Pointer(1).rolled_back("candidate")


@pytest.mark.parametrize("name", ["", "A", "1a", "a-b", "a/b", "../x", "live", "a" * 33])
def test_names_that_cannot_be_models(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name"):
        check_name(name)


def test_the_pointer_file(tmp_path: Path) -> None:
    place = Deployment(tmp_path)
    assert place.pointer() == Pointer()
    with pytest.raises(MissingArtifactError, match=r"nothing is deployed.*marquee deploy RUN"):
        place.served_pointer()
    pointer = Pointer(3, 2, {"candidate": 4})
    place.point(pointer)
    assert place.served_pointer() == pointer
    assert [path.name for path in tmp_path.iterdir()] == ["current.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"live": 1}', '{"live": "x", "previous": null}'])
def test_a_damaged_pointer_is_named(tmp_path: Path, text: str) -> None:
    place = Deployment(tmp_path)
    place.install(make(tmp_path / "new", 5))
    place.pointer_file.write_text(text)
    with pytest.raises(BundleError, match=r"current.json is damaged.*Found: bundles 5\."):
        place.pointer()


# --- copies --------------------------------------------------------------------------------------
def test_install_makes_a_complete_copy(tmp_path: Path) -> None:
    source = make(tmp_path / "new", 5)
    (source / "ranker" / "5" / "stray.bin").write_bytes(b"not in the manifest")
    installed = Deployment(tmp_path / "place").install(source)
    assert installed.folder == tmp_path / "place" / "bundles" / "5"
    assert read_bundle(installed.folder) == installed
    for name in (*installed.sha256, "bundle.json", "READY"):
        assert (source / name).samefile(installed.folder / name)  # no second copy
    assert not (installed.folder / "ranker" / "5" / "stray.bin").exists()
    # Triton loads a folder again when Python writes into it later.
    assert list((installed.folder / "ranker" / "5" / "__pycache__").glob("model.*.pyc"))


def test_without_hard_links_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    installed = Deployment(tmp_path / "place").install(make(tmp_path / "new", 5))
    assert (installed.folder / "ranker" / "5" / "w.npy").read_bytes() == b"weights"


def test_install_refuses_damage_and_leaves_nothing(tmp_path: Path) -> None:
    place, source = Deployment(tmp_path / "place"), make(tmp_path / "new", 5)
    (source / "ranker" / "5" / "w.npy").write_bytes(b"weightS")
    with pytest.raises(BundleError, match=r"w\.npy of bundle 5 was changed"):
        place.install(source)
    (source / "ranker" / "5" / "w.npy").unlink()
    with pytest.raises(BundleError, match=r"w\.npy of bundle 5 is missing"):
        place.install(source)
    assert list(place.bundles.iterdir()) == []


def test_the_same_bundle_again_and_another_of_its_version(tmp_path: Path) -> None:
    place = Deployment(tmp_path / "place")
    first = place.install(make(tmp_path / "new", 5))
    assert place.install(tmp_path / "new") == first
    other = make(tmp_path / "other", 5, b"others!")
    place.point(Pointer(5))
    with pytest.raises(BundleError, match="another bundle of version 5"):
        place.install(other)
    place.point(Pointer(6))  # it is of no use any more, so it gives way
    assert place.install(other).seal != first.seal


def test_prune_keeps_what_the_pointer_names(tmp_path: Path) -> None:
    place = Deployment(tmp_path / "place")
    for version in range(1, 6):
        place.install(make(tmp_path / str(version), version))
    (place.bundles / ".9.tmp-123").mkdir()  # a copy that was killed
    assert place.prune(Pointer(5, 4, {"candidate": 2})) == [1, 3]
    assert sorted(path.name for path in place.bundles.iterdir()) == ["2", "4", "5"]


# --- what Triton reads ---------------------------------------------------------------------------
def config(repository: Path, model: str) -> model_config_pb2.ModelConfig:
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_models_of_two_bundles_stand_side_by_side(tmp_path: Path) -> None:
    place = Deployment(tmp_path / "place")
    for version in (5, 6):
        bundle = place.install(make(tmp_path / str(version), version))
        bundle_models.write_models(place.repository, bundle)
        bundle_models.write_front(place.repository, bundle, None)
    names = {path.name for path in place.repository.iterdir()}
    models = {"marquee", "ranker", "events"}
    own = {f"{model}_{version}" for model in models for version in (5, 6)}
    assert names == own | {"marquee", "events"}  # nobody asks a stage under a common name
    steps = {"marquee": "ranker_6", "marquee_5": "ranker_5", "marquee_6": "ranker_6"}
    for name, model in {**steps, "events": "events_6"}.items():
        ensemble = config(place.repository, name)
        assert ensemble.name == name
        [step] = ensemble.ensemble_scheduling.step
        assert (step.model_name, step.model_version) == (model, int(model[-1]))
    tmp_path.joinpath("place").rename(tmp_path / "moved")  # nothing absolute in it
    assert (tmp_path / "moved/repository/ranker_6/6/w.npy").read_bytes() == b"weights"
    bundle_models.remove_models(tmp_path / "moved" / "repository", {"marquee"})
    assert [path.name for path in (tmp_path / "moved/repository").iterdir()] == ["marquee"]
    assert (tmp_path / "moved/bundles/5/ranker/5/w.npy").exists()


# --- one at a time -------------------------------------------------------------------------------
def test_a_second_process_waits_or_says_who_works(tmp_path: Path) -> None:
    place = Deployment(tmp_path)
    with (
        place.locked(),
        pytest.raises(ServingError, match=f"being changed by process {os.getpid()}"),
        Deployment(tmp_path).locked(timeout_s=0.1),
    ):
        pass
    inside = threading.Event()
    with place.locked():
        other = threading.Thread(target=lambda: _enter(Deployment(tmp_path), inside))
        other.start()
        assert not inside.wait(0.2)
    other.join(timeout=10)
    assert inside.is_set()


def _enter(place: Deployment, inside: threading.Event) -> None:
    with place.locked():
        inside.set()


def test_a_killed_process_frees_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom triton_repo.deployment import Deployment\n"
        "with Deployment(sys.argv[1]).locked():\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        process.kill()
    with Deployment(tmp_path).locked(timeout_s=1):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


# --- deploy, before any server is started --------------------------------------------------------
def test_deploy_names_what_is_missing(tmp_path: Path) -> None:
    place, output = Deployment(tmp_path / "place"), Output(as_json=True)
    with pytest.raises(MissingArtifactError, match="no run folder"):
        deploy(place, Run(tmp_path / "none"), None, output)
    with pytest.raises(ConfigError, match="is no name"):
        deploy(place, Run(tmp_path / "none"), "A/B", output)
    with pytest.raises(MissingArtifactError, match="nothing is deployed"):
        rollback(place, None, output)
    run = Run(tmp_path / "run")
    make(run.repository, 5)
    with pytest.raises(ServingError, match="no live bundle that candidate"):
        deploy(place, run, "candidate", output)


def test_a_bundle_that_does_not_fit_the_live_one_is_refused(tmp_path: Path) -> None:
    place, output = Deployment(tmp_path / "place"), Output(as_json=True)
    place.install(make(tmp_path / "old", 5))
    place.point(Pointer(5))
    run = Run(tmp_path / "run")
    make(run.repository, 6)
    schema = {
        "inputs": {"x": {"dtype": "INT64", "dims": [1], "optional": False}},
        "outputs": {},
        "max_batch_size": 1,
    }
    (run.repository / "bundle.json").unlink()
    (run.repository / "READY").unlink()
    seal(run.repository, 6, schema)
    with pytest.raises(BundleError, match="input x: new and required"):
        deploy(place, run, None, output)
    assert place.pointer() == Pointer(5)
    assert place.versions() == [5]
    assert json.loads(place.pointer_file.read_text())["live"] == 5
