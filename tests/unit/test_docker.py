"""The files in docker/: they parse, their images are pinned, and what they name exists.

Nothing is built here: docker/README.md says what that leaves unproven.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser

from workflow.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
PINNED = re.compile(
    r"nvcr\.io/nvidia/[a-z/-]+:\d\d\.\d\d(-py3(-sdk)?)?|marquee-[a-z]+:\d+\.\d+\.\d+"
)
OBJECTS = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
OBJECT = {one["kind"]: one for one in OBJECTS}


def instructions(file: Path) -> list[dict[str, Any]]:
    parser = DockerfileParser(fileobj=file.open("rb"))
    found: list[dict[str, Any]] = [
        one for one in parser.structure if one["instruction"] != "COMMENT"
    ]
    return found


def values(file: Path, name: str) -> list[str]:
    return [one["value"] for one in instructions(file) if one["instruction"] == name]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The merged compose file, which the Compose specification accepts."""
    merged = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert PyCompose.from_yaml(yaml.safe_dump(merged)).service_names()
    found: dict[str, Any] = merged["services"]
    return found


# --- Dockerfiles ---------------------------------------------------------------------------------
@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfile(file: Path) -> None:
    [image] = values(file, "FROM")
    assert PINNED.fullmatch(image)
    names = [one["instruction"] for one in instructions(file)]
    user = names.index("USER")
    assert values(file, "USER") == ["1000:1000"]
    assert "RUN" not in names[user:] and "COPY" not in names[user:]
    for copied in values(file, "COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
    for command in values(file, "RUN"):
        assert "pip install" not in command or "--require-hashes" in command


def test_the_build_context_has_what_is_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for file in DOCKERFILES:
        for copied in values(file, "COPY"):
            assert not set(copied.split()) & set(ignored)


def test_train_script_uses_verbs_and_options_that_exist() -> None:
    import typer.main

    commands: Any = typer.main.get_command(app)
    text = (DOCKER / "train.sh").read_text()
    [loop] = re.findall(r"for verb in (.+); do", text)
    named = {*re.findall(r"marquee ([a-z]+) --run", text), *loop.split()}
    assert named == {"validate", "features", "train", "index", "export"} <= commands.commands.keys()
    options = {name for param in commands.commands["export"].params for name in param.opts}
    assert set(re.findall(r"--[a-z]+", text)) <= options


# --- compose -------------------------------------------------------------------------------------
def test_compose_profiles_are_complete(services: dict[str, Any]) -> None:
    for profile in ("cpu", "gpu"):
        mine = {name for name, one in services.items() if one["profiles"] == [profile]}
        assert mine == {f"{part}-{profile}" for part in ("train", "triton", "perf")}
        assert services[f"triton-{profile}"]["depends_on"] == {
            f"train-{profile}": {"condition": "service_completed_successfully"}
        }
        assert services[f"perf-{profile}"]["depends_on"] == {
            f"triton-{profile}": {"condition": "service_healthy"}
        }
        for name in mine:
            assert ("deploy" in services[name]) == (profile == "gpu" and "perf" not in name)


def test_compose_images_are_pinned_and_ports_on_loopback(services: dict[str, Any]) -> None:
    for service in services.values():
        assert PINNED.fullmatch(service["image"])
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()


def test_triton_and_sdk_are_of_one_release(services: dict[str, Any]) -> None:
    [image] = values(DOCKER / "serve.Dockerfile", "FROM")
    assert {services[f"perf-{one}"]["image"] for one in ("cpu", "gpu")} == {f"{image}-sdk"}


# --- Kubernetes ----------------------------------------------------------------------------------
@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: one["kind"])
def test_kubernetes_object(one: dict[str, Any]) -> None:
    kubernetes_validate.validate(one, "1.30", strict=True)


def test_kubernetes_objects_fit_together() -> None:
    pod = OBJECT["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert PINNED.fullmatch(container["image"].split()[0])
    labels = pod["metadata"]["labels"].items()
    for selector in (
        OBJECT["Service"]["spec"]["selector"],
        OBJECT["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECT["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    assert (
        OBJECT["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == (OBJECT["Deployment"]["metadata"]["name"])
    )
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} == volumes.keys()
    claim = volumes["bundle"]["persistentVolumeClaim"]["claimName"]
    assert claim == OBJECT["PersistentVolumeClaim"]["metadata"]["name"]
    ports = {one["name"] for one in container["ports"]}
    assert {one["targetPort"] for one in OBJECT["Service"]["spec"]["ports"]} == ports
    assert container["readinessProbe"]["httpGet"]["port"] in ports


def test_the_autoscaler_asks_for_the_metric_that_is_made() -> None:
    [metric] = OBJECT["HorizontalPodAutoscaler"]["spec"]["metrics"]
    [rule] = yaml.safe_load(OBJECT["ConfigMap"]["data"]["config.yaml"])["rules"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
