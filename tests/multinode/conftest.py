"""Tests of several hosts, which are several on this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import Hosts, left_on_hosts, why_no_hosts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    asked_for = why_no_hosts.cache_info().currsize
    if asked_for and (reason := why_no_hosts()) is not None:
        terminalreporter.section("MULTI-NODE TESTS DID NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.write_line(reason)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Runs programs on several hosts, of which nothing may be left; skips where there are none."""
    if (reason := why_no_hosts()) is not None:
        pytest.skip(reason)
    yield Hosts(tmp_path)
    assert left_on_hosts() == []
