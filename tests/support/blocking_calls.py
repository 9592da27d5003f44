"""Blocking calls to what the loop of another thread serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")


@contextmanager
def elsewhere(served: AbstractAsyncContextManager[T]) -> Iterator[tuple[BlockingPortal, T]]:
    """Serve on an event loop in another thread."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(served) as value:
        yield portal, value


def timed(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start
