"""An exported repository runs alone: copied elsewhere, on a Python that has nothing of ours.

The virtual environment holds links to the pip packages that the stages need, and no more.
"""

from __future__ import annotations

import ast
import pickletools
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from tritonclient import grpc

from triton_repo.embedded import embedded_triton
from triton_repo.ports import free_ports
from triton_repo.process import http_ready

SERVED_PACKAGES = ("numpy", "onnxruntime", "faiss-cpu")
OURS = ("models", "workflow", "triton_repo")
SUFFIXES = {".py", ".json", ".pbtxt", ".onnx", ".weights", ".npy", ".faiss", ""}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with links to the packages and what they require."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    [site] = folder.glob("lib/python3*/site-packages")
    wanted, done = list(SERVED_PACKAGES), set[str]()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        package = metadata.distribution(name)
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__":
                (site / top).symlink_to(Path(str(package.locate_file(top))))
        for line in package.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                wanted.append(need.name)
    return folder


@pytest.fixture(scope="module")
def copied(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere") / "a-copy"
    cached = shutil.ignore_patterns("__pycache__")
    shutil.copytree(sim_run.folder / "model_repository", folder, ignore=cached)
    for path in folder.rglob("*"):  # read-only, as a mounted volume is
        if path.is_file():
            path.chmod(0o444)
    return folder


@pytest.fixture(scope="module")
def bare_url(bare: Path, copied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tritonserver whose stages run in the bare environment; nothing of ours starts it."""
    triton = embedded_triton()
    environment = triton.environment | {"VIRTUAL_ENV": str(bare)}
    environment["PATH"] = f"{bare / 'bin'}:/usr/bin:/bin"
    grpc_port, http_port, metrics_port = free_ports(3)
    log = tmp_path_factory.mktemp("log") / "triton.log"
    options = {
        "model-repository": copied, "backend-directory": triton.backends,
        "grpc-port": grpc_port, "http-port": http_port, "metrics-port": metrics_port,
        "allow-gpu-metrics": "false",
        "backend-config": f"python,shm-region-prefix-name=marquee-bare-{http_port}",
    }  # fmt: skip
    options |= {f"{way}-address": "127.0.0.1" for way in ("grpc", "http", "metrics")}
    words = [str(triton.binary), "--disable-auto-complete-config"]
    words += [f"--{name}={value}" for name, value in options.items()]
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=environment, cwd="/", stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 120
        while not http_ready(f"http://127.0.0.1:{http_port}"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{grpc_port}"
    finally:
        process.terminate()
        process.wait(30)


def test_nothing_of_ours_can_be_imported_there(bare: Path) -> None:
    python = str(bare / "bin" / "python")
    code = "import numpy, onnxruntime, faiss\n"
    for name in (*OURS, "tritonclient", "pyarrow", "tensorflow", "nvtabular", "merlin"):
        code += (
            f"try:\n    import {name}\nexcept ImportError:\n    pass\nelse:\n    exit('{name}')\n"
        )
    code += "import sys; print(*sys.path, sep='\\n')"
    done = subprocess.run(
        [python, "-c", code], env={"PATH": ""}, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.splitlines()


def test_it_answers_as_the_original(
    sim_run: Any, sim_server: dict[str, Any], bare_url: str
) -> None:
    users = pq.read_table(sim_run.folder / "data" / "users.parquet", columns=["user_id"])
    ids = users.column("user_id").to_numpy()[:96]
    moment = sim_run.result["recommendations"]["at"]
    original, alone = (
        grpc.InferenceServerClient(url) for url in (sim_server["grpc_url"], bare_url)
    )
    for start in range(0, len(ids), 32):
        batch = np.append(ids[start : start + 31], 1)[:, None]  # and one that nobody knows
        answers = [
            client.infer(
                "marquee", [_tensor("user_id", batch), _tensor("time", batch * 0 + moment)]
            )
            for client in (original, alone)
        ]
        for name in ("video_id", "score", "status"):
            first, second = (answer.as_numpy(name) for answer in answers)
            assert first.size and np.isfinite(first).all()
            np.testing.assert_array_equal(first, second)


def _tensor(name: str, values: Any) -> Any:
    tensor = grpc.InferInput(name, list(values.shape), "INT64")
    tensor.set_data_from_numpy(values)
    return tensor


def exported(folder: Path) -> list[Path]:
    """Its files, without what Python compiled while it was served."""
    return [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "__pycache__"]


# --- what the files hold -------------------------------------------------------------------------
def test_code_imports_nothing_of_ours(copied: Path) -> None:
    files = sorted(copied.rglob("*.py"))
    assert len(files) >= 6
    known = {"numpy", "onnxruntime", "faiss", "triton_python_backend_utils"}
    known |= {"redis"}  # imported only where the state is kept there; the bare one has none
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                names = [str(node.module)]
            for name in {name.partition(".")[0] for name in names}:
                assert name in sys.stdlib_module_names or name in known, (file, name)
                assert name not in ("pickle", "marshal", "shelve"), file


def test_no_file_is_a_pickle(copied: Path) -> None:
    for file in exported(copied):
        assert file.suffix in SUFFIXES, file
        content = file.read_bytes()
        assert not _is_pickle(content), file
        if file.suffix == ".npy":
            assert np.load(file, allow_pickle=False).dtype != object


def _is_pickle(content: bytes) -> bool:
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1
    except (ValueError, IndexError, OverflowError, MemoryError, UnicodeDecodeError):
        return False


def test_no_file_names_a_path_of_this_machine(copied: Path, sim_run: Any) -> None:
    places = {str(ROOT), str(sim_run.folder), str(Path.home()), sys.prefix, sys.base_prefix}
    absolute = re.compile(rb"(?<![\w./:])/(?:home|root|tmp|usr|var|opt|work|mnt|srv)/[\w./-]+")
    for file in exported(copied):
        content = file.read_bytes()
        assert not [place for place in places if place.encode() in content], file
        assert not absolute.findall(content), file
