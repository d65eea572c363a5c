"""What every test relies on: which tests can run on this machine, and that nothing is skipped in silence."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_deselected: Counter[str] = Counter()
_skipped: list[str] = []


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository: configurations, manifests and packaging files."""
    return ROOT


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed a test, shown when the test fails; MEDSEQ_TEST_SEED repeats one."""
    value = int(os.environ.get("MEDSEQ_TEST_SEED", random.randrange(2**31)))
    request.node.add_report_section("setup", "seed", f"MEDSEQ_TEST_SEED={value}")
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the tests marked slow (make soak)")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512f" in cpuinfo.read_text()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Deselected, not skipped: a skip is a hole in a run, a missing device is a property of the machine.
    able = {"gpu": _has_gpu, "avx512": _has_avx512, "slow": lambda: config.getoption("--soak")}
    known: dict[str, bool] = {}
    keep, drop = [], []
    for item in items:
        marks = [mark for mark in able if item.get_closest_marker(mark)]
        for mark in marks:
            if mark not in known:
                known[mark] = able[mark]()
        missing = [mark for mark in marks if not known[mark]]
        _deselected.update(missing[:1])
        (drop if missing else keep).append(item)
    if drop:
        config.hook.pytest_deselected(items=drop)
        items[:] = keep


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and os.environ.get("CI") == "true" and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for mark, count in sorted(_deselected.items()):
        terminalreporter.write_line(f"deselected on this machine: {count} marked {mark}")
    if _skipped and os.environ.get("CI") == "true":
        terminalreporter.write_line(f"CI refuses skipped tests: {', '.join(sorted(_skipped))}", red=True)
