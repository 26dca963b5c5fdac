"""Fixtures for all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.layer import WITH_BASES, Layer

pytest_plugins = ("tests.support.guest.plugin", "tests.support.seaweed")

# How fast the machine is must not decide whether a test passes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# What a shell runs in the background ignores both, and so would all commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
# A run that is ended for its time takes its layers, mounts and namespaces along, as on Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)

ALLOWED_SKIPS = frozenset(
    {
        "the history of 0.1.0 is not here",
        "the browser is not here",
        "FUSEJOURNAL_TEST_FUZZ names no schemathesis",
    }
)
"""Reasons for which a test may be skipped where changes land."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--strict-skips``: where everything must run."""
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help="fail if a test is skipped for an unlisted reason",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for skips that are not on the list."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--strict-skips") or reporter is None:
        return
    reasons = {str(report.longrepr[2]) for report in reporter.stats.get("skipped", ())}
    unlisted = {
        reason for reason in reasons if reason.removeprefix("Skipped: ") not in ALLOWED_SKIPS
    }
    if unlisted:
        reporter.write_line(f"skipped, and not on the list: {sorted(unlisted)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that mount where nothing can be mounted, rather than fail."""
    reason = "" if os.geteuid() == 0 and os.path.exists("/dev/fuse") else "needs root and /dev/fuse"
    for item in items:
        if WITH_BASES and item.get_closest_marker("from_first_entry"):
            item.add_marker(pytest.mark.skip(reason="is about a journal from its first entry on"))
        if reason and item.get_closest_marker("mount"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    """A volume that is not started yet."""
    with Layer(tmp_path) as one:
        yield one


@pytest.fixture
def live(layer: Layer) -> Iterator[Layer]:
    """A volume whose layer serves it. What that logs as a warning or worse fails the test at its
    orderly stop."""
    layer.start()
    yield layer
    layer.stop()
