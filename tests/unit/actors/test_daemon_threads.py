"""Threads that nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from flowgentic_actors.actors.daemon_threads import on_daemon_thread
from tests.support.counter import PATIENCE


@pytest.mark.anyio
async def test_a_blocking_call_leaves_the_loop_free() -> None:
    caller = threading.get_ident()
    assert await on_daemon_thread(PATIENCE, threading.get_ident) != caller
    assert await on_daemon_thread(PATIENCE, divmod, 7, 2) == (3, 1)


@pytest.mark.anyio
async def test_its_error_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await on_daemon_thread(PATIENCE, divmod, 1, 0)


@pytest.mark.anyio
async def test_a_call_that_does_not_return_is_abandoned() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        await on_daemon_thread(0.05, release.wait, PATIENCE)
    release.set()


def test_a_call_that_returns_after_its_loop_was_closed_disturbs_nobody() -> None:
    release = threading.Event()

    async def abandon() -> None:
        with pytest.raises(TimeoutError):
            await on_daemon_thread(0.05, release.wait, PATIENCE)

    asyncio.run(abandon())
    release.set()
    while any(thread.name == "flowgentic:Event.wait" for thread in threading.enumerate()):
        time.sleep(0.005)  # an error in a thread would be a warning, and warnings are errors
