"""One tritonserver process: start, readiness, clean stop, CPU time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from triton_repo.access import Access, Credentials, reachable
from triton_repo.embedded import STUB, embedded_triton
from triton_repo.ports import check_ports
from triton_repo.state import STATE_VARIABLE
from triton_repo.triton_log import log_error
from workflow.errors import ServingError
from workflow.run import storage_errors

# Started in a fresh interpreter, it becomes tritonserver. The kernel then ends tritonserver when
# the process that started it dies, however that happens. (Not a preexec_fn: those can deadlock
# in a process that has threads.) Arguments: parent's pid, program, its arguments.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process died")
os.execv(sys.argv[2], sys.argv[2:])
"""
_STOP_TIMEOUT_S = 15.0
_SHARED_MEMORY = Path("/dev/shm")
# Triton 2.51 loads models side by side, and once in some hundred starts that ends it.
_STARTS, _CHANCE = 3, b"boost::interprocess::lock_exception"
_STAGE_MEMORY_BYTES = 4 << 20  # of each model; a container has 64 MB in all by default


class TritonServer:
    """A tritonserver process that serves one model repository.

    It is stopped when the `with` block ends, and by the kernel when the thread that called
    `start` dies. Its log goes to `log_file`, never to the terminal.

    Args:
        repository: the model repository; every model in it is loaded.
        grpc_port, http_port, metrics_port: three different free ports.
        access: where it listens and what it asks for; by default this machine only, no TLS.
        state: where users' events since the export are kept (triton_repo.state); None: nowhere.
        log_file: replaced at each start.
    """

    def __init__(
        self,
        repository: Path,
        *,
        log_file: Path,
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        access: Access | None = None,
        state: str | None = None,
    ) -> None:
        self.repository = Path(repository)
        self.log_file = Path(log_file)
        self.access = access or Access()
        self.state = state
        self.ports = {"gRPC": grpc_port, "HTTP": http_port, "metrics": metrics_port}
        self._process: subprocess.Popen[bytes] | None = None
        self._memory_prefix = f"marquee-{os.getpid()}-{grpc_port}-"

    @property
    def grpc_url(self) -> str:
        """host:port, as gRPC clients want it."""
        return f"{reachable(self.access.host)}:{self.ports['gRPC']}"

    @property
    def http_url(self) -> str:
        return f"http://{reachable(self.access.http_host)}:{self.ports['HTTP']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{reachable(self.access.host)}:{self.ports['metrics']}/metrics"

    @property
    def credentials(self) -> Credentials:
        """What our own tools show to this server once it is ready."""
        return self.access.credentials(self.ports["gRPC"])

    @property
    def pid(self) -> int:
        """Process id of tritonserver.

        Raises:
            ServingError: it was not started.
        """
        if self._process is None:
            raise ServingError("the Triton server is not running", next_step="start() it first")
        return self._process.pid

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, timeout_s: float = 120.0) -> None:
        """Start and wait until every model is loaded and warm.

        Raises:
            ServingError: a port is taken, a model does not load, or it takes too long.
        """
        if self.is_alive():
            return
        _check_repository(self.repository)
        check_ports(self.ports, self.access.host)
        _remove_orphans()
        _remove_stale_shared_memory()
        for attempt in range(_STARTS):
            self._launch()
            try:
                self._wait_until_ready(timeout_s)
                self.access.hide_keys(self.pid)
            except BaseException as error:
                self.stop()
                last = attempt + 1 == _STARTS
                if last or not isinstance(error, ServingError) or not self._died_by_chance():
                    raise
            else:
                return

    def _launch(self) -> None:
        triton = embedded_triton()
        command = [str(triton.binary), *self._options(triton.backends)]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors(self.log_file), self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                launcher,
                env=triton.environment | {STATE_VARIABLE: self.state or ""},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us only; we stop the server
            )

    def _died_by_chance(self) -> bool:
        return _CHANCE in self.log_file.read_bytes()

    def _options(self, backends: Path) -> list[str]:
        options = {
            "model-repository": self.repository,
            "backend-directory": backends,
            "grpc-address": self.access.host,
            "http-address": self.access.http_host,
            "metrics-address": self.access.host,
            "grpc-port": self.ports["gRPC"],
            "http-port": self.ports["HTTP"],
            "metrics-port": self.ports["metrics"],
            "allow-gpu-metrics": "false",
            "pinned-memory-pool-byte-size": 0,
            "exit-timeout-secs": int(_STOP_TIMEOUT_S) - 5,
            "backend-config": f"python,shm-region-prefix-name={self._memory_prefix}",
            # A stage whose process died can only be loaded again under explicit control.
            "model-control-mode": "explicit",
            "load-model": "*",
            # Or else a model that is loaded beside the others, or could not be, would make a
            # server that answers as before count as not ready.
            "strict-readiness": "false",
        }
        # The exporter writes complete configurations: no second stub per model at start.
        flags = ["--disable-auto-complete-config"]
        # Room for the largest batch from the start.
        flags.append(f"--backend-config=python,shm-default-byte-size={_STAGE_MEMORY_BYTES}")
        flags += self.access.options()
        return flags + [f"--{name}={value}" for name, value in options.items()]

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if not self.is_alive():
                raise self.failure("the Triton server stopped while starting")
            if time.monotonic() > deadline:
                raise self.failure(f"the Triton server was not ready after {timeout_s:.0f} s")
            time.sleep(0.1)

    def failure(self, what: str) -> ServingError:
        """An error with the line of the log that says why."""
        reason = log_error(self.log_file)
        return ServingError(what, found=reason, next_step=f"see {self.log_file}")

    def is_alive(self) -> bool:
        """Whether the process runs (it may still be loading)."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether the server and all its models answer."""
        return self.is_alive() and http_ready(self.http_url)

    def stop(self) -> None:
        """End the server and its Python stubs; at the latest after 15 s by force."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
        finally:
            _kill_group(process.pid)  # stubs that outlived the server, or all of them
            process.wait()
            _remove_shared_memory(self._memory_prefix)

    def cpu_seconds(self) -> float:
        """User and system CPU seconds so far of the server and its Python stubs."""
        return tree_cpu_seconds(self.pid)


def _check_repository(repository: Path) -> None:
    """Refuse what tritonserver would wait for without an end or serve as nothing at all."""
    if re.search(r"[\s'\"\\$`&|;<>()*?]", str(repository.absolute())):
        raise ServingError(
            f"Triton cannot serve from the folder {str(repository)!r}",
            expected="a path without spaces, quotes or other characters that a shell reads",
            next_step="move the run, or copy its model repository elsewhere",
        )
    configurations = sorted(repository.glob("*/config.pbtxt"))
    if not configurations:
        raise ServingError(
            f"{repository} is not a model repository",
            expected="a folder per model, each with a config.pbtxt",
            next_step="marquee export",
        )
    for file in configurations:
        python = 'backend: "python"' in file.read_text(encoding="utf-8", errors="replace")
        if python and not any(file.parent.glob("*/model.py")):
            raise ServingError(
                f"model {file.parent.name} in {repository} has no code",
                expected=f"{file.parent.name}/<version>/model.py",
                next_step="marquee export",
            )


def http_ready(http_url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Triton at `http_url` says that it is ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy
    try:
        with opener.open(f"{http_url}/v2/health/ready", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # refused, timed out, not ready, or not HTTP
        return False


def tree_cpu_seconds(pid: int) -> float:
    """User and system CPU seconds of a process and its descendants.

    Raises:
        ServingError: the process is gone.
    """
    import psutil

    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)
    except psutil.NoSuchProcess:
        raise ServingError(f"the Triton server (process {pid}) is gone") from None


# --- what a killed server leaves ------------------------------------------------------------------
def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _remove_shared_memory(prefix: str) -> None:
    for path in _SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _remove_stale_shared_memory() -> None:
    """Regions of servers whose starter was killed: nobody else will ever remove them."""
    for path in _SHARED_MEMORY.glob("marquee-*"):
        if _is_abandoned(path.name):
            path.unlink(missing_ok=True)


def _remove_orphans() -> None:
    """Stubs of such servers; one that was still loading its model does not notice by itself."""
    import psutil

    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or []
        if words and Path(words[0]).name == STUB and any(map(_is_abandoned, words)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()


def _is_abandoned(name: str) -> bool:
    """Whether `name` is a shared memory region (marquee-PID-…) of a process that is gone."""
    import psutil

    parts = name.split("-")
    return (
        len(parts) > 2
        and parts[0] == "marquee"
        and parts[1].isdigit()
        and not psutil.pid_exists(int(parts[1]))
    )
