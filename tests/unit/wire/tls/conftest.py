"""What tests of TCP with TLS share."""

from __future__ import annotations

import ssl

import pytest

from flowgentic_actors.wire.identity import server_context
from tests.conftest import LOOPS
from tests.support.tls import OURS


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Runs an awaited test on each event loop."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(OURS, tmp_path_factory.mktemp("identity"))
