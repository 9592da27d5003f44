"""Exceptions at any instruction of an event loop's callbacks cost a connection and no answer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from flowgentic_actors import MemoryCluster
from flowgentic_actors.testing.cancellation import held_sockets
from flowgentic_actors.testing.interrupts import Injector, Interruption
from flowgentic_actors.wire import async_connection, client_wire

NAMESPACE = ("a", "b")
CALLBACKS = {
    "connection_made": client_wire.ClientWire.connection_made,
    "data_received": client_wire.ClientWire.data_received,
    "connection_lost": client_wire.ClientWire.connection_lost,
    "connected": async_connection.AsyncConnection._connected,
}
LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if find_spec("uvloop"):
    uvloop = import_module("uvloop").new_event_loop
    LOOPS += [pytest.param(uvloop, id="uvloop", marks=pytest.mark.slow)]


# uvloop leaves the socket of a connection whose making is interrupted to Python, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def sockets_left_to_python() -> Iterator[None]:
    yield
    gc.collect()  # where its warning is expected


@pytest.fixture(scope="module")
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(mode="distributed", spawner="subprocess", request_timeout=15) as opened:
        yield opened


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_an_exception_in_a_callback_costs_its_connection_and_no_answer(
    cluster: MemoryCluster,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Each run has a loop, and so a connection, of its own."""
    code = CALLBACKS[name].__code__

    transports: list[asyncio.Transport] = []
    made = client_wire.ClientWire.check_made

    def check_made(wire: client_wire.ClientWire, transport: asyncio.Transport) -> None:
        transports.append(transport)
        made(wire, transport)

    monkeypatch.setattr(client_wire.ClientWire, "check_made", check_made)

    async def ask(at: int, injector: Injector) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with injector.on():
            async with asyncio.timeout(20):
                for _ in range(2):
                    puts = [cluster.store.aput(NAMESPACE, f"k{n}", {"n": at}) for n in range(4)]
                    await asyncio.gather(*puts)
                    if not transports[-1].is_closing():
                        transports[-1].abort()
                    await asyncio.sleep(0)
                found = await cluster.store.asearch(NAMESPACE)
        assert [item.value for item in found] == [{"n": at}] * 4
        if injector.raised:
            (context,) = told
            assert context["exception"] is injector.error

    cluster.store.get(NAMESPACE, "k0")
    sockets = len(held_sockets())
    for at in range(10_000):
        injector = Injector(at, Interruption(str(at)), within=lambda found: found is code)
        transports.clear()
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(ask(at, injector))
        assert len(held_sockets()) <= sockets + 1
        if not injector.raised:
            break
    assert at
