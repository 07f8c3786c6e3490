"""What every test needs before anything heavy is imported, and the rule about skips."""

from __future__ import annotations

import os

import pytest

# TensorFlow and CUDA read these once, at import.
for _name, _value in {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}.items():
    os.environ.setdefault(_name, _value)

pytest_plugins = ["tests.runs"]  # after the variables: it imports what reads them


class NoSkips:
    """In CI a skipped test fails the session: it would hide what was not tested."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid in self.skipped:
            terminalreporter.write_line(f"skipped, which CI does not allow: {nodeid}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Install the rule where CI=true."""
    if os.environ.get("CI", "").lower() == "true":
        config.pluginmanager.register(NoSkips(), "no-skips")
